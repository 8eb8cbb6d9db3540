"""The report in a real browser: it fits the screen, whatever converters call their tensors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import pytest

from edgeml.exporter.report.html import to_html
from edgeml.exporter.report.structs import Repair, SetTried
from edgeml.wire.manifest import KeptFloat
from tests.unit.test_report import REPORT

if TYPE_CHECKING:
    from playwright.sync_api import Browser

LONG = "model.source.layers.Rows/torch.nn.modules.container.Sequential_steps/model.source.layers.Affine_0_3" * 2
KEPT = KeptFloat(LONG, "Gemm", 0.1, 611)


def long_names() -> str:
    fp32, fp16, int8, broken = REPORT.artifacts
    repair = Repair(
        f"1 operator of 4 left float: {LONG!r}", 1, ended=True, ranked=(KEPT, KEPT), tried=(SetTried(1, 4000, "pass"),)
    )
    noted = msgspec.structs.replace(int8, repair=repair, notes=(f"{LONG!r} spreads far",), inputs=int8.inputs)
    return to_html(
        msgspec.structs.replace(
            REPORT,
            artifacts=(fp32, fp16, noted, broken),
            warnings=(f"two halves of the calibration samples disagree on ranges: {LONG!r}",),
            command=f"edgeml export {LONG}.onnx --to onnx,tflite,coreml --calib calib.npz",
        )
    )


@pytest.mark.parametrize("width", [390, 1180])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_is_never_wider_than_the_screen(
    browser: Browser, tmp_path: Path, width: int, scheme: Literal["light", "dark"]
) -> None:
    (tmp_path / "report.html").write_text(long_names())
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    layers = page.locator("table.layers")
    assert layers.get_by_text("20 dB").count() == 2
    if width > 1000:  # on a phone the table scrolls by itself
        assert layers.evaluate("table => table.scrollWidth <= table.parentElement.clientWidth")
    if folder := os.environ.get("EDGEML_SHOTS"):
        page.screenshot(path=str(Path(folder) / f"report-{width}-{scheme}.png"), full_page=True)
    context.close()
