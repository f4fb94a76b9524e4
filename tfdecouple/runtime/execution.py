"""How a network is run: layers through shared traces, a batch in shards, and the memory of the backward pass.

**Traces.** A deep flow repeats a few kinds of step; each kind is traced once, and all layers of the kind share it.

**Shards.** A batch is computed in shards side by side, so that every core has work of its own; where nothing is
differentiated, a core takes a few images at a time through the wide maps inside of coupling nets.

**Memory.** `backward_memory` says how the activations reach the backward pass: stored, recomputed, or reconstructed by
inverting the layers. With "invert" the input and the output of a chain of flow layers are kept and nothing in between,
however many layers there are: the backward pass begins with the kept output, and each layer gives its input and its
gradients at once. Rounding adds up along a chain, and a layer that divides by small scales multiplies it. So what is
got back at the chain's input is compared with what was there, and the difference is told by the meter of
`backward_memory`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import keras
import tensorflow as tf
from tensorflow.python.eager import record

from tfdecouple.errors import UserError
from tfdecouple.runtime.numerics import in_xla, side_by_side, sizes
from tfdecouple.runtime.precision import current_net_precision, net_precision

BACKWARD_MODES = ("keep", "recompute", "invert")
# What of a map a core's own cache holds beside weights; measured with caches of 1 MiB.
_CACHE_BYTES = 2**20

# A method of a layer that takes x and z (or None), and perhaps more tensors.
Method = Callable[..., Any]
Transformation = Callable[..., tuple[tf.Tensor, ...]]
WideNet = Callable[..., tf.Tensor]
# A batch: one tensor, or the tensors of its shards.
Batch: TypeAlias = "tf.Tensor | list[tf.Tensor]"

_state = threading.local()


class Execution:
    """Runs a network of many layers, which has one of its own.

    What is traced is called and not copied into the graph of the caller: the time to prepare a graph for its first run
    grows with its operations.

    Attributes:
        jit_compile: whether XLA compiles the layers where `jit_compiled` says neither yes nor no.
    """

    def __init__(self) -> None:
        self.jit_compile = False
        self._shared: dict[tuple, Any] = {}
        self._networks: dict[tuple, tuple[list[keras.Variable], Any]] = {}

    def forward(self, flow: Any, x: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs an `InvertibleComposite` forward, with the backward pass that `backward_memory` asks for."""
        call = LayerCall(self, "forward_and_log_det")

        if backward_mode() is None or tf.executing_eagerly():

            def forward_by_layer(x: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
                return flow.run_forward(x, condition, call)

            return self.run(flow, forward_by_layer, x, condition)
        # Each as a tensor, read once for all shards.
        values = [(variable, tf.convert_to_tensor(variable)) for variable in flow.variables]

        def forward(x: tf.Tensor, condition: tf.Tensor | None, meter: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
            with in_place(values), backward_memory(backward_mode(), meter):
                return flow.run_forward(x, condition, call)

        return self.run(flow, forward, x, condition, meter_by_image(x))

    def inverse(self, flow: Any, y: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs an `InvertibleComposite` back."""
        call = LayerCall(self, "inverse_and_log_det")

        def inverse_by_layer(y: tf.Tensor, condition: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
            return flow.run_inverse(y, condition, call)

        return self.run(flow, inverse_by_layer, y, condition)

    def run(self, network: keras.layers.Layer, function: Method, x: tf.Tensor, *others: tf.Tensor | None) -> Any:
        """Runs a function of a network as one trace, where it is called eagerly, and by shards, where that pays.

        One trace reads all weights itself: to hand a thousand of them over took 45 ms a call.

        Args:
            network: whose weights it reads.
            function: from x and the others to tensors, image by image; the same for each name that it has.
            x: `[batch, ...]`.
            *others: z or whatever else there is of each image; None where there is none.
        """
        if x.shape[0] == 0:
            # A convolution has no answer to no images. One image shows what there is none of.
            one = [None if given is None else tf.zeros([1, *given.shape[1:]], given.dtype) for given in (x, *others)]
            return tf.nest.map_structure(lambda found: found[:0], self.run(network, function, *one))
        run = (lambda *given: run_in_shards(function, *given)) if divides(x) else function
        told = jit_compile()
        with jit_compiled(self.jit_compile if told is None else told):
            if not tf.executing_eagerly():
                return run(x, *others)
            key = (function.__name__, run is function, x.shape[1:], *_circumstances())
            if key not in self._networks:
                self._networks[key] = network.variables, _function(run)
            variables, traced = self._networks[key]
            # Within a `keras.StatelessScope` other values stand for the weights.
            is_own = all(isinstance(variable.value, tf.Variable) for variable in variables)
            return traced(x, *others) if is_own else run(x, *others)

    def run_whole(self, method: Method, x: tf.Tensor) -> Any:
        """Runs a method of a network that repeats no kind of layer: where XLA compiles, all of it as one program."""
        return self.run_layer(method, x, None) if jit_compile() else method(x, None)

    def run_layer(
        self,
        method: Method,
        x: tf.Tensor,
        condition: tf.Tensor | None,
        *rest: tf.Tensor,
        weights: list[tf.Tensor] | None = None,
    ) -> Any:
        """Runs a method of a layer through the trace that all layers of its kind share.

        A deep flow repeats a few kinds of step. Tracing each kind once, with the weights as arguments, makes the time
        to the first step independent of the number of steps. The layers keep their own weights: while a kind is
        traced, its first layer stands for all and reads the arguments in their place.

        Args:
            method: bound to the layer.
            x: its input.
            condition: z, or None.
            *rest: what else the method takes.
            weights: the values of the layer's variables, where they are read already.
        """
        layer = method.__self__  # type: ignore[attr-defined]
        # A backward pass within a trace is of the weights that are trained.
        trained = tuple(variable.trainable for variable in layer.variables)
        key = (method.__name__, _kind(layer), trained, x.shape[1:], *_circumstances())
        if key not in self._shared:
            run = functools.partial(_run_with, method, layer.variables)
            self._shared[key] = _function(run, compiled=bool(jit_compile()))
        # A tensor, not the variable: a tf.function treats each variable it is given as a new constant.
        if weights is None:
            weights = [tf.convert_to_tensor(variable) for variable in layer.variables]
        return self._shared[key](weights, x, condition, *rest)


class LayerCall:
    """Calls layers of a flow in one direction, through the traces that all layers of a kind share.

    Args:
        execution: of the flow.
        method: of each layer.
    """

    def __init__(self, execution: Execution, method: str):
        self._execution = execution
        self._method = method

    def __call__(
        self, layer: keras.layers.Layer, h: tf.Tensor, condition: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns what the layer makes of h."""
        return self._execution.run_layer(getattr(layer, self._method), h, condition)

    def inverts(self, h: tf.Tensor) -> bool:
        """Returns whether a chain of layers that h enters runs for a backward pass by inversion."""
        # Chains of vectors hold next to nothing.
        return backward_mode() == "invert" and len(h.shape) == 4 and self._method == "forward_and_log_det"

    def run_inverting(
        self, layers: Sequence[keras.layers.Layer], x: tf.Tensor, condition: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """As `run_inverting`, through the traces."""
        return run_inverting(self._execution, layers, x, condition)


@contextlib.contextmanager
def jit_compiled(on: bool) -> Iterator[None]:
    """Lets XLA compile the functions that layers of a kind share (`Execution.run_layer`), or not.

    Each kind is a program of its own, forward and gradient, so that compiling takes seconds for a kind however many
    layers there are; a whole step as one program would hold each layer anew. XLA compiles for shapes that are known: a
    batch of another size is compiled again.

    Args:
        on: whether what is called (or traced) inside is compiled.
    """
    before = jit_compile()
    _state.jit_compile = on
    try:
        yield
    finally:
        _state.jit_compile = before


def jit_compile() -> bool | None:
    """Returns what `jit_compiled` was told, or None where it is not in force."""
    return getattr(_state, "jit_compile", None)


def in_place(values: Iterable[tuple[keras.Variable, tf.Tensor]]) -> keras.StatelessScope:
    """Returns a scope in which values stand for variables, whatever their shapes."""
    scope = keras.StatelessScope()
    for pair in values:
        scope.add_update(pair)
    return scope


def _function(run: Callable[..., Any], compiled: bool = False) -> Any:
    return tf.function(
        # A partial, since TensorFlow counts the traces of functions with the same code together and warns of many.
        functools.partial(run),
        autograph=False,
        reduce_retracing=True,
        # None where nothing was asked for: False would keep XLA from compiling it within a function of the user's.
        jit_compile=compiled or None,
        experimental_attributes={"_noinline": True},
    )


def _run_with(
    method: Method,
    variables: list[keras.Variable],
    weights: list[tf.Tensor],
    *inputs: tf.Tensor | None,
) -> Any:
    """Runs a method of a layer with `weights` in the place of its variables."""
    with in_place(zip(variables, weights, strict=True)):
        return method(*inputs)


def _kind(layer: keras.layers.Layer) -> str:
    config = layer.get_config()
    config.pop("name")
    return f"{type(layer).__name__} {json.dumps(config, sort_keys=True)}"


def _circumstances() -> tuple[Any, ...]:
    """Returns what else a trace depends on."""
    return current_net_precision(), backward_mode(), bool(jit_compile()), in_xla()


# --- shards ---


def shard_count() -> int:
    """Returns in how many shards a batch of images is computed.

    They are as many as the process runs operations side by side for each thread of one operation, 1 where nobody has
    chosen these numbers (`tf.config.threading`). A GPU takes a batch whole.
    """
    threads, operations = (
        tf.config.threading.get_intra_op_parallelism_threads(),
        tf.config.threading.get_inter_op_parallelism_threads(),
    )
    if not threads or tf.config.get_visible_devices("GPU"):
        return 1
    return max(1, operations // threads)


def divides(x: tf.Tensor) -> bool:
    """Returns whether a batch is worth dividing: it holds images, one or more for each of several shards."""
    return len(x.shape) == 4 and x.shape[0] is not None and x.shape[0] >= shard_count() > 1


def run_in_shards(transformation: Transformation, x: tf.Tensor, *others: tf.Tensor | None) -> tuple[tf.Tensor, ...]:
    """Runs a transformation on shards of a batch.

    A deep chain of small operations leaves threads idle: each operation waits for the one before it and divides its
    work among them. Two chains, each on a thread of its own, have nobody to wait for.

    Args:
        transformation: from x `[batch, ...]` and what else there is of each image to tensors, image by image.
        x: the batch, with an image or more for each shard.
        *others: z, a map or other tensors `[batch, ...]`; None where there is none.
    """
    divided = [[None] * shard_count() if other is None else _shards(other) for other in others]
    done = [transformation(*shard) for shard in zip(_shards(x), *divided, strict=True)]
    return tuple(map(joined, zip(*done, strict=True)))


def divided(x: tf.Tensor) -> Batch:
    """Returns the shards of a batch where it is worth dividing, else the batch as it is."""
    return _shards(x) if divides(x) else x


def joined(batch: Batch | tuple[tf.Tensor, ...]) -> tf.Tensor:
    """Returns a batch as one tensor."""
    return side_by_side(batch, 0) if isinstance(batch, list | tuple) else batch


def image_by_image(function: Callable[..., tf.Tensor]) -> Callable[..., Any]:
    """Lets a function that treats each image by itself take batches in shards: it is run on each of them.

    >>> @image_by_image
    ... def scaled(x, factor):
    ...     return factor * x
    >>> [shard.numpy().tolist() for shard in scaled([tf.ones([1]), tf.ones([2])], 3.0)]
    [[3.0], [3.0, 3.0]]
    """

    @functools.wraps(function)
    def run(*arguments: Any) -> Batch:
        batches = [argument for argument in arguments if isinstance(argument, list)]
        if not batches:
            return function(*arguments)
        shards = range(len(batches[0]))
        return [function(*(given[n] if isinstance(given, list) else given for given in arguments)) for n in shards]

    return run


def total(function: Callable[[tf.Tensor], tf.Tensor], batch: Batch) -> tf.Tensor:
    """Returns the sum of what a function gives for the shards of a batch."""
    shards = batch if isinstance(batch, list) else [batch]
    return tf.add_n([function(shard) for shard in shards])


def _shards(x: tf.Tensor) -> list[tf.Tensor]:
    """Returns the shards of a batch, one after the other."""
    count, shards = sizes(x)[0], shard_count()
    edges = [count * number // shards for number in range(shards + 1)]
    return [x[start:stop] for start, stop in itertools.pairwise(edges)]


def run_in_turn(
    function: Callable[[tf.Tensor, tf.Tensor | None], tf.Tensor], x: tf.Tensor, condition: tf.Tensor | None, width: int
) -> tf.Tensor:
    """Runs a function on some images at a time, so few that a map of theirs stays in the cache of a core.

    Where an operation takes several cores, or a GPU, a batch is run whole.

    Args:
        function: from x `[batch, height, width, channels]` and a condition of each image (or None), image by image.
        x: the batch.
        condition: vectors or maps, `[batch, ...]`, or None.
        width: channels of the widest map inside the function, of the dtype of x.
    """
    count = _images_in_turn(x, width)
    if not count or x.shape[0] <= count:
        return function(x, condition)
    done: list[tf.Tensor] = []
    for start in range(0, x.shape[0], count):
        some = slice(start, start + count)
        with tf.control_dependencies(done[-1:]):
            images = x[some]
        done.append(function(images, None if condition is None else condition[some]))
    return tf.concat(done, 0)


def _images_in_turn(x: tf.Tensor, width: int) -> int:
    """Returns how many images have maps of so many channels in the cache of a core; 0 for all of them."""
    alone = tf.config.threading.get_intra_op_parallelism_threads() == 1 and not tf.config.get_visible_devices("GPU")
    if not alone or not x.shape.is_fully_defined():
        return 0
    return max(1, _CACHE_BYTES // (math.prod(x.shape[1:-1]) * width * x.dtype.size))


# --- the memory of the backward pass ---


@contextlib.contextmanager
def backward_memory(mode: str | None, meter: tf.Tensor | None = None) -> Iterator[None]:
    """Runs what is called (or traced) inside for a backward pass that has of the forward pass what `mode` says.

    "keep": all of it. "recompute": the maps inside a coupling net, many times as wide as those between layers, are
    computed again, which takes most of one more forward pass; values and gradients are the same to the bit. "invert":
    of a chain of flow layers its input and its output alone, and what lies between is got back from the output
    (`runtime/execution.py`); gradients are the same but for rounding.

    Outside of this context gradients are right, too; but there the nets run as is best where nobody asks for any.

    Args:
        mode: "keep", "recompute" or "invert"; None as outside.
        meter: a float32 scalar, for "invert". Its gradient, whatever is differentiated, is how far what was got back
            at the inputs of chains was from what had been there: of each image the largest difference relative to the
            largest number, added up over the chains of a flow; of all images the largest. A tape must watch it.

    Raises:
        UserError: for another mode.
    """
    if mode not in (None, *BACKWARD_MODES):
        raise UserError(f"the memory of the backward pass is {mode!r}; it must be one of {', '.join(BACKWARD_MODES)}")
    before = getattr(_state, "now", (None, None))
    _state.now = mode, meter
    try:
        yield
    finally:
        _state.now = before


def backward_mode() -> str | None:
    """Returns what was told to `backward_memory`, or None where it is not in force."""
    return getattr(_state, "now", (None, None))[0]


def backward_meter() -> tf.Tensor | None:
    """Returns the meter that was given to `backward_memory`, if any."""
    return getattr(_state, "now", (None, None))[1]


def meter_by_image(x: tf.Tensor) -> tf.Tensor | None:
    """Returns meters `[batch]` in the place of that of `backward_memory`, which is told the largest of theirs.

    Args:
        x: the batch.

    Returns:
        The meters; those in force where there is one of each image already; None where nothing is to be got back.
    """
    meter = backward_meter() if backward_mode() == "invert" else None
    if meter is None or meter.shape.rank:
        return meter

    @tf.custom_gradient
    def of_each(meter: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        return tf.fill(sizes(x)[:1], meter), tf.reduce_max

    return of_each(meter)


def wide(net: WideNet) -> WideNet:
    """Decorates a net whose maps are wide inside: `backward_memory` says what becomes of them.

    Where nothing is differentiated, some images at a time go through it, so few that their maps stay in a cache: where
    no backward pass is announced, and in the forward pass of "invert".

    Args:
        net: from narrow maps `[batch, height, width, channels]`, a condition of each image (a vector, a narrow map or
            None) and weights to narrow maps, image by image; the last axis of the first weight is the width.
    """

    @functools.wraps(net)
    def run(x: tf.Tensor, vectors: tf.Tensor | None, *weights: tf.Tensor) -> tf.Tensor:
        mode = backward_mode()
        if mode == "keep":
            return net(x, vectors, *weights)
        if mode == "recompute":
            return _computed_again(net, x, vectors, *weights)
        return run_in_turn(lambda x, vectors: net(x, vectors, *weights), x, vectors, width=weights[0].shape[-1])

    return run


def _computed_again(net: WideNet, x: tf.Tensor, vectors: tf.Tensor | None, *weights: tf.Tensor) -> tf.Tensor:
    # Not `tf.recompute_grad` nor `keras.remat`, which would look for variables: within a `keras.StatelessScope` tensors
    # stand for them.
    def apply(x: tf.Tensor, *rest: tf.Tensor) -> tf.Tensor:
        return net(x, None, *rest) if vectors is None else net(x, *rest)

    @tf.custom_gradient
    def run(*inputs: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            # Not before they are wanted.
            with tf.control_dependencies([upstream]):
                again = [tf.identity(value) for value in inputs]
            with tf.GradientTape() as tape:
                tape.watch(again)
                y = apply(*again)
            # The narrow result itself is not computed again: in a graph, what nobody asks for does not run.
            return tape.gradient(y, again, output_gradients=upstream)

        return apply(*inputs), gradient

    return run(x, *([] if vectors is None else [vectors]), *weights)


def run_inverting(
    execution: Execution, layers: Sequence[keras.layers.Layer], x: tf.Tensor, condition: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Runs a chain of invertible layers forward, for a backward pass by inversion.

    Args:
        execution: that of the network that the layers belong to.
        layers: `InvertibleLayer`s of unchanging shape, in the forward direction.
        x: the input of the first.
        condition: z, or None.

    Returns:
        The output of the last, and the sum of the log-determinants `[batch]`.
    """
    weights = [[tf.convert_to_tensor(variable) for variable in layer.variables] for layer in layers]
    meter, precision, compiled = meter_by_image(x), current_net_precision() or "float32", bool(jit_compile())

    @tf.custom_gradient
    def run(x: tf.Tensor, condition: tf.Tensor, meter: tf.Tensor, *flat: tf.Tensor) -> tuple[Any, Callable]:
        given = tf.nest.pack_sequence_as(weights, flat)
        z = condition if takes_condition else None
        # Or each layer would leave to the tape what its own gradient needs.
        with record.stop_recording():
            y, log_det = _forward(execution, layers, given, x, z)

        def gradient(of_y: tf.Tensor, of_log_det: tf.Tensor) -> list[Any]:
            with net_precision(precision), jit_compiled(compiled):
                back, of_x, of_z, of_weights = _backward(execution, layers, given, y, z, of_y, of_log_det)
            off = None if meter is None else difference_of(back, x)
            return [of_x, of_z, off, *tf.nest.flatten(of_weights)]

        return (y, log_det), gradient

    takes_condition = condition is not None
    none = tf.zeros([])
    return run(x, condition if takes_condition else none, none if meter is None else meter, *tf.nest.flatten(weights))


def _forward(
    execution: Execution, layers: Sequence[Any], weights: list[list[tf.Tensor]], x: tf.Tensor, z: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor]:
    y, changes = x, []
    for layer, given in zip(layers, weights, strict=True):
        y, change = execution.run_layer(layer.forward_and_log_det, y, z, weights=given)
        changes.append(change)
    return y, tf.add_n(changes)


def _backward(
    execution: Execution,
    layers: Sequence[Any],
    weights: list[list[tf.Tensor]],
    y: tf.Tensor,
    z: tf.Tensor | None,
    of_y: tf.Tensor,
    of_log_det: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None, list[list[tf.Tensor | None]]]:
    """Returns the input of the chain, and the gradients for it, for z and for the weights of each layer."""
    of_z = None if z is None else tf.zeros_like(z)
    of_weights: list[list[tf.Tensor | None]] = []
    for layer, given in zip(reversed(layers), reversed(weights), strict=True):
        # In a layer's backward pass its nets keep their maps, for as long as it takes.
        with backward_memory("keep"):
            y, of_y, change, found = execution.run_layer(
                layer.inverse_and_gradients, y, z, of_y, of_log_det, weights=given
            )
        if of_z is not None and change is not None:
            of_z += change
        trained = iter(found)
        of_weights.insert(0, [next(trained) if variable.trainable else None for variable in layer.variables])
    return y, of_y, of_z, of_weights


def difference_of(back: tf.Tensor, there: tf.Tensor) -> tf.Tensor:
    """Returns the largest difference of each image relative to its largest number, float32 `[batch]`."""
    axes = list(range(1, len(there.shape)))
    largest = tf.reduce_max(tf.abs(there), axes)
    off = tf.reduce_max(tf.abs(back - there), axes)
    return tf.cast(tf.math.divide_no_nan(off, largest), tf.float32)


# --- what graphs keep, and who rewrites them ---


@contextlib.contextmanager
def gradient_of(operation: str, name: str) -> Iterator[None]:
    """Gives the operations of a graph that are made inside another gradient, where a backward pass is announced.

    Args:
        operation: their type, as TensorFlow calls it.
        name: under which the gradient is registered (`tf.RegisterGradient`).
    """
    # Keras takes any such operation of what it saves for a `tf.custom_gradient`.
    if tf.executing_eagerly() or backward_mode() is None:
        yield
        return
    with tf.compat.v1.get_default_graph().gradient_override_map({operation: name}):
        yield


def join_channels(values: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns maps `[..., channels]`, of channels that are known, side by side.

    As `side_by_side`, which is for what a tape records: in what is traced and called it would keep the maps.
    """
    with gradient_of("ConcatV2", "TfdecoupleJoinChannels"):
        return tf.concat(values, -1)


@tf.RegisterGradient("TfdecoupleJoinChannels")
def _split(operation: tf.Operation, upstream: tf.Tensor) -> list[tf.Tensor | None]:
    *values, _ = operation.inputs
    return [*tf.split(upstream, [value.shape[-1] for value in values], -1), None]


_Class = TypeVar("_Class", bound=type)


def unconverted(owner: _Class) -> _Class:
    """Keeps AutoGraph from rewriting the public methods that a class defines, and all that they call.

    There is no Python control flow on tensors in them to be turned into graphs, and rewriting this project's code, call
    by call, was a large part of the time of a user's first step.
    """
    for name, member in list(vars(owner).items()):
        if inspect.isfunction(member) and not name.startswith("_"):
            setattr(owner, name, tf.autograph.experimental.do_not_convert(member))
    return owner
