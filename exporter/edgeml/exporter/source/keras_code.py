"""What in a Keras file would run code or reach outside it, found before Keras is imported."""

from __future__ import annotations

from typing import Any, Final

from edgeml.wire.errors import ModelError

WEIGHTS_LIMIT_BYTES: Final = 4 * 1024**3  # what all arrays of a file may take once they are read
_LAMBDAS: Final = frozenset({"Lambda", "TFOpLambdaCode", "__lambda__"})
_CALLS: Final = frozenset({"TFOpLambda", "ClassMethod"})  # layers of Keras 2 that call a TensorFlow function by its name
_HARMLESS: Final = frozenset(
    {"math", "nn", "linalg", "image", "signal", "bitwise", "dtypes", "__operators__", "quantization", "random", "sets",
     "strings", "ragged", "sparse", "keras.backend", "keras.activations", "RaggedTensor", "sparse.SparseTensor"}
)  # fmt: skip
_TOUCHING: Final = frozenset(
    {"py_function", "numpy_function", "load_library", "load_op_library", "print", "function", "Module", "Graph", "init_scope"}
)  # functions of TensorFlow's top level that are not arithmetic


def check_config(config: object) -> None:
    """Raises:
    ModelError: a layer of the architecture carries code, or calls a function that is no arithmetic.
    """
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(value)
        if not isinstance(value, dict):
            continue
        waiting.extend(value.values())
        kind, own = value.get("class_name"), value.get("config")
        inner: dict[str, Any] = own if isinstance(own, dict) else {}
        if kind in _LAMBDAS:
            raise ModelError(
                f"layer {str(inner.get('name', 'lambda'))!r} is a Lambda: loading it runs code from the file",
                hint="pass --trust if you wrote the file",
            )
        if kind in _CALLS:
            symbol = str(inner.get("function") or inner.get("cls_symbol") or "")
            if not _is_arithmetic(symbol):
                raise ModelError(
                    f"layer {str(inner.get('name', kind))!r} calls {symbol[:80]!r}: it may touch files",
                    hint="pass --trust if you wrote the file",
                )


def check_weights(file: Any) -> None:
    """Hold an open HDF5 file's links and sizes to what a weight file needs.

    Raises:
        ModelError: it would read other files, or promises more than it may.
    """
    import h5py

    total = 0

    def look(name: str, link: Any) -> ModelError | None:
        """The refusal, which ends the visit: h5py lets no exception through its callbacks."""
        nonlocal total
        if isinstance(link, h5py.ExternalLink):
            return ModelError(f"{name!r} is a link to the file {link.filename!r}", hint="save the whole model into one file")
        found = file.get(name) if isinstance(link, h5py.HardLink) else None
        if not isinstance(found, h5py.Dataset):
            return None
        if found.external or found.is_virtual:
            return ModelError(f"{name!r} is kept in another file", hint="save the whole model into one file")
        total += (found.size or 0) * max(found.dtype.itemsize, 1)
        if total > WEIGHTS_LIMIT_BYTES:
            return ModelError(f"arrays up to {name!r}", expected=f"at most {WEIGHTS_LIMIT_BYTES} bytes", got=str(total))
        return None

    refusal: ModelError | None = file.visititems_links(look)
    if refusal is not None:
        raise refusal


def _is_arithmetic(symbol: str) -> bool:
    path = symbol.removeprefix("compat.v1.").removeprefix("compat.v2.")
    if "." not in path:
        return path.isidentifier() and path not in _TOUCHING
    return any(path.startswith(f"{place}.") for place in _HARMLESS)
