"""Which kind of source a path is, by content first and name second; nothing is loaded here."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from edgeml.exporter.source.archive import file_names
from edgeml.exporter.source.model import Kind, SourceRef
from edgeml.exporter.source.saved_files import check_folder
from edgeml.wire.errors import EdgemlError, ModelError, PlanError

HDF5_MAGIC: Final = b"\x89HDF\r\n\x1a\n"
ZIP_MAGIC: Final = b"PK\x03\x04"
TFLITE_MAGIC: Final = b"TFL3"  # at byte 4, after the flatbuffer's root offset
PICKLE_MAGIC: Final = b"\x80"  # protocol 2 and later
PICKLED_BY_TORCH: Final = frozenset({".pt", ".pth"})  # before torch 1.6, without a zip around them
PICKLED_BY_SKLEARN: Final = frozenset({".pkl", ".pickle", ".joblib"})
SIGNED: Final[frozenset[Kind]] = frozenset({"savedmodel", "tflite"})  # kinds that may hold several signatures
KNOWN: Final = ".h5, .keras, a SavedModel folder, file.py:factory, .pt2, .onnx, .tflite, .joblib"


def locate(
    text: str, *, trust: bool = False, example: str | None = None, seed: int = 0, signature: str | None = None
) -> SourceRef:
    """Find the source named on a command line: a path, or `file.py:factory`. A factory's kind shows when it has run.

    Raises:
        ModelError: missing, empty, truncated, or nothing known.
        PlanError: a signature was named for a kind of source that has only one.
    """
    stem, colon, factory = text.rpartition(":")
    if colon and stem.endswith(".py"):
        if not Path(stem).is_file():
            raise ModelError(f"no file {stem!r}")
        if not factory.isidentifier():
            raise ModelError(f"factory {factory!r} is not a function name", hint="write file.py:function")
        return _signed(SourceRef(stem, "torch", factory, trust=trust, example=example, seed=seed, signature=signature))
    path = Path(text)
    if text.endswith(".py"):
        raise ModelError(f"{text!r} is Python code", hint="name the function that builds the model: file.py:function")
    kind = _kind(path, trust=trust)
    return _signed(SourceRef(text, kind, trust=trust, example=example, seed=seed, signature=signature))


def _signed(ref: SourceRef) -> SourceRef:
    if ref.signature is not None and ref.kind not in SIGNED:
        raise PlanError("--signature is for SavedModel and TFLite sources", hint="leave it out")
    return ref


def _kind(path: Path, *, trust: bool) -> Kind:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return _folder_kind(path)
        if not stat.S_ISREG(mode):  # a FIFO would hold the reader, a device would never end
            raise ModelError(f"{str(path)!r} is no regular file")
        with path.open("rb") as file:
            head = file.read(64)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelError(f"no file {str(path)!r}") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return _file_kind(path, head, trust=trust)


def _file_kind(path: Path, head: bytes, *, trust: bool) -> Kind:
    if head.startswith(HDF5_MAGIC):
        return "keras-h5"
    if head.startswith(ZIP_MAGIC):
        return _zip_kind(path, trust=trust)
    if head[4:8] == TFLITE_MAGIC:
        return "tflite"
    if path.suffix == ".onnx" and head:
        return "onnx"
    if trust and head and path.suffix in PICKLED_BY_SKLEARN:
        return "sklearn"  # joblib may have compressed it, so the first bytes say nothing
    if trust and head.startswith(PICKLE_MAGIC) and path.suffix in PICKLED_BY_TORCH:
        return "torchscript"
    raise _refusal(path, head)


def _refusal(path: Path, head: bytes) -> EdgemlError:
    if not head:
        return ModelError(f"{str(path)!r} is empty")
    if path.suffix in PICKLED_BY_SKLEARN:
        return ModelError(f"{str(path)!r} is a pickle: loading it may run code", hint="pass --trust if you wrote it")
    if head.startswith(PICKLE_MAGIC):
        return ModelError(
            f"{str(path)!r} is a pickle: loading it may run code",
            hint="give file.py:factory that builds the module and loads it",
        )
    if path.suffix in {".h5", ".hdf5", ".keras", ".pt2", ".pt", ".pth", ".tflite"}:
        return ModelError(f"{str(path)!r} is truncated or not what its name says", hint="fetch or save it again")
    return ModelError(f"{str(path)!r} is no model known here", expected=KNOWN)


def pickle_refusal(path: Path) -> ModelError:
    return ModelError(
        f"{path.name!r} is a pickle: loading it may run code",
        hint="pass --trust if you wrote it, or save it with torch.export.save(…, 'model.pt2')",
    )


def _folder_kind(path: Path) -> Kind:
    if (path / "saved_model.pb").is_file():
        check_folder(path)
        return "savedmodel"
    raise ModelError(f"folder {str(path)!r} is not a SavedModel", expected="saved_model.pb in it", got="none")


def _zip_kind(path: Path, *, trust: bool) -> Kind:
    names = file_names(path)
    if "config.json" in names and "metadata.json" in names:
        return "keras"
    if any(name.endswith(("models/model.json", "serialized_exported_program.json")) for name in names):
        return "torch-pt2"
    if any(name.endswith(("data.pkl", "constants.pkl")) for name in names):
        if not trust:
            raise pickle_refusal(path)
        return "torchscript"
    if "manifest.sha256" in names:
        raise ModelError(f"{str(path)!r} is a bundle, which was exported already", hint="look at it with `edgeml inspect`")
    raise ModelError(f"{str(path)!r} is a zip, but no model known here", expected=KNOWN)
