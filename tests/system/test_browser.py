"""Bundles in a real browser: what `edgeml web` makes, opened in headless Chromium and read from the page."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import pytest

from edgeml.cli import main
from edgeml.exporter.pipeline import export
from edgeml.exporter.plan import make_plan
from edgeml.exporter.target.web import PageBundle, make_page
from edgeml.exporter.target.web_check import PageRecord, serve
from edgeml.exporter.target.web_engine import WebEngine, find_engine
from edgeml.wire.errors import EnvironmentProblem
from edgeml.wire.manifest import Format, Precision
from tests.conftest import ROOT
from tests.unit.bundles import make_bundle

if TYPE_CHECKING:
    from playwright.sync_api import Page

BOTH: Final[tuple[tuple[Format, Precision], ...]] = (("onnx", "fp32"), ("onnx", "int8"))


@pytest.fixture(scope="module")
def engine() -> WebEngine:
    """onnxruntime-web from the cache or npm. EDGEML_ORT_WEB names another folder with it."""
    given = os.environ.get("EDGEML_ORT_WEB")
    try:
        return find_engine(Path(given) if given else None)
    except EnvironmentProblem as problem:
        pytest.skip(str(problem))


def open_page(page: Page, folder: Path) -> PageRecord:
    """What the page says it found, once it is done."""
    with serve(folder) as server:
        page.goto(server.url)
        page.wait_for_selector("html[data-done]", timeout=120_000)
        told = server.records.get(timeout=10)
        shown = msgspec.convert(page.evaluate("edgeml"), PageRecord, strict=False)
        assert shown == told
        return told


def assert_golden(page: Page, made: PageBundle, record: PageRecord) -> None:
    """Every artifact passed, and the page shows it: card by card, sample by sample."""
    assert (record.status, record.digest, record.isolated) == ("pass", made.digest, True)
    assert [found.artifact for found in record.artifacts] == [artifact.label for artifact in made.artifacts]
    for found in record.artifacts:
        assert (found.samples, found.failed) == (made.samples, 0)
        for output in found.outputs:
            assert output.max_abs is not None
            assert output.max_abs <= output.tolerance
        card = page.locator(f"article[data-artifact='{found.artifact}']")
        assert card.locator(".status").inner_text() == "pass"
        assert card.locator(".samples i.pass").count() == made.samples
    assert page.locator("#word").inner_text() == "Pass"


@pytest.mark.slow
def test_float_and_integer_edges_pass_in_a_browser(engine: WebEngine, page: Page, tmp_path: Path) -> None:
    made = make_page(make_bundle(tmp_path, artifacts=BOTH), tmp_path / "page", engine)
    assert_golden(page, made, open_page(page, tmp_path / "page"))


@pytest.mark.slow
def test_a_model_that_computes_something_else_fails_on_the_page(engine: WebEngine, page: Page, tmp_path: Path) -> None:
    make_page(make_bundle(tmp_path, artifacts=BOTH, model_bias=2.0), tmp_path / "page", engine)
    record = open_page(page, tmp_path / "page")
    assert record.status == "fail"
    whole, _ = record.artifacts
    assert (whole.status, whole.failed) == ("fail", 32)
    assert whole.outputs[0].max_abs == pytest.approx(2.0, abs=1e-4)
    assert page.locator("#word").inner_text() == "Fail"
    assert page.locator("article").first.locator(".samples i.fail").count() == 32
    assert "32 of 32 samples are beyond their tolerance" in page.locator("article .detail").first.inner_text()


@pytest.mark.slow
def test_a_model_file_that_is_damaged_fails_and_the_others_go_on(engine: WebEngine, page: Page, tmp_path: Path) -> None:
    make_page(make_bundle(tmp_path, artifacts=BOTH), tmp_path / "page", engine)
    (tmp_path / "page" / "onnx-fp32.onnx").write_bytes(b"not a model")
    record = open_page(page, tmp_path / "page")
    assert [found.status for found in record.artifacts] == ["fail", "pass"]
    assert record.artifacts[0].reason


@pytest.mark.slow
def test_check_opens_the_page_by_itself_and_says_where_it_was_verified(
    engine: WebEngine, chromium: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chromium.is_file()
    good, bad = make_bundle(tmp_path), make_bundle(tmp_path, version="1.1.0", model_bias=2.0)
    for bundle, code in ((good, 0), (bad, 3)):
        with pytest.raises(SystemExit) as left:
            main(["web", str(bundle), "-o", str(tmp_path / "page"), "--runtime", str(engine.folder), "--check", "--json"])
        assert left.value.code == code
        said = capsys.readouterr()
        found = msgspec.json.decode(said.out)
        (artifact,) = found["artifacts"]
        assert artifact["status"] == ("pass" if code == 0 else "fail")
        assert artifact["where"].startswith("verified (chromium ")
        assert "onnxruntime-web " in artifact["where"]
    assert "error: onnx:fp32 in chromium" in said.err


@pytest.mark.slow
def test_the_digits_bundle_passes_in_a_browser(engine: WebEngine, page: Page, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "examples.digits.data", tmp_path], cwd=ROOT, check=True)
    exported = export(
        make_plan(
            f"{ROOT}/examples/digits/model.py:v1_0_0", target="browser", calib=tmp_path / "calib.npz",
            evaluation=tmp_path / "eval.npz", name="meter", out=tmp_path,
        )
    )  # fmt: skip
    assert exported.bundle is not None
    made = make_page(exported.bundle, tmp_path / "page", engine)
    assert [artifact.label for artifact in made.artifacts] == ["onnx:fp32", "onnx:int8"]
    assert_golden(page, made, open_page(page, tmp_path / "page"))
