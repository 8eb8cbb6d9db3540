"""A model as the layers in it: products of weights with windows of a tensor, the same for every format.

Formats differ in the order of axes only. Here weights are (output channels, input channels / groups, *kernel) and values are
(samples, channels, *space), as in ONNX; each format's `Network` turns its own order into this one and back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from edgeml.exporter.calibrate.feeds import Feeds
from edgeml.exporter.calibrate.observers import Range
from edgeml.exporter.calibrate.statistics import Pass
from edgeml.exporter.quantize.joins import Join
from edgeml.runtime.backends import Array, Backend

POSITIONS: Final = 64  # windows looked at per sample and layer, evenly spread: more say the same about the inputs' covariance
MOST_INPUTS: Final = 1024  # of one product: n^2 of memory and n^3 of time

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer by the names of its tensors.

    `activation` is the tensor after the layer's activation function: the one that is rounded. `scalable` says that the function
    commutes with a positive factor (none, ReLU). `inputs` counts a convolution's input channels per group, a fully connected
    layer's inputs. `kernel` is empty for a fully connected layer; `pads` are (before, after) of
    each spatial axis.
    """

    weights: str
    bias: str | None
    source: str
    output: str
    activation: str
    inputs: int
    scalable: bool = True
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[tuple[int, int], ...] = ()
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Link:
    """A layer whose activation only other layers read, be it through pooling: its channels can be scaled and scaled back."""

    producer: Layer
    consumers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean (groups, n) and covariance (groups, n, n) of the windows a layer sees; n = inputs of one product.

    The covariance is empty, (groups, 0, 0), for more than MOST_INPUTS inputs.
    """

    mean: Floats
    covariance: Floats


class Weighted(Protocol):
    """A float32 model of some format whose weights can be changed, and whose tensors can be watched."""

    layers: tuple[Layer, ...]

    def copy(self) -> Self: ...

    def read(self, layer: Layer) -> Floats: ...

    def write(self, layer: Layer, weights: Floats) -> None: ...

    def read_bias(self, layer: Layer) -> Floats:
        """One value per output channel; zeros where there is no bias."""
        ...

    def write_bias(self, layer: Layer, bias: Floats) -> None: ...

    def watch(self, feeds: Feeds) -> Pass: ...

    def arrange(self, layer: Layer, tensor: str, values: Array) -> Array:
        """Values of a tensor next to a layer in the common order."""
        ...


class Network(Weighted, Protocol):
    """One that can be written as int8 with ranges of activations."""

    links: tuple[Link, ...]
    joins: tuple[Join, ...]

    def keeping(self, kept: frozenset[str]) -> Self:
        """A copy in which the operators that give `kept` stay float, too."""
        ...

    def operators(self) -> tuple[tuple[str, str], ...]:
        """(kind, first output) of each operator that runs on integers; what only moves values is left out."""
        ...

    def quantized(
        self,
        ranges: Mapping[str, Range],
        scales: Mapping[str, Array],
        *,
        bits: Literal[8, 16] = 8,
        wide: frozenset[str] = frozenset(),
    ) -> bytes:
        """The static file: tensor name -> range, weights' name -> one scale per output channel; `bits` of activations.

        Operators that give `wide` have activations of 16 bits where others have 8.
        """
        ...

    def open(self, model: bytes) -> Backend: ...


def windows(layer: Layer, values: Array) -> Floats:
    """What the layer multiplies with its weights: (groups, products, inputs of a product) from (samples, channels, *space).

    At most POSITIONS products per call, evenly spread.
    """
    if not layer.kernel:
        rows = values.reshape(1, -1, values.shape[-1])
        return np.ascontiguousarray(rows[:, _spread(rows.shape[1])], dtype=np.float64)
    padded = _padded(values, layer.pads)
    spans = [(size - 1) * step + 1 for size, step in zip(layer.kernel, layer.dilations, strict=True)]
    space = tuple(range(2, values.ndim))
    window_view: Any = sliding_window_view  # its stubs know one axis only
    view = window_view(padded, spans, axis=space)
    steps = tuple(slice(None, None, step) for step in layer.strides)
    taps = tuple(slice(None, None, step) for step in layer.dilations)
    view = view[(slice(None), slice(None), *steps, *taps)]
    samples = len(values)
    places = view.shape[2 : 2 + len(space)]
    chosen = np.arange(samples * int(np.prod(places)))[_spread(samples * int(np.prod(places)))]
    sample, *place = np.unravel_index(chosen, (samples, *places))
    seen = np.moveaxis(view, 1, 1 + len(space))[
        (sample, *place)
    ]  # (products, channels, *kernel): none but the chosen is copied
    flat = seen.reshape(len(chosen), layer.groups, -1).transpose(1, 0, 2)
    return np.ascontiguousarray(flat, dtype=np.float64)


def _padded(values: Array, pads: tuple[tuple[int, int], ...]) -> Array:
    """With zeros around each spatial axis; `np.pad` takes longer than the rest of `windows`."""
    if not any(map(any, pads)):
        return values
    sizes = [before + size + after for size, (before, after) in zip(values.shape[2:], pads, strict=True)]
    padded = np.zeros((*values.shape[:2], *sizes), values.dtype)
    inner = tuple(slice(before, before + size) for size, (before, _) in zip(values.shape[2:], pads, strict=True))
    padded[(slice(None), slice(None), *inner)] = values
    return padded


def _spread(products: int) -> slice:
    return slice(None, None, -(-products // POSITIONS))


@dataclass(slots=True)
class _Sums:
    """Sums over windows; `products` are of each two inputs."""

    total: Floats | float = 0.0
    products: Floats | float = 0.0
    windows: int = 0

    def add(self, total: Floats | float, products: Floats | float, windows: int) -> None:
        self.total, self.products, self.windows = self.total + total, self.products + products, self.windows + windows


class Inputs:
    """What each layer's windows were, by parts of the samples: sample i belongs to part i modulo `parts`."""

    def __init__(self, network: Weighted, parts: int = 1) -> None:
        self._network, self._parts = network, parts
        self._sums = {layer.weights: [_Sums() for _ in range(parts)] for layer in network.layers}

    def see(self, number: int, tensors: Mapping[str, Array]) -> None:
        """All tensors of sample `number`."""
        for layer in self._network.layers:
            seen = windows(layer, self._network.arrange(layer, layer.source, tensors[layer.source]))
            self._sums[layer.weights][number % self._parts].add(seen.sum(axis=1), _products(seen), seen.shape[1])

    def moments(self, layer: Layer, left_out: int | None = None) -> Moments:
        """Over all parts but one."""
        sums = _Sums()
        for i, one in enumerate(self._sums[layer.weights]):
            if i != left_out:
                sums.add(one.total, one.products, one.windows)
        mean = np.asarray(sums.total) / sums.windows
        products = np.asarray(sums.products)
        if not products.size:
            return Moments(mean, products)
        return Moments(mean, products / sums.windows - mean[:, :, np.newaxis] * mean[:, np.newaxis, :])


def watch_inputs(network: Weighted, feeds: Feeds) -> Inputs:
    """What each layer's windows are over all samples."""
    inputs = Inputs(network)
    for number, tensors in enumerate(network.watch(feeds)()):
        inputs.see(number, tensors)
    return inputs


def _products(seen: Floats) -> Floats:
    """Sums of products of each two inputs; empty for too many inputs."""
    if seen.shape[2] > MOST_INPUTS:
        return np.zeros((len(seen), 0, 0))
    return seen.transpose(0, 2, 1) @ seen


def channel_ranges(network: Network, feeds: Feeds) -> dict[str, Floats]:
    """The largest magnitude of each channel of each link's activation, by its name."""
    found: dict[str, Floats] = {}
    for tensors in network.watch(feeds)():
        for link in network.links:
            name = link.producer.activation
            values = network.arrange(link.producer, name, tensors[name])
            axes = (0, *range(2, values.ndim)) if link.producer.kernel else tuple(range(values.ndim - 1))
            largest = np.abs(values).max(axis=axes).astype(np.float64)
            found[name] = np.maximum(found[name], largest) if name in found else largest
    return found


def _by_channel(layer: Layer, channels: int) -> bool:
    """Whether each of a layer's inputs is one channel: full or depthwise; not grouped, not over a flattened picture."""
    return layer.groups in {1, channels} and layer.groups * layer.inputs == channels


@dataclass(frozen=True, slots=True)
class Step:
    """One operator of a graph as links see it. `passes` says that it treats channels alike and keeps their order (pooling)."""

    inputs: tuple[str, ...]
    output: str
    layer: Layer | None = None
    passes: bool = False


def links(steps: Sequence[Step], outputs: Iterable[str], channels: Mapping[str, int]) -> tuple[Link, ...]:
    """Links between the layers of a graph; `channels` says how many each tensor has."""
    readers: dict[str, list[Step]] = {}
    for step in steps:
        for name in step.inputs:
            readers.setdefault(name, []).append(step)
    ends = set(outputs)
    found = []
    for step in steps:
        if step.layer is None or not step.layer.scalable:
            continue
        tensor = step.layer.activation
        while len(readers.get(tensor, ())) == 1 and readers[tensor][0].passes and tensor not in ends:
            after = readers[tensor][0].output
            if channels.get(after) != channels.get(tensor):
                break
            tensor = after
        consumers = [reader.layer for reader in readers.get(tensor, [])]
        through = tensor == step.layer.activation or len(readers.get(step.layer.activation, ())) == 1
        if tensor in ends or tensor not in channels or not consumers or not through:
            continue
        fitting = tuple(layer for layer in consumers if layer is not None and layer.source == tensor)
        if len(fitting) == len(consumers) and all(_by_channel(layer, channels[tensor]) for layer in fitting):
            found.append(Link(step.layer, fitting))
    return tuple(found)
