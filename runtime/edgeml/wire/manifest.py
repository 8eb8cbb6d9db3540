"""What a bundle promises: the manifest and its parts.

The canonical JSON of a `Manifest` is the bundle's `manifest.json`; its sha256 is the bundle's identity. Nothing in it varies
from run to run: times, latencies, host names and paths stand in the report beside the bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Final, Literal

import msgspec

from edgeml.wire.canonical import encode_json, sha256_hex
from edgeml.wire.errors import BundleError
from edgeml.wire.sketches import Histogram
from edgeml.wire.structs import learn

SCHEMA: Final = 1
MANIFEST_LIMIT_BYTES: Final = 8 * 1024 * 1024
BATCH: Final = "batch"  # the name of the axis that samples are stacked on
_LARGEST: Final = 1e6  # no share of elements strays so much more than independent ones

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Version = Annotated[str, msgspec.Meta(pattern=r"^(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})(-[0-9A-Za-z.-]{1,32})?$")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]

DType = Literal[
    "float32", "float16", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool"
]
Format = Literal["onnx", "tflite", "coreml"]
Precision = Literal[
    "fp32", "fp16", "int16", "palette8", "int8-weights", "int8-dynamic", "int8", "w8a8", "palette6", "int4-weights", "palette4"
]
"""The most precise first. What each means in each format stands in docs/export.md."""
Status = Literal["pass", "fail", "inconclusive"]
Where = Literal["verified", "emulated", "not run"]
"""`verified`: run by the engine a device uses. `emulated`: run by our interpreter. `not run`: said so."""


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class TensorSpec(_Record, frozen=True):
    """A named input or output as the application sees it.

    `shape` holds sizes, and names for axes whose size may vary; the axis named `batch` stacks samples. `layout` names the axes
    ("NHWC") where that is known.
    """

    name: str
    dtype: DType
    shape: tuple[int | str, ...]
    layout: str | None = None

    @property
    def has_batch(self) -> bool:
        return bool(self.shape) and self.shape[0] == BATCH


class Signature(_Record, frozen=True):
    """What the application feeds and reads.

    `states` (input -> output) are handed on: the output of one call is that input of the next, zeros begin.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: dict[str, str] = {}

    @property
    def digest(self) -> str:
        """Names this contract: two bundles with the same digest are fed and read the same way."""
        return sha256_hex(encode_json(self))


class Quantization(_Record, frozen=True):
    """real = scale * (stored - zero_point), per tensor."""

    scale: float
    zero_point: int


class Binding(_Record, frozen=True):
    """Which tensor of an artifact stands for which tensor of the signature; proved by value at export.

    `tensor` and `index` are the artifact's own name and position. `permute`, if given, lists for each axis of the artifact's
    tensor the signature's axis it comes from (as `numpy.transpose` takes it).
    """

    name: str
    tensor: str
    index: Count
    dtype: DType
    shape: tuple[int | str, ...]
    quantization: Quantization | None = None
    permute: tuple[int, ...] | None = None


class Blob(_Record, frozen=True):
    """Bytes of the bundle by content."""

    sha256: Sha256
    bytes: Count


class TensorBlob(_Record, frozen=True):
    """A tensor stored raw: little-endian, row-major, no header. `shape` has only sizes."""

    name: str
    dtype: DType
    shape: tuple[Count, ...]
    sha256: Sha256
    bytes: Count


class GoldenOutput(_Record, frozen=True):
    """What an artifact must give for the golden inputs.

    `tolerance` bounds |got - expected| per element, in the output's own units; it covers the kernels that may run the artifact.
    A bound that wide hides what is the same in every sample, so four more hold over all samples together, `None`: not checked.
    `rms` bounds the root of the mean (got - expected)^2, `bias` the absolute mean of got - expected, `channel` that mean for
    each element by itself, `gain` |sum of (got - expected) * expected| / sum of expected^2: how far the scale is off, a share.

    Where channels differ in size, as boxes joined with scores do, `units` are what got and expected are divided by before any
    of this, one for each index along `axis` of the expected tensor (0: samples); the largest is 1. Empty: nothing is divided.
    """

    expected: TensorBlob
    tolerance: float
    rms: float | None = None
    bias: float | None = None
    channel: float | None = None
    gain: float | None = None
    axis: int | None = None
    units: tuple[float, ...] = ()


class Golden(_Record, frozen=True):
    """The golden outputs of one artifact over the bundle's golden inputs.

    `least_agreement` is the share of samples whose top-1 class must equal the expected one; 0 for tasks without classes.
    """

    outputs: tuple[GoldenOutput, ...]
    least_agreement: Share = 0.0


class Parity(_Record, frozen=True):
    """Agreement of an artifact with its source over `n` samples.

    `max_abs` is the largest |difference| of any output, in units of the source's output range on the same samples; `limit` is
    what it was held to (`None` where the task metric decides). `rms` is the rms difference over the source's standard
    deviation. `kernel_max_abs` is the part of it that comes from this machine's kernels, not from the numbers in the file.
    """

    status: Status
    where: Where
    n: Count
    max_abs: float
    rms: float
    top1_agreement: float | None = None
    limit: float | None = None
    kernel_max_abs: float | None = None
    reason: str | None = None


class Task(_Record, frozen=True):
    """The task metric of an artifact and of its source, on the same `n` samples; accuracies are shares (0 to 1).

    `drop` = source_value - value in percentage points for accuracies and agreements, in the metric's units otherwise;
    `upper95` is the paired one-sided 95 % upper bound of it. `budget` is what the user accepts. `needed_n` is how many samples
    would decide an inconclusive verdict. `data` says which samples judged.
    """

    metric: str
    value: float
    source_value: float
    drop: float
    upper95: float
    n: Count
    status: Status
    budget: float | None = None
    needed_n: int | None = None
    data: Literal["eval", "calibration"] = "eval"


class Requirement(_Record, frozen=True):
    """What a board must have. `arch` empty means any."""

    engine: str
    least_version: str = ""
    arch: tuple[str, ...] = ()
    ram_bytes: Count = 0


class Promise(_Record, frozen=True):
    """What a deferral gives, by `n` samples, less what choosing it on them flatters; shares (0 to 1).

    Of 20 fields of n samples or more, of the same kind and independent, 19 show both shares in their intervals.
    """

    accuracy: Share  # of device and cloud together
    offload: Share  # of the answers, asked of the cloud
    alone: Share  # right answers of the device without a cloud
    ece: Share  # expected calibration error of the device's confidence
    n: Count  # samples
    cloud: Share | None = None  # accuracy on what it is asked; none: the source's own answers
    accuracy_within: tuple[Share, Share] | None = None  # lowest and highest; none: made before there were intervals
    offload_within: tuple[Share, Share] | None = None  # lowest and highest


class Deferral(_Record, frozen=True):
    """When this artifact asks the fall-back: in place of `PostProcessing`'s own temperature and threshold.

    Quantization changes how sure a model is.
    """

    temperature: float = 1.0  # as in `PostProcessing`
    defer_below: float | None = None  # a score below it asks the fall-back; none: never
    promise: Promise | None = None  # none: there were no labels to measure it with


class KeptFloat(_Record, frozen=True):
    """An operator that was left float, or at 16 bits, so that the artifact meets its budget.

    `error` is the mean over the outputs of rms difference / standard deviation, on calibration samples.
    """

    name: str  # the tensor it gives in the fp32 model
    operator: str  # its kind
    error: float  # of the outputs, when it alone is quantized
    extra_bytes: int  # what leaving it float costs
    bits: Literal[16, 32] = 32  # of its activations: 16 on microcontrollers, where nothing may be float


class Artifact(_Record, frozen=True):
    """One model file in one format and precision. `precision_found` is read from its tensors, not from the request.

    `confidence` and `classes` are counts as in `Reference`, of this artifact's own answers to the same samples: quantization
    changes how sure a model is, and that is no drift.
    """

    format: Format
    precision: Precision
    precision_found: str
    sha256: Sha256
    bytes: Count
    requires: Requirement
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    parity: Parity
    task: Task | None = None
    golden: Golden | None = None
    ops: dict[str, int] = {}  # operator -> how often
    notes: tuple[str, ...] = ()
    confidence: tuple[Count, ...] = ()
    classes: tuple[Count, ...] = ()
    deferral: Deferral | None = None  # when its answers are better asked of the cloud
    kept_float: tuple[KeptFloat, ...] = ()  # what was left float, or at 16 bits, so that it meets its budget


class SourceFile(_Record, frozen=True):
    kind: str  # keras-h5, keras, savedmodel, torch, torch-pt2, onnx, …
    sha256: Sha256
    bytes: Count


class DataSet(_Record, frozen=True):
    """Samples by content: `sha256` is over their canonical bytes, `overlap` counts samples that the other set has too."""

    count: Count
    sha256: Sha256
    overlap: Count = 0


class PostProcessing(_Record, frozen=True):
    """How an output becomes a label and a score.

    `activation` is applied to `output` divided by `temperature`; without one, probabilities are raised to 1 / `temperature` and
    made to sum to 1 again. A score below `defer_below` asks the fall-back. An artifact's `Deferral` goes before both.
    """

    output: str
    activation: Literal["none", "softmax", "sigmoid"] = "none"
    temperature: float = 1.0
    defer_below: float | None = None


class Null(_Record, frozen=True):
    """How far a histogram strays from the reference by chance alone: what calibrates one drift test for any number of calls.

    Over c calls that follow the reference, PSI is near (1/c + 1/n) * sum(w * x), with x independent chi-square variables of one
    degree of freedom and `weights` w, each taken `repeats` times: 1 for independent counts, more where the elements of one
    call go together. At few calls the true quantiles lie above that: `psi` and `js` say by which factor, at `at` calls.
    """

    n: Count  # samples behind the reference counts
    weights: tuple[float, ...]
    repeats: tuple[Count, ...]
    at: tuple[Count, ...] = ()
    psi: tuple[float, ...] = ()
    js: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.weights or len(self.weights) != len(self.repeats) or self.n < 1:
            raise ValueError("a calibration needs samples, and a repeat for every weight")
        if not all(0 < weight < _LARGEST for weight in self.weights) or not all(self.repeats):
            raise ValueError("weights and repeats are above 0")
        if not len(self.at) == len(self.psi) == len(self.js) or any(a >= b for a, b in pairwise(self.at)):
            raise ValueError("a calibration table needs growing numbers of calls, and two factors for each")


class Reference(_Record, frozen=True):
    """How the source behaved on `n` evaluation samples; devices and fleet count with the same edges.

    `strides` says that only every stride-th element of an input is counted, `ranges` what the smallest and largest element was.
    `nulls` calibrates drift tests by stream: "confidence", "classes", "input:<name>". `edges_id` names all edges; histograms of
    two versions with the same id add.
    """

    n: Count
    confidence: Histogram | None = None
    classes: tuple[int, ...] = ()
    inputs: dict[str, Histogram] = {}
    strides: dict[str, Annotated[int, msgspec.Meta(ge=1)]] = {}
    ranges: dict[str, tuple[float, float]] = {}
    nulls: dict[str, Null] = {}
    edges_id: Sha256 | None = None

    def __post_init__(self) -> None:
        if self.edges_id is not None and self.edges_id != edges_id(self.confidence, self.inputs, self.strides):
            raise ValueError("edges_id is not the id of these edges")


def edges_id(confidence: Histogram | None, inputs: Mapping[str, Histogram], strides: Mapping[str, int]) -> str:
    """Names the bins: the sha256 of all edges and strides."""
    edges = {name: histogram.edges for name, histogram in inputs.items()}
    return sha256_hex(encode_json([confidence.edges if confidence else None, edges, dict(strides)]))


class Manifest(_Record, frozen=True):
    schema: int
    name: Name
    version: Version
    signature: Signature
    source: SourceFile
    exporter: dict[str, str]  # library -> version
    options: dict[str, str]
    seed: int
    artifacts: tuple[Artifact, ...]
    golden_inputs: tuple[TensorBlob, ...] = ()
    task: Literal["classify", "regress"] = "classify"
    labels: tuple[str, ...] = ()
    post: PostProcessing | None = None
    calibration: DataSet | None = None
    evaluation: DataSet | None = None
    reference: Reference | None = None
    parent: Sha256 | None = None
    licence: str | None = None
    metadata: dict[str, str] = {}  # carried along from the source

    @property
    def digest(self) -> str:
        """The bundle's identity."""
        return sha256_hex(self.encode())

    def encode(self) -> bytes:
        return encode_json(self)

    def blobs(self) -> dict[str, int]:
        """Every blob the bundle holds: sha256 -> bytes.

        Raises:
            BundleError: one digest is promised with two sizes.
        """
        found: dict[str, int] = {}
        promised = [(a.sha256, a.bytes) for a in self.artifacts]
        promised += [(t.sha256, t.bytes) for t in self.golden_inputs]
        promised += [(o.expected.sha256, o.expected.bytes) for a in self.artifacts if a.golden for o in a.golden.outputs]
        for digest, size in promised:
            if found.setdefault(digest, size) != size:
                raise BundleError(f"blob {digest[:12]} is promised with two sizes", expected=str(found[digest]), got=str(size))
        return found


def decode_manifest(data: bytes) -> Manifest:
    """Read a manifest from outside.

    Raises:
        BundleError: too large, not JSON, not a manifest, of another schema, or not its own canonical JSON.
    """
    if len(data) > MANIFEST_LIMIT_BYTES:
        raise BundleError("manifest too large", expected=f"at most {MANIFEST_LIMIT_BYTES} bytes", got=str(len(data)))
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"manifest.json is not a manifest: {error}") from error
    if manifest.schema != SCHEMA:
        raise BundleError("manifest schema", expected=str(SCHEMA), got=str(manifest.schema), hint="update edgeml-toolkit")
    if manifest.encode() != data:
        raise BundleError("manifest.json is not canonical JSON")
    return manifest


learn(__name__)
