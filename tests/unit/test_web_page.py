"""`edgeml web`: the folder it makes, where the engine comes from, what it refuses. In a browser: system/test_browser.py."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgeml.cli import main
from edgeml.exporter.target import web_engine
from edgeml.exporter.target.web import PageBundle, make_page
from edgeml.exporter.target.web_check import find_browser, serve
from edgeml.exporter.target.web_engine import FILES, WebEngine, find_engine
from edgeml.wire.errors import EnvironmentProblem, UnsupportedError, UsageError
from tests.unit.bundles import INT8_SCALE, logits, make_bundle, samples


@pytest.fixture
def engine(tmp_path: Path) -> WebEngine:
    """Files of the right names: nothing here opens them."""
    folder = tmp_path / "onnxruntime-web" / "dist"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_bytes(name.encode())
    (folder.parent / "package.json").write_text('{"name": "onnxruntime-web", "version": "9.9.9", "files": ["dist"]}')
    return WebEngine(folder, "9.9.9")


def test_the_folder_holds_all_that_the_page_needs(engine: WebEngine, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, artifacts=(("onnx", "fp32"), ("onnx", "int8"), ("tflite", "fp32")))
    made = make_page(bundle, tmp_path / "page", engine)
    described = msgspec.json.decode((tmp_path / "page" / "bundle.json").read_bytes(), type=PageBundle)
    assert described == made
    assert [artifact.label for artifact in made.artifacts] == ["onnx:fp32", "onnx:int8"]
    there = {path.name for path in (tmp_path / "page").iterdir()}
    named = {tensor.file for artifact in made.artifacts for tensor in (*artifact.inputs, *artifact.outputs)}
    assert named | {"index.html", "page.css", "check.mjs", "onnx-fp32.onnx", "onnx-int8.onnx", *FILES} <= there


def test_samples_are_fed_as_the_file_stores_them_and_expected_in_real_numbers(engine: WebEngine, tmp_path: Path) -> None:
    made = make_page(make_bundle(tmp_path, artifacts=(("onnx", "int8"),)), tmp_path / "page", engine)
    (artifact,) = made.artifacts
    (fed,), (wanted,) = artifact.inputs, artifact.outputs
    assert (fed.tensor, fed.dtype, fed.shape) == ("q_in", "int8", (1, 4))
    stored = np.fromfile(tmp_path / "page" / fed.file, np.int8).reshape(32, 4)
    assert np.array_equal(stored, samples() / INT8_SCALE)
    assert wanted.quantization is not None
    assert wanted.quantization.scale == INT8_SCALE
    expected = np.fromfile(tmp_path / "page" / wanted.file, wanted.expected_dtype).reshape(32, 3)
    assert np.allclose(expected, logits(samples()))
    assert wanted.ranked


@pytest.mark.parametrize(
    ("artifacts", "asked", "error", "message"),
    [
        (
            (("tflite", "fp32"),),
            (),
            UnsupportedError,
            "nothing that runs in a browser: expected an ONNX artifact, got tflite:fp32",
        ),
        ((("onnx", "fp32"),), ("onnx:int8",), UsageError, "--artifact: expected onnx:fp32, got 'onnx:int8'"),
        ((("onnx", "fp32"), ("tflite", "fp32")), ("tflite:fp32",), UsageError, "--artifact: expected onnx:fp32, got 'tflite"),
    ],
    ids=["nothing", "no such", "another format"],
)
def test_what_no_browser_runs_is_refused(  # noqa: PLR0917 - fixtures and cases
    engine: WebEngine, tmp_path: Path, artifacts: Any, asked: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_page(make_bundle(tmp_path, artifacts=artifacts), tmp_path / "page", engine, asked)
    assert not (tmp_path / "page").exists()


def test_a_folder_with_other_files_is_left_alone(engine: WebEngine, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds other files; name a folder that is empty"):
        make_page(make_bundle(tmp_path), tmp_path / "mine", engine)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_page_is_made_anew_in_its_own_folder(engine: WebEngine, tmp_path: Path) -> None:
    make_page(make_bundle(tmp_path), tmp_path / "page", engine)
    made = make_page(make_bundle(tmp_path, version="1.1.0", bias=0.5), tmp_path / "page", engine)
    assert json.loads((tmp_path / "page" / "bundle.json").read_text())["version"] == made.version == "1.1.0"


@pytest.mark.parametrize("inside", [".", "dist", "package"])
def test_the_package_its_dist_or_what_it_is_installed_in_will_do(engine: WebEngine, tmp_path: Path, inside: str) -> None:
    given = engine.folder.parent
    if inside == "dist":
        given = engine.folder
    if inside == "package":
        (tmp_path / "app" / "node_modules").mkdir(parents=True)
        engine.folder.parent.rename(tmp_path / "app" / "node_modules" / "onnxruntime-web")
        given = tmp_path / "app"
    assert find_engine(given).version == "9.9.9"


def test_a_folder_without_the_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"expected ort.wasm.bundle.min.mjs and ort-wasm-simd-threaded.wasm, got neither there"
    ):
        find_engine(tmp_path)


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and an `npm` that gives whatever `package.tgz` in this folder is."""
    folder = tmp_path / "npm"
    folder.mkdir()
    (folder / "npm").write_text(
        f'#!/bin/sh\ncp {folder}/package.tgz "$5/onnxruntime-web.tgz" || {{ echo E404 >&2; exit 1; }}\n'
    )
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def packed(*names: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(name)
            archive.addfile(entry, io.BytesIO(name.encode()))
    return out.getvalue()


def test_npm_brings_the_two_files_once(npm: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = packed(*(f"package/dist/{name}" for name in FILES), "package/dist/ort.js", "../../escape")
    (npm / "package.tgz").write_bytes(content)
    monkeypatch.setattr(web_engine, "INTEGRITY", base64.b64encode(hashlib.sha512(content).digest()).decode())
    found = find_engine(None)
    assert sorted(path.name for path in found.folder.iterdir()) == sorted(FILES)
    assert not list(tmp_path.rglob("escape"))
    (npm / "package.tgz").unlink()
    assert find_engine(None) == found


def test_a_package_that_was_changed_on_the_way_is_refused(npm: Path, tmp_path: Path) -> None:
    (npm / "package.tgz").write_bytes(packed(*(f"package/dist/{name}" for name in FILES)))
    with pytest.raises(EnvironmentProblem, match=r"onnxruntime-web 1\.30\.0 from npm: expected sha512 q0y"):
        find_engine(None)
    assert not (tmp_path / "cache").exists()


def test_what_npm_says_is_passed_on_with_the_way_out(npm: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"npm did not bring onnxruntime-web: E404; give --runtime FOLDER"):
        find_engine(None)


def test_without_npm_the_way_out_is_said(
    npm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (npm / "npm").unlink()
    monkeypatch.setenv("PATH", str(npm))
    with pytest.raises(SystemExit) as left:
        main(["web", str(make_bundle(tmp_path)), "-o", str(tmp_path / "page")])
    assert left.value.code == 6
    assert "no onnxruntime-web here; give --runtime FOLDER, the package onnxruntime-web 1.30.0" in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


def test_pages_are_isolated_and_only_the_page_that_was_opened_may_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeml.exporter.target.web_check.RECORD_LIMIT_BYTES", 500)
    (tmp_path / "check.mjs").write_text("1")
    with serve(tmp_path) as server:
        root, _, token = server.url.partition("?tell=")
        with urllib.request.urlopen(f"{root}check.mjs") as answer:
            assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
            assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert answer.headers["Content-Type"] == "text/javascript"
        record = {"digest": "", "threads": 1, "engine": "", "agent": "a", "isolated": True, "status": "pass", "artifacts": []}
        for place, body, code in (
            ("result/guess", json.dumps(record), 404),
            (f"result/{token}", '{"status": "sure"}', 400),
            (f"result/{token}", "x" * 501, 404),
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{root}{place}", body.encode())
            refused.value.close()
            assert refused.value.code == code
        assert server.records.empty()
        urllib.request.urlopen(f"{root}result/{token}", json.dumps(record).encode()).close()
        assert server.records.get(timeout=5).agent == "a"


def test_without_a_browser_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("EDGEML_CHROMIUM", raising=False)
    with pytest.raises(EnvironmentProblem, match="no Chromium here; install chromium, set EDGEML_CHROMIUM, or open the page"):
        find_browser()
