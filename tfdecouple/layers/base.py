"""The contract of every layer: the weights that it declares, its cost, and its map in both directions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeAlias

import keras
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfdecouple.bijectors import forward_and_log_det, inverse_and_log_det
from tfdecouple.errors import UserError
from tfdecouple.layers.layer_bijector import LayerBijector, as_tensor
from tfdecouple.runtime.execution import Execution, substitute_weights, without_autograph
from tfdecouple.runtime.numerics import zero_per_image
from tfdecouple.runtime.precision import full_float32

Shape = tuple[int, ...]
# z `[batch, d_z]`, a map `[batch, height, width, channels]`, or None for a layer without a condition.
Condition: TypeAlias = "tf.Tensor | None"
# An output, and its log-determinant for each image, `[batch]`.
Mapped = tuple[tf.Tensor, tf.Tensor]
Visit = Callable[["InvertibleLayer", tf.Tensor, "Condition"], tf.Tensor]
# Runs layers of unchanging shape one after the other on an input, all with the same condition.
RunLayers = Callable[[Sequence["InvertibleLayer"], tf.Tensor, "Condition"], Mapped]


class Gradients(NamedTuple):
    """A layer's input, recovered from its output, and the gradients of its backward pass.

    Attributes:
        x: the input.
        x_gradient: the gradient for the input.
        condition_gradient: the gradient for z; None where the layer takes none.
        weight_gradients: the gradients for the trainable ones of `layer.variables`, in their order.
    """

    x: tf.Tensor
    x_gradient: tf.Tensor
    condition_gradient: tf.Tensor | None
    weight_gradients: list[tf.Tensor | None]


class Weight(NamedTuple):
    """A weight as a layer declares it.

    Attributes:
        shape: of the weight.
        initializer: a function that makes Keras' initializer, or its name.
        dtype: of the weight; None for the layer's.
        trainable: whether training updates it by gradients.
    """

    shape: Shape
    initializer: str | Callable[[], Any] = "zeros"
    dtype: str | None = None
    trainable: bool = True


class Cost(NamedTuple):
    """The cost of a layer for one image: products, and the numbers that its backward pass needs.

    Attributes:
        multiply_adds: of the forward direction.
        activations: numbers in float32 that the backward pass needs from the forward pass.
        net_inputs: numbers of the coupling nets' inputs, which the backward pass needs in the precision of these nets.
        hidden_map: numbers of one hidden map of each coupling net.
    """

    multiply_adds: int = 0
    activations: int = 0
    net_inputs: int = 0
    hidden_map: int = 0

    def plus(self, other: Cost) -> Self:
        """Returns the cost of both."""
        return type(self)(*(one + two for one, two in zip(self, other, strict=True)))


class Nested:
    """Gives a layer the property `layers`; stands before the Keras class among the bases."""

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """The layers directly inside this one."""
        return list(self._flatten_layers(include_self=False, recursive=False))  # type: ignore[attr-defined]

    def __dir__(self) -> Iterable[str]:
        """Returns the names of attributes, but for `layers`.

        Keras' files store a layer under the attribute in which Keras finds it first, going through these names: the
        name `layers` would change the files.
        """
        return [name for name in super().__dir__() if name != "layers"]


class FullLayer(keras.layers.Layer):
    """A layer that declares its weights, which are never read in half precision.

    Its methods may be called directly, also within a user's layer in mixed precision, for which Keras would cast the
    weights that are read. Subclasses declare their own weights (`declare`) and the layers inside (`children`) for
    inputs of any shape. Names, shapes and number of a model's weights and the cost of a model follow from these
    declarations before anything is built.

    Attributes:
        saved_arguments: names of the constructor's arguments, each of which the layer has as an attribute.
    """

    built: bool
    saved_arguments: tuple[str, ...] = ()

    def declare(self, x_shape: Any, condition_shape: Any = None) -> dict[str, Weight]:
        """Returns the layer's own weights by name, in the order in which they are made.

        Args:
            x_shape: of the input, batch first.
            condition_shape: of the condition, batch first; None without one.
        """
        return {}

    def children(self, x_shape: Any, condition_shape: Any = None) -> list[tuple[FullLayer, Any, Any]]:
        """Returns the layers inside, in the order in which they are built, each with the shapes of its own inputs."""
        return []

    def weight_shapes(self, x_shape: Any, condition_shape: Any = None) -> dict[str, Shape]:
        """Returns `{path: shape}` of all weights; a path begins with the names of the layers around the weight."""
        shapes = {name: weight.shape for name, weight in self.declare(x_shape, condition_shape).items()}
        for layer, *inputs in self.children(x_shape, condition_shape):
            shapes |= {f"{layer.name}/{name}": shape for name, shape in layer.weight_shapes(*inputs).items()}
        return shapes

    def cost(self, x_shape: Any, condition_shape: Any = None) -> Cost:
        """Returns the cost of the layer for one image: the sum over the layers inside."""
        cost = Cost()
        for layer, *inputs in self.children(x_shape, condition_shape):
            cost = cost.plus(layer.cost(*inputs))
        return cost

    def build(self, x_shape: Any, condition_shape: Any = None) -> None:
        """Creates the declared weights and builds the layers inside."""
        self._sides = tuple((x_shape or ())[1:-1])
        declared = self.declare(x_shape, condition_shape)
        for name, (shape, initializer, dtype, trainable) in declared.items():
            initializer = initializer if isinstance(initializer, str) else initializer()
            weight = self.add_weight(name=name, shape=shape, initializer=initializer, dtype=dtype, trainable=trainable)
            setattr(self, name, weight)
        self._declared = tuple(declared)
        for layer, *inputs in self.children(x_shape, condition_shape):
            if not layer.built:
                layer.build(*(shape for shape in inputs if shape is not None))
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as plain values."""
        values = {name: getattr(self, name) for name in self.saved_arguments}
        plain = {name: value.to_dict() if hasattr(value, "to_dict") else value for name, value in values.items()}
        return {**super().get_config(), **plain}

    def tensors(self) -> dict[str, tf.Tensor]:
        """Returns the values of the layer's own weights by name."""
        return {name: tf.convert_to_tensor(getattr(self, name)) for name in self._declared}

    def add_weight(self, *args: Any, **kwargs: Any) -> keras.Variable:
        """Adds a weight as Keras does, but one that is never cast when it is read."""
        return super().add_weight(*args, **{"autocast": False, **kwargs})


class Float32Layer(FullLayer):
    """A `FullLayer` that computes in float32 whatever the global Keras policy."""

    def __init__(self, **kwargs: Any):
        super().__init__(dtype="float32", **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {name: value for name, value in super().get_config().items() if name != "dtype"}


@without_autograph
class InvertibleLayer(FullLayer):
    """An invertible Keras layer: one method for each direction, which returns value and log-determinant together.

    The forward direction is the training direction, from the image x to the local code v. The layer owns its weights;
    the maths is a bijector, made of the weights as tensors in each call. Subclasses implement `declare` and
    `bijector`; a layer that no single bijector describes implements `_forward` and `_inverse` instead.

    Computations are pinned to `dtype`, float32 unless another is given, whatever the global Keras policy: log-dets
    and matrix inverses lose their meaning in half precision.

    Args:
        dtype: "float32", or "float64" for tests and analyses.
        **kwargs: of `keras.layers.Layer`, such as `name`.

    Attributes:
        recovers_input: whether a backward pass by inversion (`backward_memory`) computes the layer's input from its
            output; else the input is stored.
    """

    recovers_input = True

    def __init__(self, *, dtype: Any = "float32", **kwargs: Any):
        super().__init__(dtype=dtype, **kwargs)
        # `build` sets these to the shapes of the inputs.
        self._event_ndims = 3
        self._condition_ndims = 1
        self._channels: int | None = None

    @full_float32()
    def forward_and_log_det(self, x: Any, condition: Any = None) -> Mapped:
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
    def inverse_and_log_det(self, y: Any, condition: Any = None) -> Mapped:
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
        self, y: tf.Tensor, condition: Condition, y_gradient: tf.Tensor, log_det_gradient: tf.Tensor
    ) -> Gradients:
        """Returns the input and the gradients of a backward pass that has stored nothing but the layer's output.

        Args:
            y: the output of `forward_and_log_det`.
            condition: z as it was given there, or None.
            y_gradient: the gradient for y.
            log_det_gradient: the gradient for the log-determinant, `[batch]`.
        """
        # Each weight becomes one tensor, which a tape can watch.
        with substitute_weights([(variable, tf.convert_to_tensor(variable)) for variable in self.variables]):
            return self._inverse_and_gradients(y, condition, y_gradient, log_det_gradient)

    def as_bijector(self, condition: Any = None) -> tfb.Bijector:
        """Returns the layer as a TFP bijector, forward = x -> v.

        The bijector takes any leading dimensions, `[..., height, width, channels]`, and the condition as a keyword:
        `bijector.forward(x, condition=z)`, or `bijector_kwargs={"condition": z}` in a `tfd.TransformedDistribution`.
        TFP asks for value and log-det separately, so each runs the layer once: train on `forward_and_log_det`.

        Like all of TFP's bijectors it caches the output of each tensor, and so does a distribution that holds it:
        after a change of the layer's weights make a new bijector.

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

    def call(self, x: tf.Tensor, condition: Condition = None) -> Mapped:
        """Returns the same as `forward_and_log_det`; Keras calls this method."""
        return self.forward_and_log_det(x, condition)

    def compute_output_shape(self, x_shape: Any, condition_shape: Any = None) -> tuple[tuple, tuple]:
        """Returns the shapes of the two outputs of `call`."""
        return tuple(x_shape), tuple(x_shape)[:1]

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: Condition = None) -> tfb.Bijector:
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
        self._event_ndims = len(x_shape) - 1
        self._channels = x_shape[-1]
        if condition_shape is not None:
            self._condition_ndims = len(condition_shape) - 1
        super().build(x_shape, condition_shape)

    def cost(self, x_shape: Any, condition_shape: Any = None) -> Cost:
        """Returns the cost of the layer for one image; a layer with weights stores its input for their gradients."""
        own = Cost(activations=math.prod(x_shape[1:]) if self.declare(x_shape, condition_shape) else 0)
        return own.plus(super().cost(x_shape, condition_shape))

    def initialize(self, x: tf.Tensor, condition: Condition = None) -> tf.Tensor:
        """Sets the weights that depend on data from a batch of the layer's inputs, and returns its outputs.

        Most layers have no such weights.
        """
        return self.forward_and_log_det(x, condition)[0]

    @full_float32()
    def visit_layers(self, x: Any, condition: Any, visit: Visit) -> tf.Tensor:
        """Runs the forward direction with a function of the caller's instead of each elementary layer.

        Args:
            x: a batch of the layer's inputs.
            condition: z, or None.
            visit: called as `visit(layer, x, condition)` with each elementary layer and its input; returns the layer's
                output, and may change its weights.

        Returns:
            The output.
        """
        return visit(self, x, condition)

    def _shape_bijector(self) -> tfb.Bijector:
        """Returns a bijector that changes shapes as the layer does."""
        return tfb.Identity()

    def _forward(self, x: tf.Tensor, condition: Condition) -> Mapped:
        return forward_and_log_det(self.bijector(self.tensors(), condition), x)

    def _inverse(self, y: tf.Tensor, condition: Condition) -> Mapped:
        return inverse_and_log_det(self.bijector(self.tensors(), condition), y)

    def _inverse_and_gradients(
        self, y: tf.Tensor, condition: Condition, y_gradient: tf.Tensor, log_det_gradient: tf.Tensor
    ) -> Gradients:
        x = self._inverse(y, condition)[0]
        inputs = [x, *([] if condition is None else [condition])]
        weights = trainable_tensors(self)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*inputs, *weights])
            outputs = self._forward(x, condition)
        upstream = [y_gradient, log_det_gradient]
        (x_gradient, *rest), weight_gradients = tape.gradient(outputs, [inputs, weights], output_gradients=upstream)
        return Gradients(x, x_gradient, rest[0] if rest else None, weight_gradients)

    def _prepare(self, x: Any, condition: Any) -> tuple[tf.Tensor, Condition]:
        """Returns input and condition as tensors of the layer's dtype; builds the layer, or checks their shapes."""
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
            shared_axes = -1 if local else 1
            if len(condition.shape) != self._condition_ndims + 1 or not (
                condition.shape[:shared_axes].is_compatible_with(x.shape[:shared_axes])
            ):
                expected = "[batch, d_z] with the same batch"
                if local:
                    expected = "[batch, height, width, channels] with the same batch, height and width"
                raise UserError(
                    f"layer {self.name} got an array of shape {tuple(x.shape)} and a condition of shape "
                    f"{tuple(condition.shape)}; the condition must be {expected}"
                )
        return x, condition


class InvertibleComposite(Nested, InvertibleLayer):
    """An invertible layer made of others, which describes once how data run through them.

    Subclasses implement `run_forward` and `run_inverse`. Training, inversion, initialisation and diagnostics follow
    these two methods with different functions that run the layers inside.

    Attributes:
        execution: runs the layers of a whole flow through shared traces; None where they are called directly.
    """

    execution: Execution | None = None

    def initialize(self, x: tf.Tensor, condition: Condition = None) -> tf.Tensor:
        """Sets the weights that depend on data in every layer inside, and returns the outputs."""
        return self.visit_layers(x, condition, lambda layer, *inputs: layer.initialize(*inputs))

    @full_float32()
    def visit_layers(self, x: Any, condition: Any, visit: Visit) -> tf.Tensor:
        """Runs the forward direction with `visit(layer, x, condition)` instead of each elementary layer."""
        x, condition = self._prepare(x, condition)

        def run_layers(layers: Sequence[InvertibleLayer], h: tf.Tensor, condition: Condition) -> Mapped:
            for layer in layers:
                h = layer.visit_layers(h, condition, visit)
            return h, zero_per_image(h)

        return self.run_forward(x, condition, run_layers)[0]

    def _forward(self, x: tf.Tensor, condition: Condition) -> Mapped:
        if self.execution is not None:
            return self.execution.run_flow(self, x, condition, "_forward")
        return self.run_forward(x, condition, functools.partial(_run_layers, "_forward"))

    def _inverse(self, y: tf.Tensor, condition: Condition) -> Mapped:
        if self.execution is not None:
            return self.execution.run_flow(self, y, condition, "_inverse")
        return self.run_inverse(y, condition, functools.partial(_run_layers, "_inverse"))

    def run_forward(self, x: tf.Tensor, condition: Condition, run_layers: RunLayers) -> Mapped:
        """Maps x towards v; `run_layers(layers, x, condition)` runs layers inside, in the order given."""
        raise NotImplementedError

    def run_inverse(self, y: tf.Tensor, condition: Condition, run_layers: RunLayers) -> Mapped:
        """Maps y back towards the image; `run_layers(layers, y, condition)` runs layers inside, in the order given."""
        raise NotImplementedError


def _run_layers(method: str, layers: Sequence[InvertibleLayer], h: tf.Tensor, condition: Condition) -> Mapped:
    """Returns the output of layers, one after the other, and the sum of their log-determinants."""
    log_dets = []
    for layer in layers:
        h, log_det = getattr(layer, method)(h, condition)
        log_dets.append(log_det)
    return h, tf.add_n(log_dets)


class InvertibleSequence(InvertibleComposite):
    """Invertible layers of unchanging shape, one after the other.

    Subclasses set `self.sequence` to a list of layers in their constructor.
    """

    sequence: list[InvertibleLayer]

    def children(self, x_shape: Any, condition_shape: Any = None) -> list[tuple[FullLayer, Any, Any]]:
        """Returns the sequence."""
        return [(layer, x_shape, condition_shape) for layer in self.sequence]

    def run_forward(self, x: tf.Tensor, condition: Condition, run_layers: RunLayers) -> Mapped:
        """Maps x towards v; see `InvertibleComposite`."""
        return run_layers(self.sequence, x, condition)

    def run_inverse(self, y: tf.Tensor, condition: Condition, run_layers: RunLayers) -> Mapped:
        """Maps y back towards the image; see `InvertibleComposite`."""
        return run_layers(self.sequence[::-1], y, condition)

    def _inverse_and_gradients(
        self, y: tf.Tensor, condition: Condition, y_gradient: tf.Tensor, log_det_gradient: tf.Tensor
    ) -> Gradients:
        condition_gradients: list[tf.Tensor] = []
        weight_gradients: dict[int, tf.Tensor | None] = {}
        previous: list[tf.Tensor] = []
        for layer in reversed(self.sequence):
            # The layer before must have released its maps by now.
            with tf.control_dependencies(previous):
                y = tf.identity(y)
            found = layer.inverse_and_gradients(y, condition, y_gradient, log_det_gradient)
            y, y_gradient = found.x, found.x_gradient
            weight_gradients.update(zip(map(id, _trainable(layer)), found.weight_gradients, strict=True))
            previous = [each for each in (y_gradient, *found.weight_gradients) if each is not None]
            if found.condition_gradient is not None:
                condition_gradients.append(found.condition_gradient)
        condition_gradient = tf.add_n(condition_gradients) if condition_gradients else None
        return Gradients(
            y, y_gradient, condition_gradient, [weight_gradients[id(variable)] for variable in _trainable(self)]
        )


def trainable_tensors(layer: keras.layers.Layer) -> list[tf.Tensor]:
    """Returns the values of a layer's trainable variables."""
    return [tf.convert_to_tensor(variable) for variable in _trainable(layer)]


def _trainable(layer: keras.layers.Layer) -> list[keras.Variable]:
    return [variable for variable in layer.variables if variable.trainable]


def require_condition(layer: keras.layers.Layer, size: int, condition: Any, local: bool = False) -> None:
    """Refuses a missing condition, or one of the wrong size.

    Args:
        layer: the layer that needs the condition.
        size: of the vector, or channels of the map.
        condition: the condition that the layer was given.
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
