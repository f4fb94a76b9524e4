"""The base classes of all layers, of invertible layers, and of invertible layers that are made of inner layers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import keras
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfdecouple.bijectors import with_log_det
from tfdecouple.config.shapes import Shape
from tfdecouple.errors import UnsupportedError, UserError
from tfdecouple.layers.inversion import Gradients, invert_layers
from tfdecouple.layers.layer_bijector import LayerBijector, cast_to_tensor
from tfdecouple.numerics.arithmetic import make_zero_log_det
from tfdecouple.numerics.tf32 import full_float32
from tfdecouple.storage.files import Facts

# The layers inside a layer, each with the shapes of its input and of its condition.
Children: TypeAlias = "list[tuple[BaseLayer, Shape, Shape | None]]"
# The condition of a layer: z `[batch, d_z]`, a feature map `[batch, height, width, channels]`, or None.
Condition: TypeAlias = "tf.Tensor | None"
# The result of an invertible layer in either direction: the output, and the log-determinant of each image, `[batch]`.
Mapped = tuple[tf.Tensor, tf.Tensor]
# A callback that `visit_layers` calls instead of a layer: (layer, input, condition) -> output.
Visit = Callable[["InvertibleLayer", tf.Tensor, "Condition"], tf.Tensor]
# The argument `run` of a layer: (layers, input, condition) -> output of the layers in sequence, sum of their log-dets.
Run: TypeAlias = "Callable[[Sequence[InvertibleLayer], tf.Tensor, Condition], Mapped]"
# The argument `runner` of a network: (function, network, inputs...) -> results of the function, run in a run mode.
Runner = Callable[..., Any]
_Class = TypeVar("_Class", bound=type)


def disable_autograph(owner: _Class) -> _Class:
    """Decorates a class so that AutoGraph rewrites neither its public methods nor the functions that these call.

    The decorated classes contain no Python control flow on tensors, and rewriting them would slow the first step.
    """
    for name, member in list(vars(owner).items()):
        if inspect.isfunction(member) and not name.startswith("_"):
            setattr(owner, name, tf.autograph.experimental.do_not_convert(member))
    return owner


class Weight(NamedTuple):
    """The specification of a weight, from which `BaseLayer.build` creates the weight.

    `initializer` is the name of a Keras initializer, or a function that returns one. None is the dtype of the layer.
    """

    shape: Shape
    initializer: str | Callable[[], Any] = "zeros"
    dtype: str | None = None
    trainable: bool = True


class KeepsWeights:
    """A mixin, listed before the Keras class, that refuses Keras' replacement of weights, and `tf.train.Checkpoint`."""

    def quantize(self, *arguments: object, **options: object) -> None:
        """Raises UnsupportedError, at which Keras skips this layer when it quantises a model around the layer."""
        raise UnsupportedError(
            "Keras' quantize and enable_lora would change no layer of this model; to train fewer weights, set "
            "layer.trainable = False"
        )

    enable_lora = quantize

    def _trackable_children(self, save_type: str = "checkpoint", **options: object) -> dict:
        if save_type == "checkpoint":
            raise UserError("tf.train.Checkpoint would skip weights; call model.save('x.keras') or tfdecouple.save_run")
        return super()._trackable_children(save_type, **options)  # type: ignore[misc]


class BaseLayer(KeepsWeights, keras.layers.Layer):
    """A Keras layer that specifies its weights before it is built, and whose weights Keras never casts.

    Without casts, a method of the layer can be called directly inside a user's layer in mixed precision. Subclasses
    specify the layer's weights (`declare`) and its inner layers (`children`) for inputs of any shape. The names, shapes
    and count of a model's weights are computed from these specifications before a weight is created. Each argument of a
    subclass's constructor is also an attribute, from which `get_config` reads its value.
    """

    built: bool

    def __init__(self, *, dtype: str | keras.DTypePolicy = "float32", **kwargs: object):
        super().__init__(dtype=dtype, **kwargs)

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """The direct sub-layers of this layer, a list that a Keras model's `summary` shows below this layer."""
        return list(self._flatten_layers(include_self=False, recursive=False))

    def declare(self, x_shape: Shape, condition_shape: Shape | None = None) -> dict[str, Weight]:
        """Returns {name: `Weight` (shape, initializer, dtype)} of this layer's weights; by default none."""
        return {}

    def children(self, x_shape: Shape, condition_shape: Shape | None = None) -> Children:
        """Returns [(layer, input shape, condition shape)] of this layer's direct sub-layers; by default none."""
        return []

    def compute_weight_shapes(self, x_shape: Shape, condition_shape: Shape | None = None) -> dict[str, Shape]:
        """Returns {path: shape} of all weights of this layer and its inner layers, with paths such as "net/first"."""
        shapes = {name: weight.shape for name, weight in self.declare(x_shape, condition_shape).items()}
        for layer, inner_shape, condition in self.children(x_shape, condition_shape):
            inner = layer.compute_weight_shapes(inner_shape, condition)
            shapes |= {f"{layer.name}/{name}": shape for name, shape in inner.items()}
        return shapes

    def build(self, x_shape: Shape, condition_shape: Shape | None = None) -> None:
        """Creates this layer's weights, which `declare` specifies, and builds the sub-layers that `children` lists."""
        self._sides = tuple((x_shape or ())[1:-1])
        declared = self.declare(x_shape, condition_shape)
        # A new initializer draws its seed from Python's generator. So initializers are created here, not in a
        # constructor: the initial weights of a model then do not depend on models that were never built.
        for name, (shape, initializer, dtype, trainable) in declared.items():
            initializer = initializer if isinstance(initializer, str) else initializer()
            # Autocasting is off, because Keras would cast the weights inside a user's layer with mixed precision.
            options = {"dtype": dtype, "trainable": trainable, "autocast": False}
            setattr(self, name, self.add_weight(name=name, shape=shape, initializer=initializer, **options))
        self._declared = tuple(declared)
        for layer, *in_shapes in self.children(x_shape, condition_shape):
            if not layer.built:
                layer.build(*(shape for shape in in_shapes if shape is not None))
        self.built = True

    def get_config(self) -> Facts:
        """Returns {name: value} of the constructor's arguments, plain values, with which Keras rebuilds this layer."""
        arguments = inspect.signature(type(self)).parameters.values()
        values = {item.name: getattr(self, item.name) for item in arguments if item.kind != item.VAR_KEYWORD}
        plain = {name: value.to_dict() if hasattr(value, "to_dict") else value for name, value in values.items()}
        return {**plain, **super().get_config()}

    def read_tensors(self) -> dict[str, tf.Tensor]:
        """Returns {name: tensor} with the values of this layer's weights, without those of inner layers."""
        return {name: tf.convert_to_tensor(getattr(self, name)) for name in self._declared}


@disable_autograph
class InvertibleLayer(BaseLayer):
    """An invertible Keras layer with a method for each direction, which returns output and log-determinant together.

    The forward direction is the training direction, from the image x to the local code v. The layer holds the weights.
    Each call makes a bijector from the values of the weights, and the bijector does the arithmetic. Subclasses
    implement `declare` and `bijector`, or `run_forward` and `run_inverse` if no single bijector describes the layer.

    Computations run in `dtype`, "float32" or "float64", under every global Keras policy, because log-determinants and
    matrix inverses would be too inexact in half precision.

    Attributes:
        runner: a function (method, layer, x, condition) that computes the results of the method
            `forward_and_log_det` or `inverse_and_log_det`, such as `Traced()` (`execution/runner.py`); None to run
            the layer's operations and those of its inner layers directly.
        recovers_input: whether the memory mode "invert" may recover the layer's input from the output instead of
            storing the input.
    """

    runner: Any = None
    recovers_input = True
    # `build` sets the counts of axes (without batch) of the layer's inputs, and of channels.
    _event_ndims, _condition_ndims = 3, 1
    _channels: int | None = None

    @full_float32()
    def forward_and_log_det(self, x: tf.Tensor, condition: Condition = None, runner: Runner | None = None) -> Mapped:
        """Returns y, this layer's output for x in the forward direction (towards v), and log |det dy/dx|, `[batch]`.

        Args:
            x: `[batch, height, width, channels]`, or `[batch, channels]` for vectors.
            condition: z, `[batch, d_z]`, or a feature map as large as x, `[batch, height, width, c]`; or None.
            runner: a function that runs the layer instead of the attribute `runner`; None for the attribute.
        """
        x, condition = self._prepare_inputs(x, condition)
        if runner := runner or self.runner:
            return runner(InvertibleLayer.forward_and_log_det, self, x, condition)
        return self.run_forward(functools.partial(run_layers, InvertibleLayer.forward_and_log_det), x, condition)

    @full_float32()
    def inverse_and_log_det(self, y: tf.Tensor, condition: Condition = None, runner: Runner | None = None) -> Mapped:
        """Returns the x that this layer maps to y for the same condition, and log |det dx/dy| per image, `[batch]`."""
        y, condition = self._prepare_inputs(y, condition)
        if runner := runner or self.runner:
            return runner(InvertibleLayer.inverse_and_log_det, self, y, condition)
        return self.run_inverse(functools.partial(run_layers, InvertibleLayer.inverse_and_log_det), y, condition)

    def as_bijector(self, condition: Condition = None) -> tfb.Bijector:
        """Returns this layer as a TFP bijector, whose forward direction is that of the layer, from x towards v.

        The bijector takes any leading dimensions, `[..., height, width, channels]`, and the condition as a keyword:
        `bijector.forward(x, condition=z)`, or `bijector_kwargs={"condition": z}` in a `tfd.TransformedDistribution`.
        TFP runs the layer once for the value and once for the log-determinant, so training with the layer's
        `forward_and_log_det` is faster. TFP also caches outputs: make a new bijector when the layer's weights change.
        `condition` is z, `[..., d_z]`, or a map, `[..., height, width, c]`, for calls without the keyword; or None.
        A layer that is not built raises UserError.
        """
        if not self.built:
            raise UserError(
                f"layer {self.name} is not built, so its bijector cannot know its inputs; call "
                "layer.build((None, *shape of an input)) or call the layer first"
            )
        return LayerBijector(self, condition)

    def call(self, x: tf.Tensor, condition: Condition = None) -> Mapped:
        """Returns output and log-determinant of `forward_and_log_det`; Keras calls this for `layer(x, condition)`."""
        return self.forward_and_log_det(x, condition)

    def compute_output_shape(self, x_shape: Shape, condition_shape: Shape | None = None) -> tuple[tuple, tuple]:
        """Returns the shapes of this layer's output, `x_shape`, and log-determinant, (batch,), for Keras' `summary`."""
        return tuple(x_shape), tuple(x_shape)[:1]

    def bijector(self, weights: Mapping[str, tf.Tensor], condition: Condition = None) -> tfb.Bijector:
        """Returns this layer's bijector from x to y (towards v), for given values of the layer's weights.

        `weights` is {name: tensor} with the names of `declare`; the bijector must be invertible for all values of the
        weights. It is a `ClosedForm` of `tfdecouple/bijectors.py` or a bijector of TFP, and acts on values, on channels
        (the last axis), or on images (`forward_min_event_ndims` of 0, 1 or 3). In a layer that is exported, the
        bijector may use only operations that tf2onnx converts (exp, tanh, sigmoid, softplus, log, products, sums,
        quotients; not expm1 and log1p).
        """
        raise NotImplementedError

    def build(self, x_shape: Shape, condition_shape: Shape | None = None) -> None:
        """Creates this layer's weights for inputs of `x_shape` and conditions of `condition_shape` (batch first)."""
        self._event_ndims = len(x_shape) - 1
        self._channels = x_shape[-1]
        if condition_shape is not None:
            self._condition_ndims = len(condition_shape) - 1
        super().build(x_shape, condition_shape)

    def initialize(self, x: tf.Tensor, condition: Condition = None) -> tf.Tensor:
        """Returns this layer's outputs for a batch x; layers that initialise weights from x override this method."""
        return self.forward_and_log_det(x, condition)[0]

    @full_float32()
    def visit_layers(self, x: tf.Tensor, condition: Condition, visit: Visit) -> tf.Tensor:
        """Runs this layer's forward direction, but calls `visit` for each innermost layer; returns the output.

        `visit(layer, x, condition)` must return the output of `layer` for x, possibly after changing its weights.
        """
        return visit(self, x, condition)

    def run_forward(self, run: Run, x: tf.Tensor, condition: Condition) -> Mapped:
        """Returns this layer's output for x, and log |det dy/dx|, `[batch]`; `run` runs the inner layers, if any."""
        return with_log_det(self.bijector(self.read_tensors(), condition)).forward_and_log_det(x)

    def run_inverse(self, run: Run, y: tf.Tensor, condition: Condition) -> Mapped:
        """Returns the x that this layer maps to y, and log |det dx/dy|, `[batch]`; `run` runs the inner layers."""
        return with_log_det(self.bijector(self.read_tensors(), condition)).inverse_and_log_det(y)

    @full_float32()
    def inverse_and_gradients(
        self, y: tf.Tensor, condition: Condition, y_gradient: tf.Tensor, log_det_gradient: tf.Tensor
    ) -> Gradients:
        """Recovers this layer's input x from its output y; returns `Gradients`: x, and gradients of the loss.

        `y_gradient` and `log_det_gradient` are the gradients of the loss for y and for log_det `[batch]`.
        """
        x = self.inverse_and_log_det(y, condition)[0]
        inputs = [x, *([] if condition is None else [condition])]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*inputs, *(variable.value for variable in self.variables if variable.trainable)])
            outputs = self.forward_and_log_det(x, condition)
        sources, upstream = [inputs, [variable.value for variable in self.variables]], [y_gradient, log_det_gradient]
        (x_gradient, *rest), weight_gradients = tape.gradient(outputs, sources, output_gradients=upstream)
        return Gradients(x, x_gradient, rest[0] if rest else None, weight_gradients)

    def _prepare_inputs(self, x: tf.Tensor, condition: Condition) -> tuple[tf.Tensor, Condition]:
        x = cast_to_tensor(x, self.compute_dtype)
        if condition is not None:
            condition = cast_to_tensor(condition, self.compute_dtype)
        if not self.built:
            self.build(x.shape, None if condition is None else condition.shape)
        if self._channels is not None and (len(x.shape) - 1, x.shape[-1]) != (self._event_ndims, self._channels):
            raise UserError(
                f"layer {self.name} got an array of shape {tuple(x.shape)}; it was built for {self._channels} channels "
                f"and {self._event_ndims + 1} axes"
            )
        if condition is not None:
            local = self._condition_ndims > 1
            shared = slice(-1 if local else 1)
            fits = condition.shape[shared].is_compatible_with(x.shape[shared])
            if len(condition.shape) != self._condition_ndims + 1 or not fits:
                axes = ("height, width, channels", "batch, height and width") if local else ("d_z", "batch")
                raise UserError(
                    f"layer {self.name} got an array of shape {tuple(x.shape)} and a condition of shape "
                    f"{tuple(condition.shape)}; the condition must be [batch, {axes[0]}] with the same {axes[1]}"
                )
        return x, condition


def run_layers(
    call: Callable[..., Mapped], layers: Sequence[InvertibleLayer], x: tf.Tensor, condition: Condition
) -> Mapped:
    """Returns the output of `layers` in sequence, each run by `call(layer, x, condition)`, and their log-det's sum."""
    log_dets = []
    for layer in layers:
        x, log_det = call(layer, x, condition)
        log_dets.append(log_det)
    return x, tf.add_n(log_dets)


class InvertibleComposite(InvertibleLayer):
    """An invertible layer of inner layers, which its methods `run_forward` and `run_inverse` run by `run`, an argument.

    Training, inversion, initialisation and diagnostics pass different functions `run`.
    """

    def initialize(self, x: tf.Tensor, condition: Condition = None) -> tf.Tensor:
        return self.visit_layers(x, condition, lambda layer, *inputs: layer.initialize(*inputs))

    @full_float32()
    def visit_layers(self, x: tf.Tensor, condition: Condition, visit: Visit) -> tf.Tensor:
        def call(layer: InvertibleLayer, x: tf.Tensor, condition: Condition) -> Mapped:
            return layer.visit_layers(x, condition, visit), make_zero_log_det(x)

        return self.run_forward(functools.partial(run_layers, call), *self._prepare_inputs(x, condition))[0]


class InvertibleSequence(InvertibleComposite):
    """An invertible layer that runs a list of layers one after the other; each must keep the shape of its input.

    The constructors of subclasses set `self.sequence` to the list.
    """

    sequence: list[InvertibleLayer]

    def children(self, x_shape: Shape, condition_shape: Shape | None = None) -> Children:
        return [(layer, x_shape, condition_shape) for layer in self.sequence]

    def run_forward(self, run: Run, x: tf.Tensor, condition: Condition) -> Mapped:
        return run(self.sequence, x, condition)

    def run_inverse(self, run: Run, y: tf.Tensor, condition: Condition) -> Mapped:
        return run(self.sequence[::-1], y, condition)

    def inverse_and_gradients(
        self, y: tf.Tensor, condition: Condition, y_gradient: tf.Tensor, log_det_gradient: tf.Tensor
    ) -> Gradients:
        arguments = y, condition, y_gradient, log_det_gradient
        return invert_layers(lambda layer, *inputs: layer.inverse_and_gradients(*inputs), self.sequence, *arguments)
