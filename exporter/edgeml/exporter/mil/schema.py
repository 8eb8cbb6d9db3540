"""The protobuf classes of Core ML's model format, without importing coremltools.

`import coremltools` costs seconds and hundreds of megabytes (it imports TensorFlow and torch where they are installed). Its
generated protobuf modules stand alone; they are loaded here from the installed package under a name of our own.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from edgeml.wire.errors import MissingExtraError, ModelError

_ALIAS: Final = "_edgeml_coreml_proto"


@cache
def _module(name: str) -> ModuleType:
    if "coremltools" in sys.modules:
        return importlib.import_module(f"coremltools.proto.{name}")
    if _ALIAS not in sys.modules:
        found = importlib.util.find_spec("coremltools")
        if found is None or found.origin is None:
            raise MissingExtraError("coremltools", "export")
        folder = Path(found.origin).parent / "proto"
        spec = importlib.util.spec_from_file_location(_ALIAS, folder / "__init__.py", submodule_search_locations=[str(folder)])
        if spec is None:
            raise MissingExtraError("coremltools", "export")
        sys.modules[_ALIAS] = importlib.util.module_from_spec(spec)  # its own code, which loads every format, is not run
    return importlib.import_module(f"{_ALIAS}.{name}")


def new_model() -> Any:
    """An empty `CoreML.Specification.Model`."""
    return _module("Model_pb2").Model()


def parse_model(data: bytes) -> Any:
    """The `CoreML.Specification.Model` message in `data`.

    Raises:
        ModelError: not such a message, or not an ML program.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no annotations

    model = new_model()
    try:
        model.ParseFromString(data)
    except (DecodeError, RecursionError) as error:
        raise ModelError(f"not a Core ML model: {error}") from error
    kind = model.WhichOneof("Type")
    if kind != "mlProgram":
        raise ModelError(
            "Core ML model", expected="an mlProgram", got=repr(kind), hint="convert it with convert_to='mlprogram'"
        )
    return model


@cache
def data_types() -> dict[int, str]:
    """MIL's data type numbers and our words for them."""
    enum = _module("MIL_pb2").DESCRIPTOR.enum_types_by_name["DataType"]
    return {value.number: value.name.lower() for value in enum.values}
