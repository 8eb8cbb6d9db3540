"""Which artifact for this board, and why."""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edgeml.wire.contract import label
from edgeml.wire.errors import UnsupportedError
from edgeml.wire.manifest import Artifact, Format, Manifest, Precision

PLATFORM: Final[str] = sys.platform
_ENGINES: Final[dict[Format, tuple[tuple[str, str, str], ...]]] = {  # format -> (engine, module, distribution), best first
    "onnx": (("onnxruntime", "onnxruntime", "onnxruntime"),),
    "tflite": (("litert", "ai_edge_litert", "ai-edge-litert"), ("tflite-runtime", "tflite_runtime", "tflite-runtime")),
    "coreml": (("coreml", "coremltools", "coremltools"),),
}
_EXTRAS: Final[dict[Format, str]] = {"onnx": "onnx", "tflite": "tflite", "coreml": "coreml-runtime"}
_PREFERENCE: Final[tuple[Precision, ...]] = (
    "int8", "int8-dynamic",  # integer arithmetic, for which common processors have kernels
    "int8-weights", "palette8", "palette6", "int4-weights", "palette4",  # float arithmetic on small weights, the nearest first
    "fp16", "w8a8",  # w8a8 is faster than fp16 on the newest Neural Engines alone
    "fp32", "int16",  # 16-bit activations are for accelerators; on a CPU they run in slow kernels
)  # fmt: skip
_PRECISION_RANK: Final[dict[Precision, int]] = {precision: rank for rank, precision in enumerate(_PREFERENCE)}
_FORMAT_RANK: Final[dict[Format, int]] = {"tflite": 0, "onnx": 1, "coreml": 2}
LATENCY_STEP: Final = 1.1  # what two runs of one model differ by on a busy board
_VERDICT_RANK: Final = {"pass": 0, "inconclusive": 1, "fail": 2}


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine on this machine, found without importing it."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Board:
    """What a machine offers. `ram_bytes` is its total memory, 0 where unknown."""

    arch: str
    ram_bytes: int
    engines: Mapping[Format, Engine]


@dataclass(frozen=True, slots=True)
class Choice:
    """An artifact and whether it fits a board; `reason` is a sentence for people."""

    artifact: Artifact
    fits: bool
    reason: str


def this_board() -> Board:
    found = {format_: engine for format_ in _ENGINES if (engine := find_engine(format_)) is not None}
    return Board(platform.machine().lower(), total_ram_bytes(), found)


def find_engine(format_: Format) -> Engine | None:
    """The engine for a format, or `None` where it is not installed or cannot run here."""
    from importlib.metadata import PackageNotFoundError, version  # 20 ms that `import edgeml.runtime` should not pay

    if format_ == "coreml" and PLATFORM != "darwin":
        return None
    for name, module, distribution in _ENGINES[format_]:
        if importlib.util.find_spec(module) is not None:
            try:
                return Engine(name, version(distribution))
            except PackageNotFoundError:
                return Engine(name, "0")
    return None


def total_ram_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def rank(manifest: Manifest, board: Board, *, measured_s: Mapping[str, float] | None = None) -> list[Choice]:
    """Every artifact, the best for this board first.

    One that does not fit or failed its verdict comes last. Measured latencies (seconds by `onnx:int8`) decide where they differ
    by more than LATENCY_STEP; otherwise _PREFERENCE does (int8 before fp16 before fp32), then LiteRT before ONNX Runtime.
    """
    measured = measured_s or {}
    choices = [_judge(artifact, board, measured) for artifact in manifest.artifacts]

    def key(choice: Choice) -> tuple[bool, int, float, int, int]:
        artifact = choice.artifact
        known = _latency_rank(measured.get(label(artifact))) if measured else 0.0
        return (
            not choice.fits, _verdict(artifact), known, _PRECISION_RANK[artifact.precision], _FORMAT_RANK[artifact.format],
        )  # fmt: skip

    return sorted(choices, key=key)


def candidates(
    manifest: Manifest,
    board: Board,
    *,
    format: Format | None = None,  # noqa: A002 - the field's word
    precision: Precision | None = None,
) -> list[Artifact]:
    """The artifacts among which a measurement may decide: asked for, running here, and not failed at export."""
    return [
        choice.artifact for choice in rank(manifest, board)
        if choice.fits and _verdict(choice.artifact) < _VERDICT_RANK["fail"]
        and format in {None, choice.artifact.format} and precision in {None, choice.artifact.precision}
    ]  # fmt: skip


def choose(
    manifest: Manifest,
    board: Board,
    *,
    format: Format | None = None,  # noqa: A002 - the field's word
    precision: Precision | None = None,
    measured_s: Mapping[str, float] | None = None,
) -> Choice:
    """The best artifact for this board among those asked for.

    Raises:
        UnsupportedError: none fits; says why for each.
    """
    ranked = rank(manifest, board, measured_s=measured_s)
    asked = [c for c in ranked if format in {None, c.artifact.format} and precision in {None, c.artifact.precision}]
    if not asked:
        wanted = f"{format or 'any format'}:{precision or 'any precision'}"
        held = ", ".join(label(artifact) for artifact in manifest.artifacts)
        raise UnsupportedError(f"{manifest.name} {manifest.version} has no artifact {wanted}", expected=held, got=wanted)
    best = asked[0]
    pinned = format is not None and precision is not None
    if best.fits and (pinned or _verdict(best.artifact) < _VERDICT_RANK["fail"]):
        return best
    reasons = "; ".join(f"{label(c.artifact)}: {c.reason}" for c in asked)
    raise UnsupportedError(f"no artifact of {manifest.name} {manifest.version} can run here: {reasons}", hint=_way_out(asked))


def _judge(artifact: Artifact, board: Board, measured: Mapping[str, float]) -> Choice:
    obstacle = _obstacle(artifact, board)
    if obstacle is not None:
        return Choice(artifact, fits=False, reason=obstacle)
    engine = board.engines[artifact.format]
    verdict = "" if _verdict(artifact) == 0 else f", though its export verdict is {_verdict_word(artifact)}"
    seconds = measured.get(label(artifact))
    timed = "" if seconds is None else f", measured {seconds * 1e6:.0f} us here"
    return Choice(artifact, fits=True, reason=f"{artifact.precision} on {engine.name} {engine.version}{timed}{verdict}")


def _latency_rank(seconds: float | None) -> float:
    """Equal for latencies that a second measurement might swap; one that could not be measured comes last."""
    if seconds is None:
        return math.inf
    return math.floor(math.log(max(seconds, 1e-9), LATENCY_STEP))


def _obstacle(artifact: Artifact, board: Board) -> str | None:
    """Why an artifact cannot run on a board, or `None`."""
    engine = board.engines.get(artifact.format)
    needs = artifact.requires
    if engine is None:
        if artifact.format == "coreml" and PLATFORM != "darwin":
            return "Core ML runs on Apple systems only"
        return f"no engine for {artifact.format} is installed"
    if needs.engine == engine.name and _older(engine.version, needs.least_version):
        return f"needs {engine.name} {needs.least_version}, here is {engine.version}"
    if needs.arch and board.arch not in needs.arch:
        return f"is for {', '.join(needs.arch)}, this is {board.arch}"
    if board.ram_bytes and needs.ram_bytes > board.ram_bytes:
        return f"needs {needs.ram_bytes} bytes of memory, here are {board.ram_bytes}"
    return None


def _verdict_word(artifact: Artifact) -> str:
    """The task metric decides where there is one, and a parity that failed fails the artifact in any case."""
    words = [artifact.parity.status] + ([artifact.task.status] if artifact.task else [])
    return max(words, key=lambda word: _VERDICT_RANK[word])


def _verdict(artifact: Artifact) -> int:
    return _VERDICT_RANK[_verdict_word(artifact)]


def _way_out(choices: list[Choice]) -> str | None:
    formats = {choice.artifact.format for choice in choices if not choice.fits and choice.artifact.format != "coreml"}
    extras = sorted(_EXTRAS[format_] for format_ in formats if find_engine(format_) is None)
    return f"install edgeml-toolkit[{','.join(extras)}]" if extras else None


def _older(have: str, least: str) -> bool:
    return bool(least) and _numbers(have) < _numbers(least)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])
