"""`edgeml micro`: from a bundle's TFLite artifact to C sources for a microcontroller, and the arena they need.

What is written was run: the model, with its float edges taken off, gave the golden vectors in TensorFlow Lite Micro, in the
very arena that is printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgeml.exporter.lifeline import work_folder
from edgeml.exporter.pack import check_folder, move_all
from edgeml.exporter.target import arena
from edgeml.exporter.target.flatbuffer import Stripped, Tensor, aligned, read_graph, strip_edges
from edgeml.exporter.target.operators import resolver_calls
from edgeml.exporter.target.sources import Program, write
from edgeml.exporter.target.tflm import LARGEST_ARENA, Proof
from edgeml.exporter.target.vectors import golden_vectors
from edgeml.exporter.worker import Worker
from edgeml.runtime.bundle import Bundle, open_bundle
from edgeml.wire.contract import label
from edgeml.wire.errors import UnsupportedError, UsageError, WorkerError
from edgeml.wire.manifest import Artifact, Binding, DType

JOBS: Final = "edgeml.exporter.target.tflm"
USUAL: Final = ("tflite:int8", "tflite:fp32")  # the first that a bundle has
SAMPLES: Final = 8  # golden samples for the board; all of them run here
EDGES: Final = {"QUANTIZE", "DEQUANTIZE"}
WAY_OUT: Final = "`edgeml export --for cortex-m4` leaves no layer float"
READABLE: Final = ("float32", "int8")  # what the program compares


class Micro(msgspec.Struct, frozen=True):
    """What was made and what it showed. `where` is "emulated": the interpreter is a board's, the kernels and the CPU are not.

    `arena_bytes` is the least that works here, `reserved_bytes` what the program sets aside. `integer_inputs` and
    `integer_outputs` name what a board is fed and reads as int8 instead of float; `float_operators` what is computed in float.
    """

    name: str
    version: str
    digest: str
    artifact: str
    model_bytes: int
    arena_bytes: int
    reserved_bytes: int
    operators: tuple[str, ...]
    float_operators: tuple[str, ...]
    integer_inputs: tuple[str, ...]
    integer_outputs: tuple[str, ...]
    golden: Proof
    files: tuple[str, ...]
    where: str = "emulated"


def make_micro(path: Path, out: Path, *, artifact: str | None = None, float_edges: bool = False) -> Micro:
    """Write `model_data.cc`, `model_data.h`, `golden.h` and `main.cc` into `out`; all of them or none.

    `float_edges` keeps float32 inputs and outputs.

    Raises:
        UsageError: the bundle has no such artifact.
        UnsupportedError: TensorFlow Lite Micro cannot run it; says what it lacks.
        SelfTestError: its answers there are beyond the golden tolerances.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"-o {str(out)!r} is a file", hint="name a folder")
    check_folder(out)
    with open_bundle(path) as bundle, work_folder() as folder:
        chosen = _chosen(bundle, artifact)
        whole = bundle.blob(chosen.sha256)
        stripped = Stripped(whole, (), ()) if float_edges else strip_edges(whole)
        graph = read_graph(stripped.model)
        calls = resolver_calls(graph.operators)
        inputs, outputs = _rebound(chosen.inputs, graph.inputs), _rebound(chosen.outputs, graph.outputs)
        _check_readable(outputs)
        model = folder / "model.tflite"
        model.write_bytes(aligned(stripped.model))
        with Worker("micro", folder) as worker:
            worker.call(f"{JOBS}:check", model=str(model))
            least = arena.least(lambda size: _fits(worker, model, size), LARGEST_ARENA)
            reply = worker.call(
                f"{JOBS}:prove", bundle=str(path), artifact=label(chosen), model=str(model), arena_bytes=least,
                inputs=msgspec.to_builtins(inputs), outputs=msgspec.to_builtins(outputs),
            )  # fmt: skip
        program = _program(bundle, chosen, model.read_bytes(), least, calls, inputs, outputs)
        texts = write(program)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        move_all([folder / name for name in texts], out)
        return Micro(
            name=bundle.manifest.name,
            version=bundle.manifest.version,
            digest=bundle.digest,
            artifact=label(chosen),
            model_bytes=len(program.model),
            arena_bytes=least,
            reserved_bytes=program.arena_bytes,
            operators=tuple(dict.fromkeys(operator.kind for operator in graph.operators)),
            float_operators=tuple(dict.fromkeys(operator.kind for operator in graph.operators if operator.floats)),
            integer_inputs=tuple(one.name for one in inputs if one.index in stripped.inputs),
            integer_outputs=tuple(one.name for one in outputs if one.index in stripped.outputs),
            golden=msgspec.convert(reply, Proof),
            files=tuple(texts),
        )


def _chosen(bundle: Bundle, asked: str | None) -> Artifact:
    held = {label(artifact): artifact for artifact in bundle.manifest.artifacts}
    found = next((held[name] for name in ([asked] if asked else USUAL) if name in held), None)
    if found is None:
        expected = asked or " or ".join(USUAL)
        raise UsageError(f"the bundle has no {expected}", expected=expected, got=", ".join(held),
                         hint="`edgeml export --for cortex-m4` makes what microcontrollers run")  # fmt: skip
    if found.format != "tflite":
        raise UsageError("--artifact", expected="a TFLite artifact", got=repr(label(found)))
    return found


def _rebound(bindings: Sequence[Binding], tensors: Sequence[Tensor]) -> tuple[Binding, ...]:
    """The artifact's bindings to the tensors of a file whose edges may be int8."""
    found = []
    for binding in bindings:
        tensor = tensors[binding.index]
        found.append(
            msgspec.structs.replace(
                binding, tensor=tensor.name, dtype=tensor.dtype, shape=tensor.shape, quantization=tensor.quantization
            )
        )
    return tuple(found)


def _check_readable(outputs: Sequence[Binding]) -> None:
    for output in outputs:
        if output.dtype not in READABLE:
            kinds: tuple[DType, ...] = READABLE
            raise UnsupportedError(f"output {output.name!r} is {output.dtype}; the program reads {' and '.join(kinds)}")


def _fits(worker: Worker, model: Path, size: int) -> bool:
    try:
        return bool(worker.call(f"{JOBS}:fits", model=str(model), arena_bytes=size))
    except WorkerError:  # much too small: a segmentation fault
        return False


def _program(
    bundle: Bundle, artifact: Artifact, model: bytes, least: int, calls: tuple[str, ...], *bindings: Sequence[Binding]
) -> Program:
    inputs, outputs = golden_vectors(bundle, artifact, *bindings)
    assert artifact.golden is not None, "golden vectors were found"
    tolerances = {output.expected.name: output.tolerance for output in artifact.golden.outputs}
    manifest = bundle.manifest
    return Program(
        title=f"{manifest.name} {manifest.version}, {label(artifact)}, bundle {bundle.digest[:12]}. Made by `edgeml micro`.",
        model=model,
        arena_bytes=arena.with_margin(least),
        least_arena_bytes=least,
        calls=calls,
        inputs=inputs,
        outputs=outputs,
        tolerances=tuple(tolerances[output.name] for output in outputs),
        samples=min(SAMPLES, len(inputs[0].values)),
    )


def sentences(made: Micro, out: Path) -> list[str]:
    """What a person wants to know of it."""
    golden = made.golden
    passed = f"{golden.samples} samples, at most {golden.max_abs:.3g} off (limit {golden.tolerance:.3g})"
    lines = [
        f"{made.name} {made.version}, {made.artifact} in {golden.engine} on this machine ({made.where})",
        f"arena    {made.arena_bytes:,} bytes are the least that works; main.cc sets {made.reserved_bytes:,} aside",
        f"flash    {made.model_bytes:,} bytes of model",
        f"golden   pass: {passed}, {100 * golden.agreement:.4g} % same class",
        f"ops      {', '.join(made.operators)}",
    ]
    edges = [f"input {name!r}" for name in made.integer_inputs]
    edges += [f"output {name!r}" for name in made.integer_outputs]
    if edges:
        lines.append(f"edges    int8 where the artifact has float32: {', '.join(edges)}")
    if made.float_operators:
        way_out = "" if made.artifact != USUAL[0] or not set(made.float_operators) - EDGES else f"; {WAY_OUT}"
        lines.append(f"float    {', '.join(made.float_operators)}: slow without an FPU, and four bytes an element{way_out}")
    lines.append(f"wrote    {', '.join(str(out / name) for name in made.files)}")
    return lines
