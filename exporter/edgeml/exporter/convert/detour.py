"""The way round when a converter refuses a TensorFlow graph: by ONNX to torch, whose converters keep recurrent layers whole.

The source's worker writes the ONNX in place of the file that was asked for and says why; the worker of the format, where torch
can be seen, goes on from there with its `from_onnx`. A loop that is left in the ONNX is written out step by step: tf2onnx knows
an LSTM by its loop, but not every GRU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edgeml.exporter.convert.onnx import from_tensorflow
from edgeml.exporter.source.model import SourceRef
from edgeml.wire.errors import EdgemlError


class Detour(msgspec.Struct, frozen=True):
    """The answer of a conversion whose file is ONNX: `refusal` is why, `hint` what its user may do should this way end too."""

    refusal: str
    hint: str | None = None

    @property
    def note(self) -> str:
        return f"converted by way of ONNX and torch: {self.refusal}"


def to_onnx(source: dict[str, Any], out: str, refusal: EdgemlError) -> dict[str, Any]:
    """Write the ONNX of a TensorFlow source that was refused; gives a `Detour`.

    Raises:
        EdgemlError: the refusal, where ONNX cannot hold the model either.
    """
    try:
        from_tensorflow(source, out)
        if _has_loop(out):
            _write_out(source, out)
    except EdgemlError:
        raise refusal from None
    answer: dict[str, Any] = msgspec.to_builtins(Detour(refusal.what, refusal.hint))
    return answer


def _write_out(source: dict[str, Any], out: str) -> None:
    from edgeml.exporter.source.tensorflow import load, unrolled

    model = load(msgspec.convert(source, SourceRef))
    if model.loops:
        with unrolled(model):
            from_tensorflow(source, out)


def _has_loop(path: str) -> bool:
    import onnx

    return any(node.op_type == "Loop" for node in onnx.load_model_from_string(Path(path).read_bytes()).graph.node)
