"""TFLite flatbuffers as objects: parsed, the graph of a signature put first, written again with aligned weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from edgeml.wire.errors import MissingExtraError, ModelError

IDENTIFIER: Final = b"TFL3"
ALIGNMENT: Final = 16  # bytes, of every buffer
GRAPH_INDEX: Final = (
    "thenSubgraphIndex", "elseSubgraphIndex", "condSubgraphIndex", "bodySubgraphIndex", "initSubgraphIndex",
    "decompositionSubgraphIndex", "comparatorSubgraphIndex",
)  # fmt: skip
"""Fields of operators' options that name a graph of the file by its position."""


def schema() -> Any:
    try:
        from ai_edge_litert import schema_py_generated
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "ai_edge_litert", "export") from error
    return schema_py_generated


def parse_model(data: bytes) -> Any:
    """The file's `ModelT`, with buffers that stand behind the tables brought inside: ai-edge-quantizer writes large ones there.

    Raises:
        ModelError: its tables lead nowhere.
    """
    try:
        parsed = schema().ModelT.InitFromPackedBuf(data, 0)
    except MissingExtraError:
        raise
    except Exception as error:
        raise ModelError(f"not a TFLite model: {type(error).__name__}") from error
    for buffer in parsed.buffers or ():
        if buffer.data is None and buffer.offset > 1:
            if buffer.offset + buffer.size > len(data):
                raise ModelError(
                    "a TFLite buffer ends beyond the file", expected=f"at most {len(data)}", got=f"{buffer.offset}"
                )
            buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return parsed


def put_first(parsed: Any, index: int) -> None:
    """Exchange graph `index` with the first one; whatever names a graph by its position follows."""

    def moved(position: int) -> int:
        return {0: index, index: 0}.get(position, position)

    graphs = parsed.subgraphs
    graphs[0], graphs[index] = graphs[index], graphs[0]
    for graph in graphs:
        for operator in graph.operators or ():
            for options in (operator.builtinOptions, operator.builtinOptions2):
                for name in GRAPH_INDEX:
                    if options is not None and (position := vars(options).get(name)) is not None:
                        setattr(options, name, moved(position))
    for definition in parsed.signatureDefs or ():
        definition.subgraphIndex = moved(definition.subgraphIndex)


def pack_model(parsed: Any) -> bytes:
    """The bytes of a `ModelT`: buffers aligned as the schema asks for, equal shapes, scales and zero points written once."""
    import flatbuffers

    class Aligned(flatbuffers.Builder):  # type: ignore[misc]  # the library is untyped
        """The generated code forgets `force_align: 16` on buffers; kernels read weights in such steps."""

        def __init__(self, size: int) -> None:
            super().__init__(size)
            self.written: dict[tuple[str, bytes], Any] = {}

        def CreateNumpyVector(self, x: Any) -> Any:  # noqa: N802 - the library's name
            if x.dtype != "uint8":
                key = (x.dtype.str, x.tobytes())
                if key not in self.written:
                    self.written[key] = super().CreateNumpyVector(x)
                return self.written[key]
            self.StartVector(1, x.size, ALIGNMENT)
            head = self.head = self.Head() - x.size
            self.Bytes[head : head + x.size] = x.tobytes()
            self.vectorNumElems = x.size
            return self.EndVector()

    builder = Aligned(1 << 16)
    builder.Finish(parsed.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def with_less(data: bytes) -> bytes:
    """The same file with equal buffers stored once and short names for constants.

    A channel of an int8 layer has 24 bytes of scales and zero points beside its weights, most of them equal to others.
    """
    parsed = parse_model(data)
    _store_once(parsed)
    for number, graph in enumerate(parsed.subgraphs):
        names = {tensor.name for tensor in graph.tensors}
        ends = {int(index) for index in (*graph.inputs, *graph.outputs)}
        short = (f"{number or ''}c{count}".encode() for count in itertools.count())
        for index, tensor in enumerate(graph.tensors):
            if tensor.buffer and parsed.buffers[tensor.buffer].data is not None and index not in ends:
                tensor.name = next(name for name in short if name not in names)
    return pack_model(parsed)


def _store_once(parsed: Any) -> None:
    """Tensors with equal bytes read the same buffer. Buffer 0 is the empty one, by the schema."""
    first: dict[bytes, int] = {}
    moved: dict[int, int] = {}
    kept: list[Any] = []
    used = {tensor.buffer for graph in parsed.subgraphs for tensor in graph.tensors}
    used |= {0, *(int(index) for index in _some(parsed.metadataBuffer)), *(entry.buffer for entry in _some(parsed.metadata))}
    for index, buffer in enumerate(parsed.buffers):
        if index not in used:
            continue
        content = b"" if buffer.data is None else bytes(buffer.data)
        if index and content and content in first:
            moved[index] = first[content]
            continue
        moved[index] = len(kept)
        if content:
            first[content] = len(kept)
        kept.append(buffer)
    parsed.buffers = kept
    for owner in (*(tensor for graph in parsed.subgraphs for tensor in graph.tensors), *_some(parsed.metadata)):
        owner.buffer = moved[owner.buffer]
    if parsed.metadataBuffer is not None:
        parsed.metadataBuffer = [moved[int(index)] for index in parsed.metadataBuffer]


def _some(values: Iterable[Any] | None) -> Iterable[Any]:
    return () if values is None else values
