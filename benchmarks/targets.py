"""The five MLPerf Tiny models on a microcontroller and in a browser: arenas, differences, and what int8 throughout costs.

`--for cortex-m4` next to the usual int8, in TensorFlow Lite Micro on this machine; ONNX artifacts on onnxruntime-web in a
headless Chromium. Every row is a bundle whose golden vectors were run there; one that misses them is printed as a failure.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.zoo.samples import need
from edgeml.exporter.pipeline import Exported, export
from edgeml.exporter.plan import make_plan
from edgeml.exporter.target.micro import Micro, make_micro
from edgeml.exporter.target.web import make_page
from edgeml.exporter.target.web_check import PageRecord, check
from edgeml.exporter.target.web_engine import find_engine
from edgeml.wire.errors import EdgemlError, ParityError
from tests.models.published import MODELS, Published


class Row(msgspec.Struct, frozen=True):
    """One model. `whole` is int8 without float layers, `usual` what exports make without `--for`; `problems` says why not."""

    model: str
    drop: float | None
    whole: Micro | None
    usual: Micro | None
    float32: Micro | None
    page: PageRecord | None
    browser: str
    problems: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(model.name for model in MODELS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    models, data = need("mlperf-tiny"), need("kws01.npz").parent
    rows = []
    for model in MODELS:
        if model.name in options.models.split(","):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(model, models, data, Path(folder)))
            print("\n".join(lines(rows[-1])), flush=True)
    if options.json:
        sys.stdout.write(msgspec.json.encode(rows).decode() + "\n")


def measure(model: Published, models: Path, data: Path, folder: Path) -> Row:
    samples = model.make(data, folder)
    problems: list[str] = []

    def exported(target: str | None) -> Exported:
        plan = make_plan(
            str(models / model.path), target=target, to="onnx,tflite", precision="fp32,int8", calib=samples.calibration,
            evaluation=samples.evaluation, max_drop=None, name=model.name, out=folder / (target or "usual"),
        )  # fmt: skip
        return export(plan)

    def bundle_of(found: Exported) -> Path:
        if found.bundle is None:
            raise ParityError("nothing was packed", got=found.report.summary)
        return found.bundle

    def micro(found: Exported, artifact: str) -> Micro | None:
        try:
            return make_micro(bundle_of(found), folder / "micro", artifact=artifact)
        except EdgemlError as error:
            problems.append(f"{artifact} in TensorFlow Lite Micro: {error}")
            return None

    def page(found: Exported) -> tuple[PageRecord | None, str]:
        try:
            make_page(bundle_of(found), folder / "page", find_engine(None))
            return check(folder / "page")
        except EdgemlError as error:
            problems.append(f"in a browser: {error}")
            return None, ""

    board, usual = exported("cortex-m4"), exported(None)
    task = next(a.task for a in board.report.artifacts if (a.format, a.precision) == ("tflite", "int8"))
    record, browser = page(usual)
    return Row(
        model=model.name,
        drop=task.drop if task is not None else None,
        whole=micro(board, "tflite:int8"),
        usual=micro(usual, "tflite:int8"),
        float32=micro(usual, "tflite:fp32"),
        page=record,
        browser=browser,
        problems=tuple(problems),
    )


def lines(row: Row) -> Iterator[str]:
    for kind, made in (("int8 throughout", row.whole), ("int8", row.usual), ("fp32", row.float32)):
        if made is not None:
            golden = made.golden
            yield (
                f"{row.model:<4} {kind:<15} {made.model_bytes:>9,} bytes  arena {made.arena_bytes:>9,}  "
                f"{golden.max_abs:.3g} off of {golden.tolerance:.3g}, {100 * golden.agreement:.4g} % same class"
            )
    if row.drop is not None:
        yield f"{row.model:<4} int8 throughout drops {row.drop:+.2f}"
    for found in row.page.artifacts if row.page is not None else ():
        off = ", ".join(f"{output.max_abs:.3g} off of {output.tolerance:.3g}" for output in found.outputs)
        yield f"{row.model:<4} {found.artifact} {found.status} in {row.browser}: {off} {found.reason}".rstrip()
    yield from (f"{row.model:<4} {problem}" for problem in row.problems)


if __name__ == "__main__":
    try:
        main()
    except EdgemlError as error:
        sys.exit(str(error))
