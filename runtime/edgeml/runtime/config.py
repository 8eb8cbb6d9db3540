"""`agent.toml`: what the device's owner decides, parsed once into frozen structs.

    [device]
    id = "gate-7"
    data = "/var/lib/edgeml"
    [device.tags]
    site = "north"
    [service]
    url = "https://fleet.example"
    token = "…"
    root = "root.json"
    [broker]                      # leave it out, and the device polls the service
    url = "mqtts://fleet.example:8883"
    [models.kws]
    bundle = "kws-1.0.0.edgeml"   # what runs before the first update

Paths are relative to the file. Unknown keys are refused with the nearest known one: a misspelt limit must not be no limit.
"""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from edgeml.runtime.backends import PROVIDER_ORDER, EngineOptions, Provider
from edgeml.runtime.fallback import Mode, Policy
from edgeml.runtime.setup import Setup
from edgeml.runtime.window import parse_windows
from edgeml.wire.errors import ConfigError
from edgeml.wire.manifest import Format, Name, Precision
from edgeml.wire.structs import learn

Seconds = Annotated[float, msgspec.Meta(gt=0.0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
DeviceId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Protocol = Literal["auto", "5", "3.1.1"]

BROKER_SCHEMES: Final = {"mqtt": 1883, "mqtts": 8883}


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class DeviceTable(_Table, frozen=True):
    """Who the device is, and the folder that is its alone."""

    id: DeviceId
    data: str
    tenant: DeviceId = "default"
    tags: dict[str, str] = {}


class ServiceTable(_Table, frozen=True):
    """The fleet service. `root` is the TUF root that the device trusts from the start."""

    url: str
    token: str
    root: str
    poll_s: Seconds = 900.0  # how often to ask when there is no broker
    poll_after_s: Seconds = 60.0  # without the broker for so long, ask the service
    timeout_s: Seconds = 10.0
    ca: str | None = None  # PEM file of who signed the service's certificate; None: the system's
    cert: str | None = None  # PEM file by which the device is known (mTLS), beside its token
    key: str | None = None  # PEM file of the certificate's key, without a password


class BrokerTable(_Table, frozen=True):
    url: str
    protocol: Protocol = "auto"
    keepalive_s: Count = 60
    connack_s: Seconds = 3.0  # some brokers never answer a CONNECT of a protocol they lack
    backoff_s: Seconds = 1.0
    backoff_cap_s: Seconds = 120.0
    ca: str | None = None  # PEM file of who signed the broker's certificate; None: the system's
    cert: str | None = None  # PEM file by which the device is known (mTLS), beside its token
    key: str | None = None  # PEM file of the certificate's key, without a password


class UpdateTable(_Table, frozen=True):
    """How carefully to change versions."""

    soak_s: Annotated[float, msgspec.Meta(ge=0.0)] = 300.0
    health_s: Seconds = 30.0  # how often health is looked at while soaking
    most_error_share: Share = 0.2
    least_runs: Annotated[int, msgspec.Meta(ge=0)] = 20  # fewer runs say nothing about the error share
    backoff_s: Seconds = 30.0
    backoff_cap_s: Seconds = 3600.0
    stall_s: Seconds = 30.0  # a download without progress is given up after this
    bytes_per_s: Annotated[int, msgspec.Meta(ge=1024)] | None = None  # what a download may take of the line
    windows: tuple[str, ...] = ()  # when versions may change, in the device's time: "02:00-05:00", "sat,sun 22:00-06:00"
    download_outside: bool = False  # bytes may come outside the windows too
    postpone_s: Seconds = 60.0  # how often an application that postpones is asked again
    most_postpone_s: Seconds = 7 * 86400.0  # longer than this it cannot keep an update waiting
    shadow_s: Annotated[float, msgspec.Meta(ge=0.0)] = 0.0  # a new version runs beside the old one first, so long at most
    shadow_calls: Count = 200  # compared calls that are enough to decide sooner
    shadow_cpu_share: Share = 0.25  # of one core, for the version that runs beside
    least_agreement: Share = 0.9  # of its answers with the old version's; fewer, and the new one is refused
    most_latency_ratio: Annotated[float, msgspec.Meta(gt=0.0)] = 2.0  # of the time a call takes; more, and it is refused


class TelemetryTable(_Table, frozen=True):
    window_s: Seconds = 60.0
    spool_bytes: Annotated[int, msgspec.Meta(ge=256 * 1024)] = 16 * 1024 * 1024
    drift: bool = True  # count the inputs, and compare them and the answers with the bundle's reference


class ChallengerTable(_Table, frozen=True):
    """A second version beside the one that answers: `shadow` only compares, `ab` answers its share of the requests."""

    bundle: str
    mode: Literal["shadow", "ab"] = "shadow"
    share: Share = 0.1  # of the calls
    cpu_share: Share = 0.25  # of one core, for `shadow`
    salt: str = ""  # for `ab`: another one deals the requests anew


class ModelTable(_Table, frozen=True):
    """A model the application uses. `bundle` is what it runs before the fleet says anything."""

    bundle: str | None = None
    format: Format | None = None
    precision: Precision | None = None
    threads: Count = 1
    cpus: tuple[Annotated[int, msgspec.Meta(ge=0)], ...] = ()  # cores for the engine's threads; empty: all
    providers: tuple[Provider, ...] = PROVIDER_ORDER  # for ONNX Runtime
    delegates: tuple[str, ...] = ()  # libraries for LiteRT, by path
    isolated: bool = False  # the engine in a process of its own
    deadline_ms: Seconds | None = None  # for each call on the device; None: no limit
    max_batch: Count = 1  # samples of calls that come at the same time and are run as one
    max_wait_ms: Annotated[float, msgspec.Meta(ge=0.0)] = 0.0  # for others to come, beyond the time the engine is busy
    measure: bool = True  # time each artifact that can run here, once, and take the fastest
    trial_s: Seconds = 120.0  # for the self-test of a new version
    challenger: ChallengerTable | None = None

    def setup(self, data: Path) -> Setup:
        """`data` is the device's folder, where measured latencies are kept."""
        deadline_s = None if self.deadline_ms is None else self.deadline_ms / 1000
        return Setup(
            self.format,
            self.precision,
            EngineOptions(self.threads, cpus=self.cpus, providers=self.providers, delegates=self.delegates),
            isolated=self.isolated,
            deadline_s=deadline_s,
            max_batch=self.max_batch,
            max_wait_s=self.max_wait_ms / 1000,
            latency_file=str(data / "latency.json") if self.measure else None,
        )


class FallbackTable(_Table, frozen=True):
    """The cloud endpoint that is asked when the device is not sure, and when it may be asked."""

    url: str
    mode: Mode = "prefer-device"
    deadline_ms: Seconds = 250.0  # for the whole call, device and cloud together
    least_score: Share | None = None  # None: what the manifest says
    on_drift: bool = False  # ask about every input while the inputs or the confidence are in alarm
    daily_bytes: Count | None = None
    daily_cost: Annotated[float, msgspec.Meta(ge=0.0)] | None = None
    cost_per_call: Annotated[float, msgspec.Meta(ge=0.0)] = 0.0  # in the unit of `daily_cost`
    cost_per_megabyte: Annotated[float, msgspec.Meta(ge=0.0)] = 0.0  # of requests and responses
    hedge_share: Share = 0.05  # of the calls may be asked once more when they take longer than 19 of 20 did; 0: none
    redact: str | None = None
    token: str | None = None

    def policy(self) -> Policy:
        return Policy(
            mode=self.mode, deadline_s=self.deadline_ms / 1000, least_score=self.least_score, daily_bytes=self.daily_bytes,
            daily_cost=self.daily_cost, cost_per_call=self.cost_per_call, cost_per_megabyte=self.cost_per_megabyte,
            hedge_share=self.hedge_share,
        )  # fmt: skip


class LogTable(_Table, frozen=True):
    """A log of answers for machines: never inputs or outputs. Errors are logged whatever the share."""

    to: str = "stderr"  # or a file
    share: Share = 0.01  # of the answers
    lines_per_s: Seconds = 10.0
    bytes: Count = 4 * 1024 * 1024  # of the file, and of the one before it


class SamplesTable(_Table, frozen=True):
    """Opt-in: inputs of calls whose score is low are sent to the fleet. Without this table no input leaves the device."""

    below: Share = 0.5  # the score under which an input is a sample
    share: Share = 1.0  # of those
    redact: str | None = None  # `module:function` beside the file: gets the inputs, gives what may leave or None
    daily_bytes: Count = 1024 * 1024  # sent in a day (UTC), at most
    spool_bytes: Count = 4 * 1024 * 1024  # waiting on disk, at most; the oldest goes first


class HomeAssistantTable(_Table, frozen=True):
    """Each model shows itself in a Home Assistant, by MQTT discovery. `enabled = false` takes back what was shown."""

    enabled: bool = True
    url: str | None = None  # `mqtt://host` of the home's broker; None: [broker]'s, with the device's own name and token
    user: str | None = None
    password: str | None = None
    ca: str | None = None  # PEM file, for `mqtts://`; None: the system's
    prefix: str = "homeassistant"  # of the topics that Home Assistant looks at
    protocol: Literal["3.1.1", "5"] = "3.1.1"
    every_s: Seconds = 5.0  # news of a model at most so often


class AgentConfig(_Table, frozen=True):
    device: DeviceTable
    service: ServiceTable | None = None
    broker: BrokerTable | None = None
    update: UpdateTable = UpdateTable()
    telemetry: TelemetryTable = TelemetryTable()
    models: dict[Name, ModelTable] = {}
    fallback: FallbackTable | None = None
    log: LogTable | None = None
    samples: SamplesTable | None = None
    home_assistant: HomeAssistantTable | None = None
    folder: str = "."  # where relative paths start; set by `load_config`

    def path(self, text: str) -> Path:
        return Path(self.folder) / text

    def optional_path(self, text: str | None) -> Path | None:
        return None if text is None else self.path(text)

    @property
    def data(self) -> Path:
        return self.path(self.device.data)


def load_config(path: Path | str) -> AgentConfig:
    """Read and check an `agent.toml`.

    Raises:
        ConfigError: unreadable, not TOML, an unknown key, or a value that cannot be.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}", hint="give the path of an agent.toml") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} is not TOML: {error}") from error
    table.pop("folder", None)
    _refuse_unknown(table, AgentConfig, "", str(path))
    try:
        config = msgspec.convert({**table, "folder": str(path.parent)}, AgentConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{str(path)!r}: {error}") from error
    _check_addresses(config, str(path))
    parse_windows(config.update.windows)
    return config


def broker_address(url: str) -> tuple[str, int, bool]:
    """(host, port, encrypted) of `mqtt://host[:port]` or `mqtts://…`.

    Raises:
        ConfigError: another scheme, or no host.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"broker url {url!r}: {error}") from error
    if parts.scheme not in BROKER_SCHEMES or not host:
        raise ConfigError("broker url", expected="mqtt://host:port or mqtts://host:port", got=repr(url))
    return host, port or BROKER_SCHEMES[parts.scheme], parts.scheme == "mqtts"


def _check_addresses(config: AgentConfig, where: str) -> None:
    if config.broker is not None:
        broker_address(config.broker.url)
        if config.service is None:
            raise ConfigError(f"{where!r} has [broker] and no [service]", hint="updates come from the service; add its url")
    home = config.home_assistant
    if home is not None:
        if home.url is None and config.broker is None:
            raise ConfigError(
                f"{where!r} has [home_assistant] and no broker", hint='give it one: url = "mqtt://homeassistant.local"'
            )
        if home.url is not None:
            broker_address(home.url)
    if config.samples is not None and config.service is None:
        raise ConfigError(f"{where!r} has [samples] and no [service]", hint="samples are sent to the service; add its url")
    for table in (config.service, config.fallback):
        if table is not None and urlsplit(table.url).scheme not in {"http", "https"}:
            raise ConfigError("url", expected="http:// or https://", got=repr(table.url))


def _refuse_unknown(value: Any, kind: Any, path: str, where: str) -> None:
    struct = _struct_in(kind)
    if struct is not None and isinstance(value, dict):
        hints = typing.get_type_hints(struct)
        for key, inner in value.items():
            if key not in hints:
                raise _unknown(f"{path}{key}", key, [name for name in hints if name != "folder"], where)
            _refuse_unknown(inner, hints[key], f"{path}{key}.", where)
    elif typing.get_origin(kind) is dict and isinstance(value, dict):
        for key, inner in value.items():
            _refuse_unknown(inner, typing.get_args(kind)[1], f"{path}{key}.", where)


def _struct_in(kind: Any) -> type[msgspec.Struct] | None:
    choices = typing.get_args(kind) if typing.get_origin(kind) in {types.UnionType, typing.Union} else (kind,)
    return next((c for c in choices if isinstance(c, type) and issubclass(c, msgspec.Struct)), None)


def _unknown(path: str, key: str, known: list[str], where: str) -> ConfigError:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
    return ConfigError(f"{where!r} has an unknown key {path!r}", hint=hint)


learn(__name__)
