"""The contract of every layer: the weights that it declares, what it costs, and its map in both directions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import keras
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfdecouple.bijectors import forward_and_log_det, inverse_and_log_det
from tfdecouple.errors import UserError
from tfdecouple.layers.bijector import LayerBijector, as_tensor
from tfdecouple.runtime.execution import Execution, LayerCall, in_place, unconverted
from tfdecouple.runtime.numerics import zero_per_image
from tfdecouple.runtime.precision import full_float32

Shape = tuple[int, ...]
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


class Weight(NamedTuple):
    """A weight as a layer declares it.

    Attributes:
        shape: of the weight.
        initializer: makes Keras' initializer, or is the name of one.
        dtype: another one than the layer's.
        trainable: whether gradients move it.
    """

    shape: Shape
    initializer: str | Callable[[], Any] = "zeros"
    dtype: str | None = None
    trainable: bool = True


class Cost(NamedTuple):
    """What a layer costs for one image: products, and the numbers that its backward pass needs.

    Attributes:
        multiply_adds: of the forward direction.
        kept: numbers in float32 that the backward pass needs of the forward pass.
        narrow: likewise, in the precision of the coupling nets: the inputs of the nets.
        wide: numbers of one map inside each coupling net.
    """

    multiply_adds: int = 0
    kept: int = 0
    narrow: int = 0
    wide: int = 0

    def plus(self, other: Cost) -> Self:
        """Returns the cost of both."""
        return type(self)(*(one + two for one, two in zip(self, other, strict=True)))


class Nested:
    """A layer that shows the layers that it is made of; to be named before its Keras class among the bases."""

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """The layers right below this one."""
        return list(self._flatten_layers(include_self=False, recursive=False))  # type: ignore[attr-defined]

    def __dir__(self) -> Iterable[str]:
        """Returns the names of attributes, but for `layers`.

        Keras' files hold layers by the attribute in which it finds them first, going through these names: a second one
        for the same layers would change the files.
        """
        return [name for name in super().__dir__() if name != "layers"]


class FullLayer(keras.layers.Layer):
    """A layer that declares its weights; they are never read in half precision.

    Its methods are called as they are, not only through Keras: within a layer of a user's in mixed precision, too, for
    which Keras casts the weights that are read. Subclasses declare their own weights (`declare`) and the layers within
    (`children`), for inputs of any shape. The weights of a model, their number and what a model costs are read off
    these declarations, before anything is built.
    """

    built: bool

    def declare(self, x_shape: Any, condition_shape: Any = None) -> dict[str, Weight]:
        """Returns the layer's own weights by name, in the order in which they are made.

        Args:
            x_shape: of the input, batch first.
            condition_shape: of the condition, batch first; None without one.
        """
        return {}

    def children(self, x_shape: Any, condition_shape: Any = None) -> list[tuple[FullLayer, Any, Any]]:
        """Returns the layers within, in the order in which they are built, each with the shapes of its own inputs."""
        return []

    def weight_shapes(self, x_shape: Any, condition_shape: Any = None) -> dict[str, Shape]:
        """Returns `{path: shape}` of all weights, those of layers within under their names; nothing is built."""
        shapes = {name: weight.shape for name, weight in self.declare(x_shape, condition_shape).items()}
        for layer, *inputs in self.children(x_shape, condition_shape):
            shapes |= {f"{layer.name}/{name}": shape for name, shape in layer.weight_shapes(*inputs).items()}
        return shapes

    def cost(self, x_shape: Any, condition_shape: Any = None) -> Cost:
        """Returns what the layer costs for one image: the sum of the layers within."""
        cost = Cost()
        for layer, *inputs in self.children(x_shape, condition_shape):
            cost = cost.plus(layer.cost(*inputs))
        return cost

    def build(self, x_shape: Any, condition_shape: Any = None) -> None:
        """Creates the weights that are declared, and builds the layers within."""
        declared = self.declare(x_shape, condition_shape)
        for name, (shape, initializer, dtype, trainable) in declared.items():
            made = initializer if isinstance(initializer, str) else initializer()
            weight = self.add_weight(name=name, shape=shape, initializer=made, dtype=dtype, trainable=trainable)
            setattr(self, name, weight)
        self._declared = tuple(declared)
        for layer, *inputs in self.children(x_shape, condition_shape):
            if not layer.built:
                layer.build(*(shape for shape in inputs if shape is not None))
        self.built = True

    def tensors(self) -> dict[str, tf.Tensor]:
        """Returns the values of the layer's own weights by name."""
        return {name: tf.convert_to_tensor(getattr(self, name)) for name in self._declared}

    def add_weight(self, *args: Any, **kwargs: Any) -> keras.Variable:
        """As Keras'."""
        return super().add_weight(*args, **{"autocast": False, **kwargs})


@unconverted
class InvertibleLayer(FullLayer):
    """An invertible Keras layer: one method a direction, value and log-determinant together.

    The forward direction is the training direction, from the image x to the local code v. The layer owns its weights;
    the maths is a bijector made of them, as tensors, in each call. Subclasses implement `declare` and `bijector`, or
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

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: tf.Tensor | None = None) -> tfb.Bijector:
        """Returns the bijector of a batch, x -> v.

        It may act on numbers, on channels, which are the last axis, or on whole images (`forward_min_event_ndims` of 0,
        1 or 3), and is a `ClosedForm` of `tfdecouple/bijectors/` or one of TFP's. For any weights it must have an
        inverse. To be exported, its forward and inverse consist of operations that tf2onnx converts (exp, tanh,
        sigmoid, softplus, log, products, sums, quotients; not expm1 and log1p), and of no arrays but the weights.

        Args:
            weights: by the names of `declare`, of any values.
            condition: z, or a map beside x, for the layers that take one.
        """
        raise NotImplementedError

    def build(self, x_shape: Any, condition_shape: Any = None) -> None:
        """Creates the weights for inputs of these shapes, batch first."""
        self._remember_shape(x_shape, condition_shape)
        super().build(x_shape, condition_shape)

    def cost(self, x_shape: Any, condition_shape: Any = None) -> Cost:
        """Returns what the layer costs for one image; a layer with weights keeps its input for their gradients."""
        own = Cost(kept=math.prod(x_shape[1:]) if self.declare(x_shape, condition_shape) else 0)
        return own.plus(super().cost(x_shape, condition_shape))

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

    def _shapes(self) -> tfb.Bijector:
        """Returns a bijector that changes shapes as the layer does."""
        return tfb.Identity()

    def _forward(self, x: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return forward_and_log_det(self.bijector(self.tensors(), condition), x)

    def _inverse(self, y: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        return inverse_and_log_det(self.bijector(self.tensors(), condition), y)

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

    Subclasses implement `run_forward` and `run_inverse` once; training, inversion, initialisation and diagnostics
    all follow them with another way to call a child.

    Attributes:
        execution: runs the children of a whole flow; None where they are called as they are.
    """

    execution: Execution | None = None

    def initialize(self, x: tf.Tensor, condition: tf.Tensor | None = None) -> tf.Tensor:
        """Sets what depends on the data in every layer inside, and returns the outputs."""
        return self.walk(x, condition, lambda leaf, *inputs: leaf.initialize(*inputs))

    @full_float32()
    def walk(self, x: Any, condition: Any, visit: Visit) -> tf.Tensor:
        """Runs the forward direction with `visit(leaf, x, condition)` in the place of each elementary layer's own."""
        x, condition = self._prepare(x, condition)

        def call(child: InvertibleLayer, h: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
            return child.walk(h, condition, visit), zero_per_image(h)

        return self.run_forward(x, condition, call)[0]

    def _forward(self, x: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        if self.execution is not None:
            return self.execution.forward(self, x, condition)
        return self.run_forward(x, condition, InvertibleLayer.forward_and_log_det)

    def _inverse(self, y: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        if self.execution is not None:
            return self.execution.inverse(self, y, condition)
        return self.run_inverse(y, condition, InvertibleLayer.inverse_and_log_det)

    def _inverse_and_gradients(
        self, y: tf.Tensor, condition: tf.Tensor | None, of_y: tf.Tensor, of_log_det: tf.Tensor
    ) -> Gradients:
        backward = _BackwardPass(of_log_det)

        def call(child: InvertibleLayer, both: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
            return tf.concat(backward.through(child, condition, *tf.split(both, 2)), 0), zero_per_image(both)

        # Between its children a composite moves numbers about and no more, so that gradients go the way of the values:
        # they are put behind them as more images.
        x, of_x = tf.split(self.run_inverse(tf.concat([y, of_y], 0), condition, call)[0], 2)
        return backward.end(self, x, of_x)

    def _run_chain(
        self, layers: Sequence[InvertibleLayer], h: tf.Tensor, condition: tf.Tensor | None, call: ChildCall
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs layers of unchanging shape one after the other."""
        if isinstance(call, LayerCall) and call.inverts(h):
            return call.run_inverting(layers, h, condition)
        changes = []
        for layer in layers:
            h, change = call(layer, h, condition)
            changes.append(change)
        return h, tf.add_n(changes)

    def run_forward(self, x: tf.Tensor, condition: tf.Tensor | None, call: ChildCall) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps x towards v, each child by `call(child, input, its condition)`."""
        raise NotImplementedError

    def run_inverse(self, y: tf.Tensor, condition: tf.Tensor | None, call: ChildCall) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps y back, each child by `call(child, input, its condition)`."""
        raise NotImplementedError


# Runs a child on its input and the condition that it is given.
ChildCall = Callable[[InvertibleLayer, tf.Tensor, "tf.Tensor | None"], tuple[tf.Tensor, tf.Tensor]]


class InvertibleSequence(InvertibleComposite):
    """Invertible layers of unchanging shape, one after the other.

    Subclasses set `self.sequence` to a list of layers in their constructor.
    """

    sequence: list[InvertibleLayer]

    def children(self, x_shape: Any, condition_shape: Any = None) -> list[tuple[FullLayer, Any, Any]]:
        """Returns the sequence."""
        return [(layer, x_shape, condition_shape) for layer in self.sequence]

    def run_forward(self, x: tf.Tensor, condition: tf.Tensor | None, call: ChildCall) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps x towards v; see `InvertibleComposite`."""
        return self._run_chain(self.sequence, x, condition, call)

    def run_inverse(self, y: tf.Tensor, condition: tf.Tensor | None, call: ChildCall) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps v towards x; see `InvertibleComposite`."""
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
