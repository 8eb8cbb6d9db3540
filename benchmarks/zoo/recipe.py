"""How one zoo model is made: everything its weights depend on, and the folder that they are kept in."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from benchmarks.zoo.samples import Splits
from benchmarks.zoo.scores import Score

HERE: Final = Path(__file__).resolve().parent
CACHE: Final = Path.home() / ".cache" / "edgeml" / "zoo"
Kind = Literal["torch", "torch-pt2", "torchscript", "onnx", "keras", "keras-h5", "savedmodel", "tflite", "sklearn"]
TORCH: Final[frozenset[Kind]] = frozenset({"torch", "torch-pt2", "torchscript", "onnx"})
Loss = Literal["classes", "logits", "mask", "boxes"]
FILES: Final[dict[str, str]] = {
    "torch": "model.py:build",
    "torch-pt2": "model.pt2",
    "torchscript": "model.pt",
    "onnx": "model.onnx",
    "keras": "model.keras",
    "keras-h5": "model.h5",
    "savedmodel": "saved",
    "tflite": "model.tflite",
    "sklearn": "model.pkl",
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A zoo model.

    `net` is "module:name" in this folder, or the path of a published model. `chance` is what guessing scores; `metric`
    is what an export is told to hold, where none of its own fits. `roll` is how far a training sample is shifted at most along
    its axis `roll_axis` (of the first input, 0 = samples).
    """

    name: str
    what: str
    kind: Kind
    net: str
    splits: Callable[[], Splits]
    score: Score
    chance: float
    loss: Loss = "classes"
    epochs: int = 0
    rate: float = 3e-3
    roll: int = 0
    roll_axis: int = 1
    seed: int = 1
    metric: str = "auto"

    @property
    def published(self) -> bool:
        return self.epochs == 0

    @property
    def trusted(self) -> bool:
        """Whether loading the source runs code from it, so that an export must be told to."""
        return self.kind in {"torchscript", "sklearn"}

    @property
    def folder(self) -> Path:
        return CACHE / f"{self.name}-{self.digest()[:12]}"

    @property
    def source(self) -> str:
        """What `edgeml export` is given."""
        if self.published:
            from benchmarks.zoo.samples import need

            return str(need(self.net))
        return str(self.folder / FILES[self.kind])

    def digest(self) -> str:
        """Of the settings and of the code that makes samples and network, without comments and docstrings."""
        module = self.net.partition(":")[0]
        trained_by = "torch" if self.kind in TORCH else "sklearn" if self.kind == "sklearn" else "keras"
        files = [self.splits.__module__.rpartition(".")[2] + ".py", f"{trained_by}_training.py"]
        files += [] if self.published else [f"{module}.py"]
        made_by = self.splits.__name__ if hasattr(self.splits, "__name__") else str(self.splits)
        settings = [self.kind, self.net, made_by, self.loss, self.epochs, self.rate, self.roll, self.roll_axis, self.seed]
        code = [_code(HERE / file) for file in files]
        return hashlib.sha256(json.dumps([settings, code]).encode()).hexdigest()


def _code(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()
