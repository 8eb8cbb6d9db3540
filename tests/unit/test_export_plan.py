"""A plan is checked once, where it is typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeml.exporter.plan import DeferGoal, make_plan
from edgeml.wire.errors import PlanError


def test_formats_and_precisions_come_in_one_order_whatever_was_typed() -> None:
    plan = make_plan("m.onnx", to="coreml, onnx", precision="fp16,fp32")
    assert plan.formats == ("onnx", "coreml")
    assert plan.precisions == ("fp32", "fp16")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("models/KWS net (2).h5", "kws-net-2"),
        ("nets.py:make", "nets"),
        ("kws_dscnn_savedmodel", "kws_dscnn_savedmodel"),
        ("../a.b.keras", "a.b"),
    ],
)
def test_the_name_is_made_from_the_file_name(source: str, name: str) -> None:
    assert make_plan(source).name == name


def test_the_bundle_is_named_by_name_and_version(tmp_path: Path) -> None:
    plan = make_plan("m.onnx", name="kws", version="1.2.0-rc.1", out=tmp_path)
    assert plan.bundle == tmp_path / "kws-1.2.0-rc.1.edgeml"


def test_options_hold_no_paths(tmp_path: Path) -> None:
    samples = tmp_path / "c.npz"
    samples.touch()
    plan = make_plan("/home/me/m.onnx", calib=samples, out=tmp_path, precision="int8")
    assert not any("/" in value for value in plan.options().values())


def test_labels_are_lines(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("yes\nno\n\n")
    assert make_plan("m.onnx", labels=labels).labels == ("yes", "no")


@pytest.mark.parametrize("to", ["onnx", "tflite"])
def test_static_int8_without_calibration_is_refused_with_the_way_out(to: str) -> None:
    with pytest.raises(PlanError, match=rf"int8 for {to} needs activation ranges; give samples with --calib"):
        make_plan("m.h5", to=to, precision="fp32,int8")


def test_a_precision_that_no_format_has_is_refused_with_those_that_are_there() -> None:
    message = (
        r"--precision int8-dynamic: no format that was asked for has it: expected coreml: fp32,.*; add onnx or tflite to --to"
    )
    with pytest.raises(PlanError, match=message) as caught:
        make_plan("m.h5", to="coreml", precision="fp32,int8-dynamic")
    assert caught.value.exit_code == 2


def test_a_precision_that_one_format_lacks_is_left_out_there_and_noted() -> None:
    plan = make_plan("m.h5", to="onnx,coreml", precision="fp32,int8-dynamic")

    assert plan.formats == ("onnx", "coreml")
    assert plan.precisions_of("onnx") == ("fp32", "int8-dynamic")
    assert plan.precisions_of("coreml") == ("fp32",)
    assert plan.notes == ("coreml does not have int8-dynamic: left out.",)


def test_a_format_that_is_left_with_nothing_is_not_converted() -> None:
    assert make_plan("m.h5", to="onnx,coreml", precision="int8-dynamic").formats == ("onnx",)


def test_int8_weights_of_core_ml_need_no_calibration() -> None:
    assert make_plan("m.h5", to="coreml", precision="int8").calib is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": "onnx,tensorrt"}, r"--to: expected some of onnx,tflite,coreml, got 'onnx,tensorrt'"),
        ({"to": ""}, "--to"),
        ({"precision": "fp8"}, "--precision: expected some of fp32,fp16,int16"),
        ({"max_drop": -1.0}, "--max-drop"),
        ({"max_drop": 101.0}, "--max-drop"),
        ({"version": "1.2"}, "--version: expected a semantic version"),
        ({"version": "01.2.3"}, "--version"),
        ({"name": "Has Space"}, "--name"),
        ({"ranges": "kl"}, "--ranges: expected auto or min-max or average or percentile or entropy or mse"),
        ({"task": "rank"}, "--task: expected auto or classify or regress"),
        ({"seed": -1}, "--seed"),
        ({"time_limit_s": 0.0}, "--time-limit"),
        ({"calib": "missing.npz"}, "--calib: no file 'missing.npz'"),
        ({"evaluation": "missing.npz"}, "--eval: no file 'missing.npz'"),
        ({"labels": "missing.txt"}, "--labels: no file"),
        ({"source": "模型.onnx"}, "name the model with --name"),
        ({"out": __file__}, "is a file; name a folder"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_used_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        make_plan(arguments.pop("source", "m.onnx"), **arguments)
    assert caught.value.exit_code == 2


def test_what_device_and_cloud_are_to_reach_is_read_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "e.npz").touch()
    plan = make_plan("m.onnx", evaluation=tmp_path / "e.npz", defer="offload=0.1, accuracy=0.98,cloud=0.99")
    assert plan.defer == DeferGoal(accuracy=0.98, offload=0.1, cloud=0.99)
    assert plan.options()["defer"] == "accuracy=0.98,offload=0.1,cloud=0.99"
    plan = make_plan("m.onnx", evaluation=tmp_path / "e.npz", defer="accuracy=1,offload=0,cloud=source")
    assert plan.defer == DeferGoal(accuracy=1.0, offload=0.0)
    assert "defer" not in make_plan("m.onnx").options()


@pytest.mark.parametrize(
    "text",
    ["", "0.98", "accuracy=0.98", "accuracy=98,offload=0.1", "accuracy=0.9,offload=nan", "accuracy=0.9,offload=0.1,price=3",
     "accuracy=0.9,accuracy=0.8,offload=0.1", "accuracy=source,offload=0.1", "accuracy=0.9,offload=0.1,cloud="],
)  # fmt: skip
def test_a_goal_that_is_none_is_refused_with_an_example(tmp_path: Path, text: str) -> None:
    (tmp_path / "e.npz").touch()
    with pytest.raises(PlanError, match=r"--defer.*for example --defer accuracy=0.98,offload=0.10"):
        make_plan("m.onnx", evaluation=tmp_path / "e.npz", defer=text)


def test_a_goal_needs_evaluation_samples() -> None:
    with pytest.raises(PlanError, match="--defer needs samples"):
        make_plan("m.onnx", defer="accuracy=0.98,offload=0.1")
