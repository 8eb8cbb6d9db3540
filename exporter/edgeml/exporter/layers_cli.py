"""`edgeml explain`, `edgeml diff`, `edgeml bisect`: evidence layer by layer, of a bundle or of two model files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from edgeml.wire.errors import PlanError

if TYPE_CHECKING:
    from edgeml.exporter.layers.bisect import Piece
    from edgeml.exporter.layers.difference import Difference
    from edgeml.exporter.layers.explain import Explanation

explain_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
diff_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
bisect_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

SHOWN: Final = 48  # characters of a tensor's name; what converters put in front says little
_Model = Annotated[str, typer.Argument(help=".onnx, .tflite, .mlpackage, or a bundle's artifact: kws.edgeml:onnx:int8.")]
_Input = Annotated[Path | None, typer.Option("--input", help="Samples, .npz; else a bundle's golden ones, else noise.")]
_All = Annotated[bool, typer.Option("--all", help="Show every tensor.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@explain_app.command()
def explain(model: _Model, input_: _Input = None, json: _Json = False) -> None:
    """Show each layer: its precision, the noise it adds against the bundle's fp32 artifact, why it stayed float."""
    from edgeml.exporter.layers.compared import explain_subjects
    from edgeml.exporter.layers.subject import open_explained

    found = [explain_subjects(subject, whole, input_) for subject, whole in open_explained(model)]
    if json:
        _print_json({"models": found})
        return
    for number, one in enumerate(found):
        if number:
            print()
        _print_explanation(one)


@diff_app.command()
def diff(a: _Model, b: _Model, input_: _Input = None, every: _All = False, json: _Json = False) -> None:
    """Compare two models tensor by tensor: signal to noise, cosine, and which layer adds most noise. A is the reference."""
    from edgeml.exporter.layers.compared import compare_subjects
    from edgeml.exporter.layers.subject import open_subject

    compared = compare_subjects(open_subject(a), open_subject(b), input_)
    if json:
        _print_json(compared.found)
        return
    _print_difference(compared.found, compared.names, compared.samples, every=every)


@bisect_app.command()
def bisect(  # noqa: PLR0917 - Typer reads options from the parameters
    a: _Model,
    b: _Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the reproducer.")],
    input_: _Input = None,
    at_least: Annotated[float | None, typer.Option(help="Signal to noise, in dB, that each piece of B must leave.")] = None,
    json: _Json = False,
) -> None:
    """Find the smallest piece of B that is wrong by itself against A, and save it with inputs and expected outputs."""
    from edgeml.exporter.layers.bisect import worst_piece
    from edgeml.exporter.layers.compared import compare_subjects
    from edgeml.exporter.layers.reproducer import write_reproducer
    from edgeml.exporter.layers.subject import open_subject

    if out.exists() and not out.is_dir():
        raise PlanError(f"-o {str(out)!r} is a file", hint="name a folder")
    compared = compare_subjects(open_subject(a), open_subject(b), input_)
    piece = worst_piece(compared.a, compared.b, compared.model_b, at_least)
    about = _about(piece, compared.names)
    files: tuple[Path, ...] = ()
    if piece is not None and piece.fails:
        files = write_reproducer(piece, compared.b.format, out, about)
    if json:
        _print_json(_piece_json(piece, files))
        return
    print(about, end="")
    if files:
        print(f"\nreproducer  {out}\nnext        cd {out} && python run.py")


def _print_json(value: Any) -> None:
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    sys.stdout.flush()


def _short(name: str) -> str:
    return name if len(name) <= SHOWN else f"…{name[-SHOWN + 1 :]}"


def _decibels(value: float | None) -> str:
    from edgeml.exporter.layers.measure import DEAF_DB, SILENT_DB

    if value is None:
        return "-"
    return "equal" if value >= SILENT_DB else "not finite" if value <= DEAF_DB else f"{round(value, 1) + 0.0:.1f}"


def _print_explanation(found: Explanation) -> None:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(found.precisions.items(), key=lambda pair: -pair[1]))
    print(f"{found.model}: {len(found.operators)} operators; {kinds}")
    if found.against is not None:
        print(
            f"against {found.against}, {found.samples} samples; signal to noise in dB, 'own' is what the operator alone leaves"
        )
    width = max(len("tensor"), *(len(_short(line.tensor)) for line in found.operators)) if found.operators else 6
    kind_width = max(len("operator"), *(len(line.kind) for line in found.operators)) if found.operators else 8
    print(f"  {'tensor':<{width}}  {'operator':<{kind_width}}  {'precision':<9}  {'snr':>7}  {'own':>7}")
    for line in found.operators:
        why = f"  left float: {line.kept_float}" if line.kept_float else ""
        print(
            f"  {_short(line.tensor):<{width}}  {line.kind:<{kind_width}}  {line.precision:<9}  "
            f"{_decibels(line.snr_db):>7}  {_decibels(line.own_db):>7}{why}"
        )
    if found.quantization_max_abs is not None:
        kernels = "not measured" if found.kernel_max_abs is None else f"{found.kernel_max_abs:.2g}"
        print(
            f"outputs are off by {found.quantization_max_abs:.2g} of their range by the file's numbers; by kernels: {kernels}"
        )
    for note in found.notes:
        print(f"note: {note}")


def _print_difference(found: Difference, names: tuple[str, str], samples: str, *, every: bool) -> None:
    print(f"A {names[0]}\nB {names[1]}\n{found.samples} samples: {samples}")
    shown = (
        found.layers if every or len(found.layers) <= 60 else tuple(one for one in found.layers if one.tensor in found.worst)
    )
    width = max((len(_short(layer.tensor)) for layer in shown), default=0)
    width = max(width, len("tensor of A"))
    other = max((len(_short(layer.other)) for layer in shown), default=6)
    print(
        f"  {'tensor of A':<{width}}  {'of B':<{other}}  {'precision':<9}  {'by':<5}  {'snr':>7}  {'own':>7}  {'cosine':>8}"
        "  max/range"
    )
    for layer in shown:
        mark = ", channels rescaled" if layer.rescaled else ""
        mark += "  <- adds most noise" if layer.tensor == found.source else ""
        largest = "not finite" if layer.max_abs is None else f"{layer.max_abs:.2g}"
        print(
            f"  {_short(layer.tensor):<{width}}  {_short(layer.other):<{other}}  {layer.precision:<9}  {layer.matched_by:<5}  "
            f"{_decibels(layer.snr_db):>7}  {_decibels(layer.own_db):>7}  {layer.cosine:>8.5f}  {largest}{mark}"
        )
    if len(shown) < len(found.layers):
        print(f"  the {len(shown)} worst of {len(found.layers)}; --all shows every one")
    for which, names_ in (("A", found.unmatched), ("B", found.unmatched_other)):
        if names_:
            print(f"only in {which}: {', '.join(_short(name) for name in names_[:8])}" + (" …" if len(names_) > 8 else ""))
    if found.kernel_max_abs is not None:
        print(f"B's fast kernels on this machine add {found.kernel_max_abs:.2g} of the output's range to that")


def _about(piece: Piece | None, names: tuple[str, str]) -> str:
    """What was found, in words; also the reproducer's README."""
    if piece is None:
        return f"No inner tensor of {names[1]} could be told to be one of {names[0]}.\n"
    chain = " > ".join(operator.kind for operator in piece.operators)
    held = f"{_decibels(piece.snr_db)} dB of signal to noise, at least {piece.least_db:g} asked"
    if not piece.fails:
        return (
            f"No piece of {names[1]} is wrong by itself. "
            f"The worst is {chain}, which gives {_short(piece.output)!r} with {held}.\n"
            "Where outputs differ, noise of many layers adds up: `edgeml diff` shows it.\n"
        )
    return (
        f"{names[1]} goes wrong in {chain}, which gives {piece.output!r}.\n"
        f"Fed with what {names[0]} computes there, it leaves {held}.\n"
        f"Inputs, by position: {', '.join(name for name, _ in piece.inputs)}.\n"
    )


def _piece_json(piece: Piece | None, files: tuple[Path, ...]) -> dict[str, Any]:
    if piece is None:
        return {"found": False}
    return {
        "found": piece.fails,
        "operators": [
            {"name": operator.name, "kind": operator.kind, "precision": operator.precision} for operator in piece.operators
        ],
        "inputs": [name for name, _ in piece.inputs],
        "output": piece.output,
        "snr_db": piece.snr_db,
        "least_db": piece.least_db,
        "max_abs": piece.max_abs,
        "files": [str(path) for path in files],
    }
