"""`edgeml explain`, `edgeml diff`, `edgeml bisect`: evidence layer by layer, of a bundle or of two model files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from edgeml.runtime.arguments import Json
from edgeml.wire.errors import PlanError

if TYPE_CHECKING:
    from edgeml.exporter.layers.explain import Explanation
    from edgeml.exporter.layers.jobs import Diff

explain_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
diff_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
bisect_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_DOING: Final = {
    "explain": "reading each layer, and running it on samples",
    "diff": "running both models on the same samples",
    "bisect": "cutting B into pieces, and running each on what A computes",
}
SHOWN: Final = 48  # characters of a tensor's name; what converters put in front says little
_Model = Annotated[str, typer.Argument(help=".onnx, .tflite, .mlpackage, or a bundle's artifact: kws.edgeml:onnx:int8.")]
_Input = Annotated[
    Path | None, typer.Option("--input", metavar="FILE", help="Samples, .npz; else a bundle's golden ones, else noise.")
]
_All = Annotated[bool, typer.Option("--all", help="Show every tensor.")]
_Limit = Annotated[float, typer.Option(metavar="SECONDS", help="Longest that the whole command may take.")]


@explain_app.command()
def explain(model: _Model, input_: _Input = None, time_limit: _Limit = 600.0, json: Json = False) -> None:
    """Show each layer: its precision, the noise it adds against the bundle's fp32 artifact, why it stayed float.

    Exit codes: 0 shown, 2 usage, 3 a damaged bundle, 5 an operator that is not read, 6 no time left.
    """
    from edgeml.exporter.layers.explain import Explanation

    answer = _job("explain", time_limit, model=model, samples=_text(input_))
    if json:
        _print_json({"models": answer})
        return
    for number, one in enumerate(msgspec.convert(answer, list[Explanation])):
        if number:
            print()
        _print_explanation(one)


@diff_app.command()
def diff(  # noqa: PLR0917 - Typer reads options from the parameters
    a: _Model, b: _Model, input_: _Input = None, every: _All = False, time_limit: _Limit = 600.0, json: Json = False
) -> None:
    """Compare two models tensor by tensor: signal to noise, cosine, and which layer adds most noise. A is the reference.

    Exit codes: 0 compared, however far apart, 2 usage, 3 a damaged bundle, 5 an operator that is not read, 6 no time left.
    """
    from edgeml.exporter.layers.jobs import Diff

    answer = _job("diff", time_limit, a=a, b=b, samples=_text(input_))
    if json:
        _print_json(answer["found"])
        return
    _print_difference(msgspec.convert(answer, Diff), every=every)


@bisect_app.command()
def bisect(  # noqa: PLR0917 - Typer reads options from the parameters
    a: _Model,
    b: _Model,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Folder for the reproducer.")],
    input_: _Input = None,
    at_least: Annotated[
        float | None, typer.Option(metavar="DB", help="Signal to noise that each piece of B must leave; else by its precision.")
    ] = None,
    time_limit: _Limit = 600.0,
    json: Json = False,
) -> None:
    """Find the smallest piece of B that is wrong by itself against A, and save it with inputs and expected outputs.

    Exit codes: 0 found, or nothing is wrong by itself, 2 usage, 3 a damaged bundle, 5 not read or not cut, 6 no time left.
    """
    from edgeml.exporter.layers.jobs import Bisection

    if out.exists() and not out.is_dir():
        raise PlanError(f"-o {str(out)!r} is a file", hint="name a folder")
    answer = _job("bisect", time_limit, a=a, b=b, samples=_text(input_), least_db=at_least, out=str(out))
    if json:
        _print_json(answer)
        return
    found = msgspec.convert(answer, Bisection)
    print(found.about, end="")
    if found.files:
        print(f"\nreproducer  {out}\nnext        cd {out} && python run.py")


def _job(name: str, time_limit_s: float, **arguments: object) -> Any:
    """A job of `layers.jobs` in a process of its own: a model that crashes or never ends becomes a sentence."""
    from rich.console import Console

    from edgeml.exporter.lifeline import work_folder
    from edgeml.exporter.worker import Worker

    with (
        Console(stderr=True).status(_DOING[name]),  # in a terminal alone
        work_folder() as folder,
        Worker("layers", folder, time_limit_s=time_limit_s) as worker,
    ):
        return worker.call(f"edgeml.exporter.layers.jobs:{name}", **arguments)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _print_json(value: Any) -> None:
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    sys.stdout.flush()


def _short(name: str) -> str:
    return name if len(name) <= SHOWN else f"…{name[-SHOWN + 1 :]}"


def _print_explanation(found: Explanation) -> None:
    from edgeml.exporter.layers.measure import decibels

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
        why = f"  {line.kept_float}" if line.kept_float else ""
        print(
            f"  {_short(line.tensor):<{width}}  {line.kind:<{kind_width}}  {line.precision:<9}  "
            f"{decibels(line.snr_db):>7}  {decibels(line.own_db):>7}{why}"
        )
    if found.quantization_max_abs is not None:
        kernels = "not measured" if found.kernel_max_abs is None else f"{found.kernel_max_abs:.2g}"
        print(
            f"outputs are off by {found.quantization_max_abs:.2g} of their range by the file's numbers; by kernels: {kernels}"
        )
    for note in found.notes:
        print(f"note: {note}")


def _print_difference(diff: Diff, *, every: bool) -> None:
    from edgeml.exporter.layers.measure import decibels

    found = diff.found
    print(f"A {diff.a}\nB {diff.b}\n{found.samples} samples: {diff.samples}")
    shown = (
        found.layers if every or len(found.layers) <= 60 else tuple(one for one in found.layers if one.tensor in found.worst)
    )
    width = max(len("tensor of A"), *(len(_short(layer.tensor)) for layer in shown)) if shown else 11
    other = max(len("of B"), *(len(_short(layer.other)) for layer in shown)) if shown else 4
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
            f"{decibels(layer.snr_db):>7}  {decibels(layer.own_db):>7}  {layer.cosine:>8.5f}  {largest}{mark}"
        )
    if len(shown) < len(found.layers):
        print(f"  the {len(shown)} worst of {len(found.layers)}; --all shows every one")
    for which, names_ in (("A", found.unmatched), ("B", found.unmatched_other)):
        if names_:
            print(f"only in {which}: {', '.join(_short(name) for name in names_[:8])}" + (" …" if len(names_) > 8 else ""))
    if found.kernel_max_abs is not None:
        print(f"B's fast kernels on this machine add {found.kernel_max_abs:.2g} of the output's range to that")
