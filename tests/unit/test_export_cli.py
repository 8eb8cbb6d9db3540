"""`edgeml export` refuses what it cannot use before it starts anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeml.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        main(["export", *arguments])
    code = left.value.code
    assert isinstance(code, int)
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.onnx"], 2, "error: no file 'nowhere.onnx'"),
        (["m.onnx", "--to", "tensorrt"], 2, "error: --to: expected some of onnx,tflite,coreml, got 'tensorrt'"),
        (["m.onnx", "--to", "onnx", "--precision", "int8"], 2, "give samples with --calib FILE.npz"),
        (["m.onnx", "--version", "one"], 2, "error: --version"),
        (["m.onnx", "--eval", "nowhere.npz"], 2, "error: --eval: no file 'nowhere.npz'"),
    ],
    ids=["no file", "format", "int8 without calibration", "version", "no samples"],
)
def test_a_wrong_option_is_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    got, said = run(capsys, *arguments, "-o", str(tmp_path / "out"))
    assert got == code
    assert message in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_broken_tflite_file_is_refused_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(b"\x1c\0\0\0TFL3" + b"\0" * 64)
    code, said = run(capsys, str(tmp_path / "m.tflite"), "-o", str(tmp_path / "out"))
    assert code == 2
    assert "m.tflite" in said
    assert not (tmp_path / "out").exists()


def test_an_unknown_option_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run(capsys, "m.onnx", "--quantise")
    assert code == 2
    assert "--quantise" in said
