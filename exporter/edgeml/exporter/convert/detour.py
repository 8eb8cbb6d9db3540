"""The way round when a converter refuses a TensorFlow graph: by ONNX to torch, whose converters keep recurrent layers whole.

The source's worker writes the ONNX in place of the file that was asked for and says why; the worker of the format, where torch
can be seen, goes on from there with its `from_onnx`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edgeml.exporter.convert.onnx import from_tensorflow
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
    except EdgemlError:
        raise refusal from None
    answer: dict[str, Any] = msgspec.to_builtins(Detour(refusal.what, refusal.hint))
    return answer
