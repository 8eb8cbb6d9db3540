"""Builds one-operation Core ML programs and runs them: what the tests of the interpreter share."""

from __future__ import annotations

import gc
import importlib
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeml.exporter.mil import pack_mlpackage
from edgeml.exporter.mil.backend import open_mil
from edgeml.runtime.backends import Array, EngineOptions

Build = Callable[..., Any]
Expect = Callable[..., Any]


def coremltools() -> Any:
    """coremltools without TensorFlow, which it imports where it can (9 s, 1 GB)."""
    if "coremltools" not in sys.modules:
        hidden = sys.modules.get("tensorflow")
        sys.modules["tensorflow"] = None  # type: ignore[assignment]  # Python's own way to say "not there"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module("coremltools")
        finally:
            if hidden is None:
                del sys.modules["tensorflow"]
            else:
                sys.modules["tensorflow"] = hidden
        gc.freeze()  # each conversion collects garbage: without this, 0.3 s among what the imports left
    return sys.modules["coremltools"]


@dataclass(frozen=True, slots=True)
class Case:
    """One operation: `build(mb, *inputs)` makes it, `expect(*inputs)` says what it must give."""

    op: str
    build: Build
    inputs: tuple[Array, ...]
    expect: Expect
    label: str = ""
    target: str = "iOS17"
    tolerance: float = 1e-5
    fixed: bool = True  # whether the operation can also take its inputs as constants

    def __str__(self) -> str:
        return f"{self.op}-{self.label}" if self.label else self.op


def case(op: str, build: Build, inputs: Array | Sequence[Array], expect: Expect, label: str = "", **more: Any) -> Case:
    return Case(op, build, (inputs,) if isinstance(inputs, np.ndarray) else tuple(inputs), expect, label, **more)


def package(build: Build, inputs: Sequence[Array], target: str = "iOS17", passes: Any = None) -> bytes:
    """The packed program that `build` makes of inputs x0, x1, … of these shapes and dtypes."""
    return pack(convert(build, inputs, target, passes))


def convert(build: Build, inputs: Sequence[Array], target: str = "iOS17", passes: Any = None) -> Any:
    ct = coremltools()
    from coremltools.converters.mil.mil import Builder, Function, Program, types

    words = {
        "float32": types.fp32,
        "float16": types.fp16,
        "int32": types.int32,
        "int8": types.int8,
        "uint8": types.uint8,
        "bool": types.bool,
    }
    specs = {f"x{i}": Builder.placeholder(value.shape, words[value.dtype.name]) for i, value in enumerate(inputs)}
    program = Program()
    opset = getattr(ct.target, target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Function(specs, opset_version=opset) as function:
            made = build(Builder, *(function.inputs[name] for name in specs))
            outputs = list(made) if isinstance(made, (tuple, list)) else [made]
            function.set_outputs([Builder.identity(x=out, name=f"y{i}") for i, out in enumerate(outputs)])
        program.add_function("main", function)
        return ct.convert(
            program,
            source="milinternal",
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=opset,
            pass_pipeline=passes or ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )


@contextmanager
def forgotten_folders() -> Iterator[None]:
    """coremltools leaves temporary folders to the garbage collector, which complains: collected in here, it may."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


def pack(model: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.mlpackage"
        model.save(str(path))
        return pack_mlpackage(path)


def run(model: bytes, *inputs: Array) -> list[Array]:
    """The outputs in the order of the program."""
    return open_mil(model, EngineOptions()).run(inputs)


def inferred(case: Case) -> Any:
    """What coremltools itself computes when every input is a constant; `None` where it does not say.

    It gets copies: the inference of `thresholded_relu` writes into its input.
    """
    coremltools()
    from coremltools.converters.mil.mil import Builder, Function

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dummy = Builder.placeholder((1,))
        with Function({"unused": dummy}, opset_version=getattr(coremltools().target, case.target)):
            made = case.build(Builder, *(Builder.const(val=value.copy()) for value in case.inputs))
            outputs = list(made) if isinstance(made, (tuple, list)) else [made]
            return None if any(out.val is None for out in outputs) else [np.asarray(out.val) for out in outputs]
