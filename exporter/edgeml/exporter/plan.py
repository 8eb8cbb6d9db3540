"""What an export is asked to do: parsed and validated here and nowhere else.

plan = make_plan("kws.h5", to="onnx,tflite", precision="fp32,int8", calib="calib.npz", out="bundles")
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar, cast, get_args

import msgspec

from edgeml.exporter.free import FreeAxis, parse_free
from edgeml.exporter.metric import AUTO, CLASSES, VALUES, Metric, parse_metric
from edgeml.exporter.precision import AVAILABLE, PRECISIONS, RANGES, Ranges, left_out, refuse_uncalibrated
from edgeml.exporter.target.presets import Preset, describe, preset
from edgeml.wire.errors import PlanError
from edgeml.wire.manifest import Format, Name, Precision, Version

TaskChoice = Literal["auto", "classify", "regress"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
TASKS: Final[tuple[TaskChoice, ...]] = get_args(TaskChoice)
USUAL_FORMATS: Final = "onnx,tflite,coreml"
USUAL_PRECISIONS: Final = "fp32"
REPAIR_TIME_S: Final = 120.0  # per artifact; ranks some fifty layers of a small network
LABEL_LIMIT: Final = 100_000
NAME_LIMIT: Final = 64
Choice = TypeVar("Choice", Format, Precision)


class DeferGoal(msgspec.Struct, frozen=True):
    """What device and cloud together are to reach: `accuracy` at least, with `offload` of the answers from the cloud at most.

    `cloud` is the accuracy of the cloud on what it is asked; `None`: what the source answers.
    """

    accuracy: float
    offload: float
    cloud: float | None = None

    @property
    def text(self) -> str:
        cloud = "source" if self.cloud is None else f"{self.cloud:g}"
        return f"accuracy={self.accuracy:g},offload={self.offload:g},cloud={cloud}"


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """One export. `max_drop` is in percentage points, `None` accepts any; `out` is the folder for bundle and report.

    Not every format has every precision: `precisions_of` says which are made, `left_out` what is not, in words.
    `cache` lets slow steps be taken from earlier exports of the same source; the bundle's bytes are the same either way.
    """

    source: str
    formats: tuple[Format, ...]
    precisions: tuple[Precision, ...]
    name: str
    version: str
    out: Path
    calib: Path | None = None
    evaluation: Path | None = None
    max_drop: float | None = 1.0
    labels: tuple[str, ...] = ()
    task: TaskChoice = "auto"
    seed: int = 0
    trust: bool = False
    time_limit_s: float = 600.0
    memory_limit_gib: float = 8.0  # four times the largest converter measured, with TensorFlow and torch in one process
    cache: bool = True
    signature: str | None = None
    states: tuple[tuple[str, str], ...] = ()
    metric: Metric = AUTO
    repair_time_s: float = REPAIR_TIME_S
    target: Preset | None = None
    left_out: tuple[str, ...] = ()
    defer: DeferGoal | None = None
    ranges: Ranges = "auto"
    free: tuple[FreeAxis, ...] = ()

    def precisions_of(self, format_: Format) -> tuple[Precision, ...]:
        return tuple(precision for precision in self.precisions if precision in AVAILABLE[format_])

    @property
    def notes(self) -> tuple[str, ...]:
        """What the report says about the plan itself."""
        described = () if self.target is None else (describe(self.target, self.formats, self.precisions),)
        return (*described, *self.left_out)

    @property
    def bundle(self) -> Path:
        return self.out / f"{self.name}-{self.version}.edgeml"

    def options(self) -> dict[str, str]:
        """What the manifest says was asked for: no paths."""
        return {
            "formats": ",".join(self.formats),
            "precisions": ",".join(self.precisions),
            "max_drop": "any" if self.max_drop is None else f"{self.max_drop:g}",
            "task": self.task,
            **({"signature": self.signature} if self.signature is not None else {}),
            **({"states": ",".join(f"{given}={made}" for given, made in self.states)} if self.states else {}),
            "metric": self.metric.name,
            **({} if self.target is None else {"target": self.target.name}),
            **({} if self.defer is None else {"defer": self.defer.text}),
            **({} if self.ranges == "auto" else {"ranges": self.ranges}),
            **({"free": ",".join(axis.text for axis in self.free)} if self.free else {}),
        }


def make_plan(
    source: str,
    *,
    to: str | None = None,
    precision: str | None = None,
    target: str | None = None,
    out: Path | str = ".",
    calib: Path | str | None = None,
    evaluation: Path | str | None = None,
    max_drop: float | None = 1.0,
    name: str | None = None,
    version: str = "0.1.0",
    labels: Path | str | None = None,
    task: str = "auto",
    seed: int = 0,
    trust: bool = False,
    time_limit_s: float = 600.0,
    memory_limit_gib: float = 8.0,
    cache: bool = True,
    signature: str | None = None,
    states: Sequence[str] = (),
    free: Sequence[str] = (),
    metric: str = "auto",
    defer: str | None = None,
    ranges: str = "auto",
    repair_time_s: float = REPAIR_TIME_S,
) -> ExportPlan:
    """Check what was typed. What `to` and `precision` leave open, the device named by `target` decides.

    Raises:
        PlanError: an option that cannot be used, with what can.
    """
    device = None if target is None else preset(target)
    formats = device.formats if device and to is None else _choices("--to", USUAL_FORMATS if to is None else to, FORMATS)
    precisions = (
        device.precisions
        if device and precision is None
        else _choices("--precision", USUAL_PRECISIONS if precision is None else precision, PRECISIONS)
    )
    missing = left_out(formats, precisions)
    formats = tuple(format_ for format_ in formats if set(precisions) & set(AVAILABLE[format_]))
    if calib is None and not source.endswith(".tflite"):  # whose ranges may be in the file
        refuse_uncalibrated(formats, precisions)
    _check_numbers(max_drop, repair_time_s, seed, time_limit_s, memory_limit_gib)
    if task not in TASKS:
        raise PlanError("--task", expected=" or ".join(TASKS), got=repr(task))
    if ranges not in RANGES:
        raise PlanError("--ranges", expected=" or ".join(RANGES), got=repr(ranges))
    measure = parse_metric(metric)
    _check_task(measure, task)
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise PlanError(f"-o {str(folder)!r} is a file", hint="name a folder")
    return ExportPlan(
        source=source,
        formats=formats,
        precisions=precisions,
        name=_name(name, source),
        version=_fits("--version", version, Version, "a semantic version such as 1.2.0"),
        out=folder,
        calib=_file("--calib", calib),
        evaluation=_file("--eval", evaluation),
        max_drop=max_drop,
        labels=_labels(_file("--labels", labels)),
        task=task,
        seed=seed,
        trust=trust,
        time_limit_s=time_limit_s,
        memory_limit_gib=memory_limit_gib,
        cache=cache,
        signature=signature,
        states=_states(states),
        metric=measure,
        repair_time_s=repair_time_s,
        target=device,
        left_out=missing,
        defer=_goal(defer, evaluation),
        ranges=ranges,
        free=parse_free(free),
    )


def _check_numbers(
    max_drop: float | None, repair_time_s: float, seed: int, time_limit_s: float, memory_limit_gib: float
) -> None:
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise PlanError("--max-drop", expected="percentage points from 0 to 100", got=f"{max_drop:g}")
    _check_limits(time_limit_s, memory_limit_gib)
    if not repair_time_s >= 0:
        raise PlanError("--repair-time", expected="0 s (no search) or more", got=f"{repair_time_s:g}")
    if seed < 0:
        raise PlanError("--seed", expected="0 or more", got=str(seed))


def _check_task(measure: Metric, task: str) -> None:
    if (measure.kind in CLASSES and task == "regress") or (measure.kind in VALUES and task == "classify"):
        kind = "classification" if measure.kind in CLASSES else "regression"
        raise PlanError(f"--metric {measure.name} is of a {kind}, and --task is {task}", hint="leave out one of them")


def _states(told: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Read "h_in=h_out", several of them separated by commas or given one by one."""
    pairs = [part.partition("=") for text in told for part in text.split(",")]
    states = tuple((given.strip(), made.strip()) for given, _, made in pairs)
    if not all(given and made for given, made in states):
        raise PlanError("--state", expected="INPUT=OUTPUT", got=repr(",".join(told)))
    if len({given for given, _ in states}) < len(states) or len({made for _, made in states}) < len(states):
        raise PlanError("--state names a tensor twice", got=repr(",".join(told)))
    return states


def _goal(text: str | None, evaluation: Path | str | None) -> DeferGoal | None:
    """Read "accuracy=0.98,offload=0.10", with or without "cloud=0.99"."""
    if text is None:
        return None
    pairs = [(key.strip(), value.strip()) for key, _, value in (part.partition("=") for part in text.split(","))]
    given = dict(pairs)
    try:
        shares = {key: float(value) for key, value in pairs if (key, value) != ("cloud", "source")}
    except ValueError:
        shares = {}
    is_whole = given.keys() in ({"accuracy", "offload"}, {"accuracy", "offload", "cloud"}) and len(pairs) == len(given)
    if not is_whole or not shares.keys() >= {"accuracy", "offload"} or not all(0 <= share <= 1 for share in shares.values()):
        raise PlanError(
            "--defer", expected="accuracy=A,offload=B with shares from 0 to 1, and cloud=source or cloud=C if you like",
            got=repr(text), hint="for example --defer accuracy=0.98,offload=0.10",
        )  # fmt: skip
    if evaluation is None:
        raise PlanError("--defer needs samples that no range was measured on", hint="give --eval FILE.npz with labels in 'y'")
    return DeferGoal(**shares)


def _check_limits(time_s: float, memory_gib: float) -> None:
    if not time_s > 0:
        raise PlanError("--time-limit", expected="more than 0 s", got=f"{time_s:g}")
    if not memory_gib > 0:
        raise PlanError("--memory-limit", expected="more than 0 GiB", got=f"{memory_gib:g}")


def _choices(option: str, text: str, allowed: tuple[Choice, ...]) -> tuple[Choice, ...]:
    asked = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [word for word in asked if word not in allowed]
    if unknown or not asked:
        raise PlanError(option, expected=f"some of {','.join(allowed)}", got=repr(text))
    return tuple(word for word in allowed if word in asked)


def _name(name: str | None, source: str) -> str:
    if name is not None:
        return _fits("--name", name, Name, "lower-case letters, digits, '.', '_', '-'")
    stem, _, factory = source.rpartition(":")
    path = Path(stem if stem.endswith(".py") and factory else source)
    return _fits(
        f"a name made from {path.name!r}",
        re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._")[:NAME_LIMIT],
        Name,
        "letters or digits",
        "name the model with --name",
    )


def _fits(option: str, text: str, kind: object, expected: str, hint: str | None = None) -> str:
    try:
        return msgspec.convert(text, cast("type[str]", kind))
    except msgspec.ValidationError as error:
        raise PlanError(option, expected=expected, got=repr(text), hint=hint) from error


def _file(option: str, path: Path | str | None) -> Path | None:
    if path is None:
        return None
    if not Path(path).is_file():
        raise PlanError(f"{option}: no file {str(path)!r}")
    return Path(path)


def _labels(path: Path | None) -> tuple[str, ...]:
    """One label a line; the line number is the class."""
    if path is None:
        return ()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise PlanError(f"--labels {path.name!r} is not UTF-8 text", hint="write one label a line") from error
    while lines and not lines[-1]:
        lines.pop()
    if not lines or len(lines) > LABEL_LIMIT:
        raise PlanError(f"--labels {path.name!r}", expected=f"1 to {LABEL_LIMIT} lines", got=str(len(lines)))
    return tuple(lines)
