"""A SavedModel's folder and graphs, looked at before TensorFlow is imported: loading one already runs its initializers."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from edgeml.runtime.protobuf import messages, text
from edgeml.wire.errors import ModelError

FILES_LIMIT: Final = 10_000
FOLDER_LIMIT_BYTES: Final = 8 * 1024**3
TOUCHES_MACHINE: Final = frozenset(
    {"PyFunc", "PyFuncStateless", "EagerPyFunc", "ReadFile", "WriteFile", "MatchingFiles", "ReadFileV2", "PrintV2"}
)


def check_folder(folder: Path) -> None:
    """Raises:
    ModelError: links, special files, or more than a model for a device has.
    """
    total = 0
    for count, path in enumerate(folder.rglob("*")):
        about = path.lstat()
        if stat.S_ISLNK(about.st_mode):
            raise ModelError(f"{str(folder)!r} holds a link: {path.name!r}", hint="copy the file itself into the folder")
        if not stat.S_ISREG(about.st_mode) and not stat.S_ISDIR(about.st_mode):
            raise ModelError(f"{str(folder)!r} holds {path.name!r}, which is no regular file")
        total += about.st_size if stat.S_ISREG(about.st_mode) else 0
        if count >= FILES_LIMIT or total > FOLDER_LIMIT_BYTES:
            expected = f"at most {FILES_LIMIT} files and {FOLDER_LIMIT_BYTES} bytes"
            raise ModelError(f"{str(folder)!r} is too large", expected=expected, got="more")


def check_graphs(folder: Path, *, trust: bool) -> None:
    """Raises:
    ModelError: not a SavedModel, or one that would read files, run code, or reach outside its folder.
    """
    try:
        data = memoryview((folder / "saved_model.pb").read_bytes())
        graphs = list(messages(data, 2))  # MetaGraphDef
        assets = [PurePosixPath(text(asset, 2)) for graph in graphs for asset in messages(graph, 6)]
        operators = {operator for graph in graphs for operator in _operators(graph)}
    except ModelError as error:
        raise ModelError(f"{folder.name!r} cannot be loaded: {error}", hint="fetch or save it again") from error
    for name in assets:
        if name.is_absolute() or ".." in name.parts:
            raise ModelError(f"asset {str(name)!r} lies outside the SavedModel", hint="refused")
    if not trust and (touching := sorted(operators & TOUCHES_MACHINE)):
        raise ModelError(f"operator {touching[0]!r} reads files or runs code", hint="pass --trust if you made the model")


def _operators(graph: memoryview) -> Iterator[str]:
    """Operators of a MetaGraphDef: of its graph, and of every function in the graph's library."""
    for definition in messages(graph, 2):
        for node in messages(definition, 1):
            yield text(node, 2)
        for library in messages(definition, 2):
            for function in messages(library, 1):
                for node in messages(function, 3):
                    yield text(node, 2)
