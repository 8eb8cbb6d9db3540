"""PyTorch sources: a factory in a Python file, a `torch.export` program, TorchScript, or an imported ONNX graph.

Runs in the torch worker. A factory returns a module, or (module, example inputs); without examples the shapes come from the
samples given for calibration. Axis 0 is a batch only if running with two and with three samples says so.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from edgeml.exporter.extras import missing
from edgeml.exporter.source.factory import build, is_estimator
from edgeml.exporter.source.kind import pickle_refusal
from edgeml.exporter.source.model import (
    SourceModel,
    SourceRef,
    batched,
    feed,
    gather,
    identity,
    names,
    read_arrays,
    refuse_non_finite,
    stack_ones,
    write_arrays,
)
from edgeml.exporter.source.pt2_code import SAFE_PICKLES, check_pt2
from edgeml.exporter.source.torch_axes import of_factory, of_program, resized, with_free_axes
from edgeml.runtime.backends import Array
from edgeml.wire.canonical import encode_json, sha256_hex
from edgeml.wire.errors import EdgemlError, MissingExtraError, ModelError, PlanError, UnsupportedError
from edgeml.wire.manifest import BATCH, Signature, TensorSpec

CHUNK: Final = 64  # samples a call of the reference
APART: Final = 4  # samples in one call that are compared with one call each
PROBES: Final = (2, 3)  # batch sizes that show which axes grow


@dataclass(frozen=True, slots=True)
class TorchModel:
    """`module` takes tensors in the signature's order and gives a tuple in its order; `examples` hold one sample each."""

    signature: Signature
    module: Any
    examples: tuple[Any, ...]
    any_batch: bool

    def example(self, count: int) -> tuple[Any, ...]:
        """The example inputs, with `count` samples where the signature stacks them."""
        return tuple(
            tensor.repeat(count, *[1] * (tensor.ndim - 1)) if spec.has_batch else tensor
            for tensor, spec in zip(self.examples, self.signature.inputs, strict=True)
        )


def _torch() -> Any:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingExtraError("torch", "export") from error
    torch.set_num_threads(1)
    return torch


@functools.lru_cache(maxsize=1)
def load(source: SourceRef) -> TorchModel:
    """Load a source.

    Raises:
        ModelError: damaged, raising, or it would run code and is not trusted.
        PlanError: nothing says what shape the inputs have.
    """
    if source.kind == "onnx":
        _torch().manual_seed(source.seed)
        from edgeml.exporter.source.onnx import as_module

        return as_module(source)
    if source.family == "sklearn":
        from edgeml.exporter.source import sklearn

        return sklearn.as_module(source)
    try:
        if source.kind == "torch-pt2" and not source.trust:
            check_pt2(Path(source.path))
            os.environ.update(SAFE_PICKLES)  # of this worker, which has no other source
        torch = _torch()
        torch.manual_seed(source.seed)
        module, examples, free = _open(torch, source)
        refuse_non_finite(_weights(module))
        return _opened(torch, describe_module(module, examples), free, dict(source.sizes))
    except EdgemlError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise missing(error) or ModelError(
            f"{Path(source.path).name!r} cannot be loaded: {type(error).__name__}: {text}"
        ) from error


def _opened(torch: Any, model: TorchModel, free: Any, sizes: Mapping[str, int]) -> TorchModel:
    """The model with its free axes named, its examples of the sizes that the samples have."""
    names_ = names(model.signature.inputs)
    axes = of_program(free, names_) if hasattr(free, "graph_signature") else of_factory(free, names_)
    signature = with_free_axes(torch, model.module, model.examples, model.signature, axes)
    return TorchModel(signature, model.module, resized(model.examples, signature, sizes), model.any_batch)


def _open(torch: Any, source: SourceRef) -> tuple[Any, tuple[Any, ...], Any]:
    """(module, examples, what is said of free axes: an exported program, or a mapping)."""
    if source.kind == "torch":
        return _from_factory(torch, source)
    if source.kind == "torch-pt2":
        program = torch.export.load(source.path)
        arguments, keywords = program.example_inputs or ((), {})
        return program.module(), (*arguments, *keywords.values()), program
    if not source.trust:
        raise pickle_refusal(Path(source.path))
    try:
        module = torch.jit.load(source.path, map_location="cpu")
    except RuntimeError:
        module = torch.load(source.path, map_location="cpu", weights_only=False)
    if not isinstance(module, torch.nn.Module):
        raise UnsupportedError(
            f"{Path(source.path).name!r} holds {_what(torch, module)}, not a module",
            hint="write a function that builds the module and loads this file into it, and give file.py:function",
        )
    return module.eval(), _examples_from(torch, module, source), {}


def _what(torch: Any, found: Any) -> str:
    if isinstance(found, Mapping) and any(isinstance(value, torch.Tensor) for value in found.values()):
        return f"weights alone ({len(found)} tensors, a state_dict)"
    return f"a {type(found).__name__}"


def _from_factory(torch: Any, source: SourceRef) -> tuple[Any, tuple[Any, ...], Any]:
    made = build(source)
    module, examples, free = (*made, None, None)[:3] if isinstance(made, tuple) else (made, None, None)
    if not isinstance(module, torch.nn.Module):
        expected = "a torch.nn.Module or a scikit-learn estimator"
        raise ModelError(f"{source.factory!r} built the wrong thing", expected=expected, got=type(module).__name__)
    module = module.eval()
    if examples is None:
        return module, _examples_from(torch, module, source), free or {}
    return module, tuple(examples.values()) if isinstance(examples, Mapping) else _as_tuple(examples), free or {}


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _examples_from(torch: Any, module: Any, source: SourceRef) -> tuple[Any, ...]:
    """One sample per input, batch axis included, from the samples the user gave."""
    if source.example is None:
        raise PlanError(
            "no shape of the inputs is known", hint="return (module, example_inputs) from the factory, or give --calib"
        )
    wanted = _parameters(module)
    with np.load(source.example, allow_pickle=False) as samples:
        arrays = [samples[name] for name in wanted if name in samples.files]
        if not arrays and "x" in samples.files:
            arrays = [samples["x"]]
    if not arrays:
        raise PlanError("no sample array is named after an input", expected=", ".join(wanted) or "x")
    return tuple(torch.from_numpy(np.ascontiguousarray(_single(array[:1]))) for array in arrays)


def _single(sample: Array) -> Array:
    return sample.astype(np.float32) if sample.dtype.kind == "f" else sample


def _parameters(module: Any) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        return [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind in kinds and p.name != "self"]
    except (TypeError, ValueError):
        return []


def _weights(module: Any) -> list[tuple[str, Array]]:
    return [
        (name, tensor.detach().cpu().float().numpy())
        for name, tensor in module.state_dict().items()
        if hasattr(tensor, "detach")
    ]


def describe_module(module: Any, examples: tuple[Any, ...]) -> TorchModel:
    """Find the contract of a module by running it.

    Raises:
        UnsupportedError: inputs or outputs that are not tensors.
    """
    torch = _torch()
    if not examples or not all(isinstance(tensor, torch.Tensor) for tensor in examples):
        raise UnsupportedError("inputs that are not tensors", hint="return (module, tuple of tensors) from the factory")
    input_names = _parameters(module)[: len(examples)]
    if len(input_names) < len(examples):
        input_names = ["x"] if len(examples) == 1 else [f"x{index}" for index in range(len(examples))]
    flat, output_names = flatten(torch, module, examples)
    one = tuple(tensor[:1] if _stacks(tensor, examples) else tensor for tensor in examples)
    grown = _grown_shapes(torch, flat, examples)
    with torch.no_grad():
        outputs = flat(*(one if grown else examples))
    inputs = tuple(
        _spec(name, tensor, stacks=bool(grown) and _stacks(tensor, examples))
        for name, tensor in zip(input_names, examples, strict=True)
    )
    given = tuple(_spec(name, tensor, stacks=name in grown) for name, tensor in zip(output_names, outputs, strict=True))
    signature = Signature(inputs, given)
    return TorchModel(stack_ones(signature), flat, one if grown else examples, batched(signature))


def _stacks(tensor: Any, examples: tuple[Any, ...]) -> bool:
    return bool(tensor.ndim) and bool(examples[0].ndim) and bool(tensor.shape[0] == examples[0].shape[0])


def flatten(torch: Any, module: Any, examples: tuple[Any, ...]) -> tuple[Any, list[str]]:
    """The module with a tuple of tensors for an output, and their names."""
    with torch.no_grad():
        given = module(*examples)
    if isinstance(given, Mapping):
        found = [str(name) for name in given]
    elif isinstance(given, torch.Tensor):
        found = ["output"]
    else:
        found = [f"output_{index}" for index in range(len(given))]

    class Flat(torch.nn.Module):  # type: ignore[misc]  # torch is Any at this seam
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *tensors: Any) -> tuple[Any, ...]:
            result = self.inner(*tensors)
            if isinstance(result, torch.Tensor):
                return (result,)
            return tuple(result.values()) if isinstance(result, Mapping) else tuple(result)

    flat = Flat()
    flat.training = False
    return flat, found


def _grown_shapes(torch: Any, flat: Any, examples: tuple[Any, ...]) -> set[str]:
    """Names of the outputs whose first axis follows the batch; empty if the module takes only one batch size."""
    _, found = flatten(torch, flat.inner, examples)
    seen = []
    for count in PROBES:
        fed = [
            tensor[:1].repeat(count, *[1] * (tensor.ndim - 1)) if _stacks(tensor, examples) else tensor for tensor in examples
        ]
        try:
            with torch.no_grad():
                seen.append([tuple(tensor.shape) for tensor in flat(*fed)])
        except Exception:  # noqa: BLE001 - whatever it raises, it does not take this batch
            return set()
    if not _apart(torch, flat, examples):
        return set()
    pairs = zip(found, *seen, strict=True)
    return {name for name, two, three in pairs if two and (two[0], three[0]) == PROBES}


def _apart(torch: Any, flat: Any, examples: tuple[Any, ...]) -> bool:
    """Whether samples in one call are answered as each by itself: what mixes them takes one sample a call."""
    generator = torch.Generator().manual_seed(0)

    def drawn(tensor: Any) -> Any:
        many = tensor[:1].repeat(APART, *[1] * (tensor.ndim - 1))
        return torch.randn(many.shape, generator=generator).to(many.dtype) if many.is_floating_point() else many

    stacked = [_stacks(tensor, examples) for tensor in examples]
    fed = [drawn(tensor) if stacks else tensor for tensor, stacks in zip(examples, stacked, strict=True)]
    with torch.no_grad():
        together = flat(*fed)
        for index in range(APART):
            one = [tensor[index : index + 1] if stacks else tensor for tensor, stacks in zip(fed, stacked, strict=True)]
            for whole, alone in zip(together, flat(*one), strict=True):
                part = whole[index : index + 1]
                if (
                    whole.ndim
                    and whole.shape[0] == APART
                    and not torch.allclose(part.double(), alone.double(), rtol=1e-3, atol=1e-4, equal_nan=True)
                ):
                    return False
    return True


def _spec(name: str, tensor: Any, *, stacks: bool) -> TensorSpec:
    sizes: list[int | str] = [int(size) for size in tensor.shape]
    if stacks:
        sizes[0] = BATCH
    layout = "NCHW" if len(sizes) == 4 else None
    word = str(tensor.dtype).removeprefix("torch.")
    return msgspec.convert({"name": name, "dtype": word, "shape": sizes, "layout": layout}, TensorSpec)


def describe(source: dict[str, Any]) -> Any:
    """Job: `SourceModel` of a `SourceRef`. A factory's identity is its file together with the weights it loads."""
    ref = msgspec.convert(source, SourceRef)
    if ref.kind == "torch":
        _torch()  # what it imports is not the factory's
    known = set(sys.modules)
    if ref.kind == "torch" and is_estimator(_built(ref)):
        from edgeml.exporter.source import sklearn

        return sklearn.describe(msgspec.to_builtins(msgspec.structs.replace(ref, kind="sklearn-py")))
    model = load(ref)
    torch = _torch()
    digest, size = identity(Path(ref.path))
    whole = digest
    if ref.kind == "torch":
        state = {name: sha256_hex(np.ascontiguousarray(values).tobytes()) for name, values in _weights(model.module)}
        digest = sha256_hex(encode_json({"file": digest, "state": state}))
        unsaved = [sha256_hex(tensor.detach().numpy().tobytes()) for tensor in _unsaved(torch, model)]
        whole = sha256_hex(encode_json([digest, unsaved, _code(set(sys.modules) - known)]))
    described = SourceModel(ref.kind, model.signature, digest, size, libraries={"torch": version("torch")}, fingerprint=whole)
    return msgspec.to_builtins(described)


def _built(source: SourceRef) -> Any:
    """What the factory gives, without the examples it may give too; `None` if it fails, which `load` reports."""
    try:
        made = build(source)
    except Exception:  # noqa: BLE001 - the user's own code
        return None
    return made[0] if isinstance(made, tuple) and made else made


def _unsaved(torch: Any, model: TorchModel) -> list[Any]:
    """Tensors that a state dictionary leaves out, and the examples."""
    parts = [(f"{name}.{key}", value) for name, part in model.module.named_modules() for key, value in vars(part).items()]
    parts += model.module.named_buffers()
    return [*model.examples, *(value for _, value in parts if isinstance(value, torch.Tensor))]


def _code(modules: Iterable[str]) -> dict[str, str]:
    """Digests of the Python files that a factory brought in; torch's own are known by its version."""
    files = {name: getattr(sys.modules[name], "__file__", None) for name in modules if not name.startswith("torch.")}
    return {name: identity(Path(file))[0] for name, file in files.items() if file and file.endswith(".py")}


def reference(source: dict[str, Any], inputs: str, out: str) -> None:
    """Job: run the source on the samples of one .npz, write its outputs to another; the first axis counts samples."""
    torch = _torch()
    model = load(msgspec.convert(source, SourceRef))
    feeds = read_arrays(inputs, names(model.signature.inputs))
    count = CHUNK if model.any_batch else 1
    calls = []
    with torch.no_grad():
        for start in range(0, len(next(iter(feeds.values()))), count):
            tensors = [
                torch.from_numpy(feed(feeds[spec.name], spec, start, count).copy(order="C")) for spec in model.signature.inputs
            ]
            calls.append([tensor.numpy() for tensor in model.module(*tensors)])
    write_arrays(out, gather(calls, model.signature))
