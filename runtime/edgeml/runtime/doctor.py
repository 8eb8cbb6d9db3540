"""`edgeml doctor`: what this machine can run, and what is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

import msgspec
import typer

from edgeml.runtime.arguments import Json
from edgeml.runtime.backends import Provider
from edgeml.runtime.board import ROOT, Board, read_board
from edgeml.runtime.choose import find_engine, this_board, total_ram_bytes
from edgeml.wire.manifest import Format
from edgeml.wire.structs import learn

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

EXTRAS: Final[dict[str, tuple[str, ...]]] = {  # extra -> modules that it brings
    "onnx": ("onnxruntime",),
    "tflite": ("ai_edge_litert",),
    "export": ("torch", "onnx", "onnxruntime", "litert_torch", "ai_edge_quantizer", "coremltools"),
    "keras": ("tensorflow", "keras", "tf_keras", "tf2onnx"),
    "sklearn": ("sklearn", "skl2onnx"),
    "fleet": ("fastapi", "uvicorn", "sqlalchemy", "cryptography"),
    "serve": ("fastapi", "uvicorn", "prometheus_client"),
}
_FORMATS: Final[tuple[Format, ...]] = ("onnx", "tflite", "coreml")
_ACCELERATORS: Final[tuple[Provider, ...]] = ("tensorrt", "cuda")  # of ONNX Runtime, each a library beside the engine
_WARM_CELSIUS: Final = 80.0  # where a Raspberry Pi starts to slow down
_BROKER_PLACES: Final = "/usr/local/sbin:/usr/sbin:/sbin"  # daemons are often not on a user's PATH

Status = Literal["ok", "missing", "note"]


class Finding(msgspec.Struct, frozen=True):
    """One line: what was looked at, how it stands, and what to do where something is missing."""

    what: str
    status: Status
    detail: str


@app.command()
def doctor(json: Json = False) -> None:
    """Say what this machine can run, and what is missing."""
    findings = list(examine())
    if json:
        record = {"findings": findings, "ready": is_ready(findings)}
        sys.stdout.write(msgspec.json.encode(record).decode() + "\n")
        return
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        print(f"{finding.what:<{width}}  {finding.status:<7}  {finding.detail}")
    print(
        "ready to run bundles"
        if is_ready(findings)
        else "no engine here: install edgeml-toolkit[onnx] or edgeml-toolkit[tflite]"
    )


def is_ready(findings: list[Finding]) -> bool:
    """Whether at least one engine is here."""
    return any(finding.what.startswith("engine ") and finding.status == "ok" for finding in findings)


def examine(root: Path = ROOT) -> Iterator[Finding]:
    """Look at this machine; imports no engine. `root` is where the kernel's and the maker's files are."""
    yield Finding("edgeml", "ok", _package("edgeml-toolkit"))
    yield Finding(
        "python", "ok", f"{platform.python_version()} ({platform.python_implementation()}), numpy {_package('numpy')}"
    )
    board = read_board(root)
    size = f"{this_board().arch}, {_cores()} cores, {total_ram_bytes() / 2**20:.0f} MiB"
    yield Finding("board", "ok", f"{_board_name(board)}, {size}")
    yield from _health(board)
    yield from _engines()
    yield from _accelerators(board)
    yield from _int8()
    yield from _broker()
    yield from _extras()


def _engines() -> Iterator[Finding]:
    for format_ in _FORMATS:
        engine = find_engine(format_)
        if engine is not None:
            yield Finding(f"engine {format_}", "ok", f"{engine.name} {engine.version}")
        elif format_ == "coreml":
            yield Finding(
                f"engine {format_}", "note", "Core ML runs on Apple systems only; exports are proved by an interpreter"
            )
        else:
            yield Finding(f"engine {format_}", "missing", f"install edgeml-toolkit[{format_}]")


def _int8() -> Iterator[Finding]:
    from edgeml.runtime.backends.onnx import saturates_int8

    if saturates_int8():
        detail = "x86 without VNNI: ONNX int8 runs with kernels that do not saturate, 11-50 % slower"
        yield Finding("int8", "note", detail)
    else:
        yield Finding("int8", "ok", "this CPU's int8 kernels do not saturate")


def _broker() -> Iterator[Finding]:
    path = shutil.which("mosquitto") or shutil.which("mosquitto", path=_BROKER_PLACES)
    if path:
        yield Finding("mosquitto", "ok", path)
    else:
        detail = "`edgeml fleet serve` would fall back to a broker for trying out; on Debian: apt install mosquitto"
        yield Finding("mosquitto", "missing", detail)


def _extras() -> Iterator[Finding]:
    for extra, modules in EXTRAS.items():
        lacking = [module for module in modules if importlib.util.find_spec(module) is None]
        if lacking:
            yield Finding(f"[{extra}]", "missing", f"{', '.join(lacking)}: install edgeml-toolkit[{extra}]")
        else:
            yield Finding(f"[{extra}]", "ok", ", ".join(modules))


def _health(board: Board) -> Iterator[Finding]:
    """Heat, power and the maker's tools; nothing on a machine that says nothing about them."""
    if (hottest := board.hottest) is not None:
        zones = ", ".join(f"{zone.name} {zone.celsius:.0f} °C" for zone in board.zones)
        advice = "; hot enough to be slowed down: add a heat sink or a fan" if hottest.celsius >= _WARM_CELSIUS else ""
        yield Finding("temperature", "note" if advice else "ok", zones + advice)
    if board.throttled is not None:
        yield _throttling(board)
    if board.is_jetson:
        yield Finding("power mode", "ok" if board.power_mode else "note", _power_words(board))
    if board.tools:
        yield Finding("board tools", "ok", ", ".join(board.tools))


def _throttling(board: Board) -> Finding:
    weak = "under-voltage" in (*(board.throttled or ()), *board.throttled_before)
    advice = "; use a stronger power supply" if weak else "; cool the board" if board.throttled_before else ""
    if board.throttled:
        return Finding("throttling", "note", f"now {', '.join(board.throttled)}{advice}")
    if board.throttled_before:
        return Finding("throttling", "note", f"since the start {', '.join(board.throttled_before)}{advice}")
    return Finding("throttling", "ok", "none since the start")


def _power_words(board: Board) -> str:
    if board.power_mode is None:
        return "unknown; `sudo nvpmodel -q` says it"
    return f"nvpmodel {board.power_mode}; `sudo nvpmodel -m 0` is the fastest on most boards"


def _accelerators(board: Board) -> Iterator[Finding]:
    """Which providers this ONNX Runtime was built with, by its libraries; only a Jetson misses those that are not there."""
    from edgeml.runtime.backends.onnx import present_providers

    present = present_providers(_ACCELERATORS)
    for name in _ACCELERATORS:
        if name in present:
            yield Finding(f"provider {name}", "ok", f"this ONNX Runtime has libonnxruntime_providers_{name}.so")
        elif board.is_jetson:
            yield Finding(
                f"provider {name}", "missing", "this ONNX Runtime runs on the CPU; install NVIDIA's build for JetPack"
            )
    if board.is_jetson:
        detail = board.tensorrt or "no libnvinfer; on Jetson Linux: apt install nvidia-tensorrt"
        yield Finding("tensorrt", "ok" if board.tensorrt else "missing", detail)


def _board_name(board: Board) -> str:
    """What the device tree calls the board, with the Jetson release where there is one; else the operating system."""
    return ", ".join(filter(None, (board.model or f"{platform.system()} {platform.release()}", board.release)))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _package(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed as a package"


learn(__name__)
