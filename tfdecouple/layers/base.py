"""The contract of every invertible layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfdecouple.bijectors import ClosedForm
from tfdecouple.errors import UserError
from tfdecouple.layers.bijector import LayerBijector, as_tensor
from tfdecouple.layers.nested import Nested
from tfdecouple.runtime.autograph import unconverted
from tfdecouple.runtime.shapes import zero_per_image
from tfdecouple.runtime.tf32 import full_float32
from tfdecouple.runtime.tracing import in_place

Visit = Callable[["InvertibleLayer", tf.Tensor, tf.Tensor | None], tf.Tensor]


class Gradients(NamedTuple):
    """A layer's input, got back from its output, and the gradients that its backward pass gives.

    Attributes:
        x: the input.
        of_x: the gradient for it.
        of_condition: the gradient for z; None where the layer takes none.
        of_weights: the gradients for those of `layer.variables` that are trainable, in their order.
    """

    x: tf.Tensor
    of_x: tf.Tensor
    of_condition: tf.Tensor | None
    of_weights: list[tf.Tensor | None]


class FullLayer(keras.layers.Layer):
    """A layer whose weights are never read in half precision.

    Its methods are called as they are, not only through Keras: within a layer of a user's in mixed precision, too, for
    which Keras casts the weights that are read.
    """

    def add_weight(self, *args: Any, **kwargs: Any) -> keras.Variable:
        """As Keras'."""
        return super().add_weight(*args, **{"autocast": False, **kwargs})


@unconverted
class InvertibleLayer(FullLayer):
    """An invertible Keras layer: one method a direction, value and log-determinant together.

    The forward direction is the training direction, from the image x to the local code v. The layer owns its weights;
    the maths is a bijector made of them, as tensors, in each call. Subclasses implement `build` and `_bijector`, or
    `_forward` and `_inverse` where a single bijector of the whole input would not say it; the rest derives from these.

    Computations are pinned to `dtype`, float32 unless another is given, whatever the global Keras policy: log-dets
    and matrix inverses lose their meaning in half precision.

    Args:
        dtype: "float32", or "float64" for tests and analyses.
        **kwargs: of `keras.layers.Layer`, such as `name`.
    """

    def __init__(self, *, dtype: Any = "float32", **kwargs: Any):
        super().__init__(dtype=dtype, **kwargs)
        # Of the inputs that it is built for, see `_remember_shape`.
        self._event_ndims = 3
        self._condition_ndims = 1
        self._places: tuple[int, ...] = ()
        self._channels: int | None = None

    @full_float32()
    def forward_and_log_det(self, x: Any, condition: Any = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps x towards v.

        Args:
            x: `[batch, height, width, channels]`, or `[batch, channels]` for vectors.
            condition: z, `[batch, d_z]`, for the layers that take one; or a map beside x, `[batch, height, width, c]`.

        Returns:
            y of the shape of x, and log |det dy/dx| as `[batch]`, both of the layer's dtype.

        Raises:
            UserError: where a condition is needed and absent, or a shape does not fit.
        """
        x, condition = self._prepare(x, condition)
        return self._forward(x, condition)

    @full_float32()
    def inverse_and_log_det(self, y: Any, condition: Any = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps y back towards the image: the exact inverse of `forward_and_log_det`.

        Args:
            y: of the shape that the forward direction returns.
            condition: as in the forward direction.

        Returns:
            x, and log |det dx/dy| as `[batch]`, both of the layer's dtype.

        Raises:
            UserError: as in the forward direction.
        """
        y, condition = self._prepare(y, condition)
        return self._inverse(y, condition)

    @full_float32()
    def inverse_and_gradients(
        self, y: tf.Tensor, condition: tf.Tensor | None, of_y: tf.Tensor, of_log_det: tf.Tensor
    ) -> Gradients:
        """Takes a step of a backward pass that has kept nothing but the layer's output.

        Args:
            y: what `forward_and_log_det` has returned.
            condition: z as it was then, or None.
            of_y: the gradient for y.
            of_log_det: the gradient for the log-determinant, `[batch]`.
        """
        # Each weight as one tensor, which a tape can watch.
        with in_place([(variable, tf.convert_to_tensor(variable)) for variable in self.variables]):
            return self._inverse_and_gradients(y, condition, of_y, of_log_det)

    def as_bijector(self, condition: Any = None) -> tfb.Bijector:
        """Returns the layer as a TFP bijector, forward = x -> v.

        The bijector takes any leading dimensions, `[..., height, width, channels]`, and the condition as a keyword:
        `bijector.forward(x, condition=z)`, or `bijector_kwargs={"condition": z}` in a `tfd.TransformedDistribution`.
        TFP asks for value and log-det separately, so each runs the layer once: train on `forward_and_log_det`.

        A bijector, and a distribution that holds it, remembers for each tensor what became of it, as all of TFP's do,
        whatever the weights are by then: after a change of weights ask for another.

        Args:
            condition: z, `[..., d_z]`, or a map, `[..., height, width, c]`, to be used where the call gives none.

        Raises:
            UserError: for a layer that is not built.
        """
        if not self.built:
            raise UserError(
                f"layer {self.name} is not built, so its bijector cannot know its inputs; call "
                "layer.build((None, *shape of an input)) or the layer itself before"
            )
        return LayerBijector(self, condition)

    def call(self, x: tf.Tensor, condition: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Keras' entry: the same as `forward_and_log_det`."""
        return self.forward_and_log_det(x, condition)

    def compute_output_shape(self, x_shape: Any, condition_shape: Any = None) -> tuple[tuple, tuple]:
        """Returns the shapes of what `call` gives."""
        return tuple(x_shape), tuple(x_shape)[:1]

    def initialize(self, x: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
        """Sets what depends on the data from a batch of the layer's inputs, and returns its outputs.

        Most layers have nothing to set.
        """
        return self.forward_and_log_det(x, condition)[0]

    @full_float32()
    def walk(self, x: Any, condition: Any, visit: Visit) -> tf.Tensor:
        """Runs the forward direction with `visit(leaf, x, condition)` in the place of each elementary layer's own.

        Args:
            x: a batch of the layer's inputs.
            condition: z, or None.
            visit: given each elementary layer and its input, returns the layer's output; it may change its weights.

        Returns:
            The layer's output.
        """
        return visit(self, x, condition)

    def _bijector(self, condition: tf.Tensor | None) -> ClosedForm:
        raise NotImplementedError

    def _shapes(self) -> tfb.Bijector:
        """Returns a bijector that changes shapes as the layer does."""
        return tfb.Identity()

    def _forward(self, x: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return self._bijector(condition).forward_and_log_det(x)

    def _inverse(self, y: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return self._bijector(condition).inverse_and_log_det(y)

    def _inverse_and_gradients(
        self, y: tf.Tensor, condition: tf.Tensor | None, of_y: tf.Tensor, of_log_det: tf.Tensor
    ) -> Gradients:
        x = self._inverse(y, condition)[0]
        inputs = [x, *([] if condition is None else [condition])]
        weights = trained(self)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*inputs, *weights])
            outputs = self._forward(x, condition)
        of_inputs, of_weights = tape.gradient(outputs, [inputs, weights], output_gradients=[of_y, of_log_det])
        return Gradients(x, of_inputs[0], None if condition is None else of_inputs[1], of_weights)

    def _prepare(self, x: Any, condition: Any) -> tuple[tf.Tensor, tf.Tensor | None]:
        x = as_tensor(x, self.compute_dtype)
        if condition is not None:
            condition = as_tensor(condition, self.compute_dtype)
        if not self.built:
            self.build(x.shape, None if condition is None else condition.shape)
        if self._channels is not None and (len(x.shape) - 1, x.shape[-1]) != (self._event_ndims, self._channels):
            raise UserError(
                f"layer {self.name} got an array of shape {tuple(x.shape)}; it was built for {self._channels} channels "
                f"and {self._event_ndims + 1} axes"
            )
        if condition is not None:
            local = self._condition_ndims > 1
            # A vector for each image, or a map that has a vector for each place of x.
            places = -1 if local else 1
            if len(condition.shape) != self._condition_ndims + 1 or not (
                condition.shape[:places].is_compatible_with(x.shape[:places])
            ):
                expected = "[batch, d_z] with the same batch"
                if local:
                    expected = "[batch, height, width, channels] with the same batch, height and width"
                raise UserError(
                    f"layer {self.name} got an array of shape {tuple(x.shape)} and a condition of shape "
                    f"{tuple(condition.shape)}; the condition must be {expected}"
                )
        return x, condition

    def _remember_shape(self, x_shape: Any, condition_shape: Any = None) -> None:
        """Notes, at the end of `build`, the inputs that the layer was built for, and the condition if there is one."""
        self._event_ndims = len(x_shape) - 1
        self._places = tuple(x_shape[1:-1])
        self._channels = x_shape[-1]
        if condition_shape is not None:
            self._condition_ndims = len(condition_shape) - 1


class InvertibleComposite(Nested, InvertibleLayer):
    """An invertible layer made of others, with one description of how data run through them.

    Subclasses implement `_run_forward` and `_run_inverse` once; training, inversion, initialisation and diagnostics
    all follow them with another way to call a child.
    """

    def initialize(self, x: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
        """Sets what depends on the data in every layer inside, and returns the outputs."""
        return self.walk(x, condition, lambda leaf, *inputs: leaf.initialize(*inputs))

    @full_float32()
    def walk(self, x: Any, condition: Any, visit: Visit) -> tf.Tensor:
        """Runs the forward direction with `visit(leaf, x, condition)` in the place of each elementary layer's own."""
        x, condition = self._prepare(x, condition)

        def call(child: InvertibleLayer, h: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
            return child.walk(h, condition, visit), zero_per_image(h)

        return self._run_forward(x, condition, call)[0]

    def _forward(self, x: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return self._run_forward(x, condition, lambda child, *inputs: child.forward_and_log_det(*inputs))

    def _inverse(self, y: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return self._run_inverse(y, condition, lambda child, *inputs: child.inverse_and_log_det(*inputs))

    def _inverse_and_gradients(
        self, y: tf.Tensor, condition: tf.Tensor | None, of_y: tf.Tensor, of_log_det: tf.Tensor
    ) -> Gradients:
        backward = _BackwardPass(of_log_det)

        def call(child: InvertibleLayer, both: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
            return tf.concat(backward.through(child, condition, *tf.split(both, 2)), 0), zero_per_image(both)

        # Between its children a composite moves numbers about and no more, so that gradients go the way of the values:
        # they are put behind them as more images.
        x, of_x = tf.split(self._run_inverse(tf.concat([y, of_y], 0), condition, call)[0], 2)
        return backward.end(self, x, of_x)

    def _run_chain(
        self, layers: Sequence[InvertibleLayer], h: tf.Tensor, condition: tf.Tensor | None, call: ChildCall
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs layers of unchanging shape one after the other."""
        changes = []
        for layer in layers:
            h, change = call(layer, h, condition)
            changes.append(change)
        return h, tf.add_n(changes)

    def _run_forward(self, x: tf.Tensor, condition: tf.Tensor | None, call: ChildCall) -> tuple[tf.Tensor, tf.Tensor]:
        raise NotImplementedError

    def _run_inverse(self, y: tf.Tensor, condition: tf.Tensor | None, call: ChildCall) -> tuple[tf.Tensor, tf.Tensor]:
        raise NotImplementedError


# Runs a child on its input and the condition that it is given.
ChildCall = Callable[[InvertibleLayer, tf.Tensor, "tf.Tensor | None"], tuple[tf.Tensor, tf.Tensor]]


class InvertibleSequence(InvertibleComposite):
    """Invertible layers of unchanging shape, one after the other.

    Subclasses set `self.sequence` to a list of layers in their constructor.
    """

    sequence: list[InvertibleLayer]

    def build(self, x_shape: Any, condition_shape: Any = None) -> None:
        """Builds every layer for inputs of shape `x_shape`."""
        self._remember_shape(x_shape, condition_shape)
        for layer in self.sequence:
            layer.build(x_shape, condition_shape)
        self.built = True

    def _run_forward(self, x: tf.Tensor, condition: tf.Tensor | None, call: ChildCall) -> tuple[tf.Tensor, tf.Tensor]:
        return self._run_chain(self.sequence, x, condition, call)

    def _run_inverse(self, y: tf.Tensor, condition: tf.Tensor | None, call: ChildCall) -> tuple[tf.Tensor, tf.Tensor]:
        return self._run_chain(self.sequence[::-1], y, condition, call)

    def _inverse_and_gradients(
        self, y: tf.Tensor, condition: tf.Tensor | None, of_y: tf.Tensor, of_log_det: tf.Tensor
    ) -> Gradients:
        backward = _BackwardPass(of_log_det)
        for layer in reversed(self.sequence):
            y, of_y = backward.through(layer, condition, y, of_y)
        return backward.end(self, y, of_y)


class _BackwardPass:
    """The backward pass of a composite, child by child: what their gradients for condition and weights add up to."""

    def __init__(self, of_log_det: tf.Tensor):
        self._of_log_det = of_log_det
        self._of_condition: list[tf.Tensor] = []
        self._of_weights: dict[int, tf.Tensor | None] = {}
        self._before: list[tf.Tensor] = []

    def through(
        self, child: InvertibleLayer, condition: tf.Tensor | None, y: tf.Tensor, of_y: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the child's input and the gradient for it."""
        # The maps of the child before must be gone by now.
        with tf.control_dependencies(self._before):
            y = tf.identity(y)
        found = child.inverse_and_gradients(y, condition, of_y, self._of_log_det)
        self._of_weights.update(zip(map(id, _trainable(child)), found.of_weights, strict=True))
        self._before = [each for each in (found.of_x, *found.of_weights) if each is not None]
        if found.of_condition is not None:
            self._of_condition.append(found.of_condition)
        return found.x, found.of_x

    def end(self, layer: InvertibleComposite, x: tf.Tensor, of_x: tf.Tensor) -> Gradients:
        """Returns all of it, for the composite's own input."""
        of_condition = tf.add_n(self._of_condition) if self._of_condition else None
        return Gradients(x, of_x, of_condition, [self._of_weights[id(variable)] for variable in _trainable(layer)])


def trained(layer: keras.layers.Layer) -> list[tf.Tensor]:
    """Returns the values of a layer's trainable variables."""
    return [tf.convert_to_tensor(variable) for variable in _trainable(layer)]


def _trainable(layer: keras.layers.Layer) -> list[keras.Variable]:
    return [variable for variable in layer.variables if variable.trainable]


def need_condition(layer: keras.layers.Layer, size: int, condition: Any, local: bool = False) -> None:
    """Refuses a missing condition, or one of the wrong size, in one line.

    Args:
        layer: that needs it.
        size: of the vector, or channels of the map.
        condition: what the layer was given.
        local: whether it must be a map.

    Raises:
        UserError: naming the layer.
    """
    expected = f"[batch, height, width, {size}]" if local else f"[batch, {size}]"
    if condition is None:
        what = "a map" if local else "z"
        raise UserError(f"layer {layer.name} is conditional: pass condition={what} of shape {expected}")
    if condition.shape[-1] != size:
        raise UserError(f"layer {layer.name} got a condition of shape {condition.shape}; it needs {expected}")
