"""What device and fleet say to each other, and the topics they say it on.

Desired state is level-triggered: a document with a revision that only grows and the whole truth about one device. Everything a
device sends carries its session and a sequence number, so that the fleet's store can take each message exactly once.
"""

from __future__ import annotations

import zlib
from typing import Final, Literal, TypeVar

import msgspec

from edgeml.wire.errors import LinkError
from edgeml.wire.manifest import Name, Sha256, Version
from edgeml.wire.sketches import Histogram, InputSketch, LatencySketch
from edgeml.wire.structs import learn

PROTOCOL: Final = "edgeml/v1"
MESSAGE_LIMIT_BYTES: Final = 64 * 1024  # a window is about 1 kB; anything near this is not ours

_ZLIB: Final = b"\x78"  # the first byte of a zlib stream with a 32 KiB window; JSON never begins so

Kind = Literal["desired", "report", "telemetry", "state"]

UpdateState = Literal[
    "offered",
    "downloading",
    "verified",
    "self_test",
    "shadow",
    "soaking",
    "confirmed",
    "failed",
    "rejected",
    "rolled_back",
]
"""Where a device stands with the highest revision it has seen. The last four are ends."""


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One model the fleet wants on a device.

    `version` `None` means: remove the model. `not_before` and `deadline` are Unix seconds. `bundle_sha256` and `bundle_bytes`
    repeat what the signed metadata says of `path`; the signed metadata wins.
    """

    model: Name
    version: Version | None = None
    manifest_sha256: Sha256 | None = None
    path: str | None = None  # TUF target path, models/<name>/<version>.edgeml
    rollout: str | None = None
    wave: int | None = None
    not_before: float = 0.0
    deadline: float | None = None


class Desired(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything the fleet wants of one device, as of revision `rev`."""

    rev: int
    targets: tuple[Target, ...]


class Slot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One installed version of a model on a device."""

    version: str
    manifest_sha256: Sha256
    active: bool


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A device says where it stands with one model of one revision.

    `code` is a stable word for `failed`, `rejected` and `rolled_back` (`self_test`, `signature`, `no_variant`, `disk_full`,
    `download`, `crash`, `boot_loop`, `health`, …); `detail` is for people.
    """

    device: str
    session: int
    seq: int
    at: float  # Unix seconds, the device's clock
    rev: int
    model: Name
    state: UpdateState
    version: str | None = None
    manifest_sha256: Sha256 | None = None
    rollout: str | None = None
    code: str | None = None
    detail: str | None = None
    retryable: bool = False
    downloaded_bytes: int = 0
    slots: tuple[Slot, ...] = ()


class Drift(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The newest comparison of one stream (an input, the confidence, the classes) with the reference, over `calls` calls.

    `alarm` stands until the stream is back near the reference; small values of `psi` without it are chance.
    """

    calls: int
    psi: float  # population stability index
    js: float  # Jensen-Shannon divergence, nats
    alarm: bool = False


class ShadowCounts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a version that ran beside the one that answers compared with it, on the same inputs; everything in it adds.

    The latency ratio is `shadow_s / served_s`. `skipped` were left out to keep to the share of the processor.
    """

    version: str
    manifest_sha256: Sha256
    runs: int
    agreed: int
    errors: int = 0
    skipped: int = 0
    served_s: float = 0.0
    shadow_s: float = 0.0


class Telemetry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One window of one model version on one device; everything in it adds."""

    device: str
    session: int
    seq: int
    model: Name
    version: str
    manifest_sha256: Sha256
    start: float  # Unix seconds
    seconds: float
    runs: int  # answers given, from either source
    errors: dict[str, int] = {}  # by code
    fallbacks: dict[str, int] = {}  # by reason
    latency: LatencySketch | None = None
    confidence: Histogram | None = None  # edges as frozen in the manifest
    classes: tuple[int, ...] = ()
    rss_bytes: int | None = None
    cpu_share: float | None = None  # of one core
    cpu_celsius: float | None = None
    throttled: int | None = None
    edges_id: Sha256 | None = None  # of the bins that `inputs` were counted with
    inputs: dict[str, InputSketch] = {}
    drift: dict[str, Drift] = {}  # by stream, where it was compared in this window or stands in alarm
    shadow: ShadowCounts | None = None


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Birth (`online`) and last will (`offline`); both carry the same session number, so a late will harms no newer session."""

    device: str
    session: int
    online: bool
    at: float = 0.0
    rev: int = 0
    runtime: str = ""
    arch: str = ""
    engines: dict[str, str] = {}  # engine -> version
    ram_bytes: int = 0
    tags: dict[str, str] = {}  # site, hardware, …: strata of a rollout
    models: dict[str, str] = {}  # model -> signature digest of what the application feeds
    slots: dict[str, tuple[Slot, ...]] = {}


Message = Report | Telemetry | State
M = TypeVar("M", Desired, Report, Telemetry, State)


def topic(tenant: str, device: str, kind: Kind) -> str:
    return f"{PROTOCOL}/{tenant}/d/{device}/{kind}"


def parse_topic(text: str) -> tuple[str, str, str] | None:
    """(tenant, device, kind) of a topic of ours, or `None`."""
    parts = text.split("/")
    if len(parts) != 6 or parts[:2] != ["edgeml", "v1"] or parts[3] != "d":
        return None
    return parts[2], parts[4], parts[5]


def encode(message: Desired | Report | Telemetry | State) -> bytes:
    return msgspec.json.encode(message)


def pack(message: Telemetry) -> bytes:
    """The same message in half the bytes: its JSON as a zlib stream (RFC 1950). `decode` reads both."""
    return zlib.compress(encode(message), 9)


def plain(payload: bytes) -> bytes:
    """The JSON of a payload, packed or not.

    Raises:
        LinkError: a damaged stream, or one that holds more than a message may be long.
    """
    if payload[:1] != _ZLIB:
        return payload
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(payload, MESSAGE_LIMIT_BYTES + 1)
    except zlib.error as error:
        raise LinkError(f"not a packed message: {error}") from error
    if not inflater.eof or inflater.unused_data:
        raise LinkError("a packed message that is cut, too long, or followed by something")
    return text


def decode(kind: type[M], payload: bytes) -> M:
    """Read a message from outside, packed or not.

    Raises:
        LinkError: too long, not JSON, or not of this kind; nothing of it should be used.
    """
    if len(payload) > MESSAGE_LIMIT_BYTES:
        raise LinkError("message too long", expected=f"at most {MESSAGE_LIMIT_BYTES} bytes", got=str(len(payload)))
    try:
        return msgspec.json.decode(plain(payload), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LinkError(f"not a {kind.__name__} message: {error}") from error


learn(__name__)
