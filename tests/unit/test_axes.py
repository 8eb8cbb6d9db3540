"""Named axes: which size the samples give them, the same samples at another size, artifacts that are fixed to one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch

from edgeml.exporter.axes import at_another_size, fixed_axes, free_sizes
from edgeml.exporter.samples import make_samples
from edgeml.exporter.source.torch import describe_module
from edgeml.exporter.source.torch_axes import of_factory, of_program, resized, with_free_axes
from edgeml.runtime.backends import Array, RawTensor
from edgeml.runtime.session import Session
from edgeml.wire.errors import InputError, ModelError, PlanError, WorkerError
from edgeml.wire.manifest import Binding, Signature, TensorSpec

FRAMES = Signature(
    (TensorSpec("x", "float32", ("batch", "frames", 2)), TensorSpec("mask", "float32", ("batch", "frames"))),
    (TensorSpec("y", "float32", ("batch", "frames", 2)),),
)


def samples(frames: int = 3, masked: int | None = None) -> dict[str, Array]:
    x = np.arange(2 * frames * 2, dtype=np.float32).reshape(2, frames, 2)
    return {"x": x, "mask": np.ones((2, masked or frames), np.float32)}


def test_the_samples_say_the_size() -> None:
    assert free_sizes(FRAMES, make_samples(samples(5))) == {"frames": 5}


def test_inputs_that_disagree_are_refused() -> None:
    with pytest.raises(PlanError, match="axis 'frames' has two sizes in the samples: expected 3, got 4"):
        free_sizes(FRAMES, make_samples(samples(3, masked=4)))


def test_every_input_is_longer_at_the_second_size() -> None:
    given, got = at_another_size(dict, make_samples(samples(3)), FRAMES, {"frames": 3})
    assert (given["x"].shape, given["mask"].shape) == ((2, 6, 2), (2, 6))
    assert np.array_equal(given["x"][:, 3:], given["x"][:, :3])
    assert got.keys() == {"x", "mask"}


def test_a_source_that_takes_nothing_longer_is_tried_shorter() -> None:
    def short(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if inputs["x"].shape[1] > 3:
            raise WorkerError("too long")
        return dict(inputs)

    assert at_another_size(short, make_samples(samples(3)), FRAMES, {"frames": 3})[0]["x"].shape == (2, 1, 2)


class Doubling:
    """An engine that is fixed at three frames."""

    engine, version = "test", "1"
    inputs: tuple[RawTensor, ...] = (RawTensor("x", np.dtype("float32"), (1, 3)),)
    outputs: tuple[RawTensor, ...] = (RawTensor("y", np.dtype("float32"), (1, 3)),)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        return [2 * inputs[0]]

    def close(self) -> None: ...


def test_a_session_names_the_size_at_which_its_artifact_is_fixed() -> None:
    spec = TensorSpec("x", "float32", ("batch", "frames"))
    signature = Signature((spec,), (TensorSpec("y", "float32", ("batch", "frames")),))
    given, got = ((Binding(name, name, 0, "float32", (1, 3)),) for name in ("x", "y"))
    assert fixed_axes(signature, given) == {"frames": 3}
    with Session(signature, given, got, Doubling()) as session:
        assert session.run({"x": np.ones((1, 3), np.float32)})["y"].tolist() == [[2, 2, 2]]
        with pytest.raises(InputError, match="axis 'frames': expected 3, at which this artifact is fixed, got 4; give"):
            session.run({"x": np.ones((1, 4), np.float32)})


class Halved(torch.nn.Module):
    """Frames in, half as many out, and their mean."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"each": x[:, ::2] * 2, "same": x + 1, "mean": x.mean(1)}


def opened(free: object) -> Signature:
    examples = (torch.zeros(1, 8, 3),)
    model = describe_module(Halved(), examples)
    return with_free_axes(torch, model.module, model.examples, model.signature, of_factory(free, ["x"]))


@pytest.mark.parametrize("free", [{"x": {1: "frames"}}, [{1: torch.export.Dim("frames")}]], ids=["by name", "by position"])
def test_a_factory_names_axes_and_outputs_follow(free: object) -> None:
    signature = opened(free)
    assert signature.inputs[0].shape == ("batch", "frames", 3)
    assert [spec.shape for spec in signature.outputs] == [
        ("batch", "each_1", 3), ("batch", "frames", 3), ("batch", 3),
    ]  # fmt: skip


@pytest.mark.parametrize("free", [{"z": {1: "frames"}}, 3, {"x": "frames"}])
def test_a_factory_that_names_no_axis_of_its_own_is_refused(free: object) -> None:
    with pytest.raises(ModelError, match="factory"):
        opened(free)


def test_a_module_that_takes_one_size_only_is_refused() -> None:
    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.ones(8)

    model = describe_module(Fixed(), (torch.zeros(1, 8),))
    with pytest.raises(ModelError, match="axis 'n' takes no other size than 8"):
        with_free_axes(torch, model.module, model.examples, model.signature, {(0, 1): "n"})


def test_an_exported_program_keeps_its_open_axes() -> None:
    frames = torch.export.Dim("frames", min=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(Halved(), (torch.zeros(1, 8, 3),), dynamic_shapes={"x": {1: frames}})
    assert of_program(program, ["x"]) == {(0, 1): "x_1"}


def test_examples_take_the_samples_sizes() -> None:
    (example,) = resized((torch.ones(1, 8, 3),), opened({"x": {1: "frames"}}), {"frames": 5})
    assert example.shape == (1, 5, 3)


class Centred(torch.nn.Module):
    """Takes the mean of all samples of a call away from each."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean()


def test_a_module_that_mixes_its_samples_takes_one_a_call() -> None:
    assert not describe_module(Centred(), (torch.zeros(1, 4),)).any_batch
    assert describe_module(torch.nn.Linear(4, 2).eval(), (torch.zeros(1, 4),)).any_batch
