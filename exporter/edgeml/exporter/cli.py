"""`edgeml export`: one command, one verdict. What runs the export is imported once the options are known to be good."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from edgeml.exporter.plan import REPAIR_TIME_S, ExportPlan, make_plan
from edgeml.exporter.precision import PRECISIONS, RANGES
from edgeml.exporter.target.presets import PRESETS

if TYPE_CHECKING:
    from edgeml.exporter.pipeline import Exported

export_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_EXAMPLE: Final = """\b
Example:
  edgeml export kws.h5 --precision fp32,int8 \\
      --calib calib.npz --eval eval.npz --name kws --version 1.2.0 -o out"""


@export_app.command(epilog=_EXAMPLE)
def run(  # noqa: PLR0917 - Typer reads options from the parameters
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Model file or folder, or file.py:factory.")],
    to: Annotated[
        str | None,
        typer.Option(metavar="FORMATS", show_default="all", help="Some of onnx, tflite, coreml, separated by commas."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="PRECISIONS", show_default="fp32", help=f"Some of {', '.join(PRECISIONS)}, separated by commas."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--for", metavar="DEVICE", help=f"Formats and precisions that suit a device: {', '.join(PRESETS)}."),
    ] = None,
    calib: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Calibration samples, .npz: one array per input, or x.")
    ] = None,
    ranges: Annotated[str, typer.Option(metavar="WAY", help=f"How activation ranges are found: {', '.join(RANGES)}.")] = "auto",
    evaluation: Annotated[
        Path | None, typer.Option("--eval", metavar="FILE", help="Evaluation samples, .npz; labels in y.")
    ] = None,
    max_drop: Annotated[float, typer.Option(metavar="POINTS", help="Accepted drop of the metric, in percentage points.")] = 1.0,
    name: Annotated[str | None, typer.Option(metavar="NAME", show_default="from the file's name", help="Model name.")] = None,
    version: Annotated[str, typer.Option(metavar="VERSION", help="Semantic version of the bundle.")] = "0.1.0",
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Folder for bundle and report.")] = Path(),
    metric: Annotated[
        str,
        typer.Option(
            metavar="METRIC", help="What must not drop: auto, top1, top5, auc, f1, r2, mse, mae, or file.py:function."
        ),
    ] = "auto",
    labels: Annotated[Path | None, typer.Option(metavar="FILE", help="Text file, one class name a line.")] = None,
    task: Annotated[str, typer.Option(metavar="TASK", help="auto, classify or regress.")] = "auto",
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="Seed of everything that is drawn.")] = 0,
    trust: Annotated[bool, typer.Option("--trust", help="Load files that may run code.")] = False,
    time_limit: Annotated[float, typer.Option(metavar="SECONDS", help="Longest that one conversion or run may take.")] = 600.0,
    signature: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which signature of a SavedModel or TFLite file.")
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT=OUTPUT", help="A state that is handed from call to call; samples are sequences."),
    ] = None,
    free: Annotated[
        list[str] | None,
        typer.Option(metavar="AXIS", help="NAME or NAME=MIN..MAX: an axis that every format keeps free, such as batch."),
    ] = None,
    repair_time: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="Time to look for the fewest layers to leave float where a budget is missed; 0: do not."
        ),
    ] = REPAIR_TIME_S,
    memory_limit: Annotated[float, typer.Option(metavar="GIB", help="Most that one conversion or run may take.")] = 8.0,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Convert afresh, and keep nothing for later exports.")] = False,
    defer: Annotated[
        str | None,
        typer.Option(metavar="PROMISE", help="What device and cloud are to reach together: accuracy=0.98,offload=0.10."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, and nothing else.")] = False,
) -> None:
    """Convert and quantize a model, prove the result, and pack it as a bundle.

    Exit codes: 0 everything asked for passed, 2 usage, 3 parity failed, 4 budget missed, 5 unsupported, 6 environment.
    """
    plan = make_plan(
        source, to=to, precision=precision, target=target, out=out, calib=calib, evaluation=evaluation, max_drop=max_drop,
        name=name, version=version, labels=labels, task=task, seed=seed, trust=trust, time_limit_s=time_limit,
        memory_limit_gib=memory_limit, cache=not no_cache, ranges=ranges, signature=signature,
        states=state or (), free=free or (), metric=metric,
        repair_time_s=repair_time, defer=defer,
    )  # fmt: skip
    replaces = plan.bundle.exists()
    try:
        exported = _export(plan, json=json)
    except ModuleNotFoundError as error:
        from edgeml.exporter.extras import missing

        if (absent := missing(error)) is None:
            raise
        raise absent from error
    if json:
        _print_json(exported)
    else:
        _print_end(exported, "verify" if plan.target is None else plan.target.after, replaces=replaces)
    raise typer.Exit(exported.exit_code)


def _export(plan: ExportPlan, *, json: bool) -> Exported:
    from edgeml.exporter.pipeline import export
    from edgeml.exporter.progress import Lines, Silent, Table

    command = shlex.join(["edgeml", "export", *sys.argv[2:]])
    if json:
        return export(plan, Silent(), command=command)
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        with Table() as table:
            return export(plan, table, command=command)
    return export(plan, Lines(), command=command)


def _print_json(exported: Exported) -> None:
    from edgeml.exporter.report.structs import to_json

    sys.stdout.buffer.write(to_json(exported.report))
    sys.stdout.flush()


def _print_end(exported: Exported, after: str, *, replaces: bool) -> None:
    """The verdict, where everything is, and the command that goes on from there."""
    from rich.console import Console

    from edgeml.exporter.report.terminal import print_report

    console = Console()
    console.print()
    print_report(exported.report, console)
    html = next((path for path in exported.reports if path.suffix == ".html"), None)
    if exported.bundle is not None:
        print(f"bundle  {exported.bundle}" + (", in place of the one that was there" if replaces else ""))
    print(f"report  {html}")
    if exported.bundle is not None:
        print(f"next    edgeml {after} {shlex.quote(str(exported.bundle))}")
