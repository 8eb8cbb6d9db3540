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
from typing import Annotated, Final, Literal

import msgspec
import typer

from edgeml.runtime.choose import find_engine, this_board, total_ram_bytes
from edgeml.wire.manifest import Format

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
_DEVICE_MODEL: Final = Path("/proc/device-tree/model")  # Raspberry Pi, Jetson and other boards with a device tree
_TEGRA: Final = Path("/etc/nv_tegra_release")
_BROKER_PLACES: Final = "/usr/local/sbin:/usr/sbin:/sbin"  # daemons are often not on a user's PATH

Status = Literal["ok", "missing", "note"]


class Finding(msgspec.Struct, frozen=True):
    """One line: what was looked at, how it stands, and what to do where something is missing."""

    what: str
    status: Status
    detail: str


@app.command()
def doctor(json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False) -> None:
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


def examine() -> Iterator[Finding]:
    """Look at this machine; imports no engine."""
    yield Finding("edgeml", "ok", _package("edgeml-toolkit"))
    yield Finding(
        "python", "ok", f"{platform.python_version()} ({platform.python_implementation()}), numpy {_package('numpy')}"
    )
    board = this_board()
    yield Finding("board", "ok", f"{_board_name()}, {board.arch}, {_cores()} cores, {total_ram_bytes() / 2**20:.0f} MiB")
    yield from _engines()
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


def _board_name() -> str:
    """What the device tree calls the board, with the Jetson release where there is one; else the operating system."""
    try:
        name = _DEVICE_MODEL.read_bytes().rstrip(b"\0").decode("utf-8", "replace")
    except OSError:
        name = f"{platform.system()} {platform.release()}"
    try:
        return f"{name}, {_TEGRA.read_text().splitlines()[0].lstrip('# ')}"
    except (OSError, IndexError):
        return name


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _package(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed as a package"
