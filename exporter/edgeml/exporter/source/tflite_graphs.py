"""TFLite flatbuffers as objects: parsed, the graph of a signature put first, written again with aligned weights."""

from __future__ import annotations

from typing import Any, Final

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
    """The file's `ModelT`.

    Raises:
        ModelError: its tables lead nowhere.
    """
    try:
        return schema().ModelT.InitFromPackedBuf(data, 0)
    except MissingExtraError:
        raise
    except Exception as error:
        raise ModelError(f"not a TFLite model: {type(error).__name__}") from error


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
    """The bytes of a `ModelT`, buffers aligned as the schema asks for."""
    import flatbuffers

    class Aligned(flatbuffers.Builder):  # type: ignore[misc]  # the library is untyped
        """The generated code forgets `force_align: 16` on buffers; kernels read weights in such steps."""

        def CreateNumpyVector(self, x: Any) -> Any:  # noqa: N802 - the library's name
            if x.dtype != "uint8":
                return super().CreateNumpyVector(x)
            self.StartVector(1, x.size, ALIGNMENT)
            head = self.head = self.Head() - x.size
            self.Bytes[head : head + x.size] = x.tobytes()
            self.vectorNumElems = x.size
            return self.EndVector()

    builder = Aligned(1 << 16)
    builder.Finish(parsed.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())
