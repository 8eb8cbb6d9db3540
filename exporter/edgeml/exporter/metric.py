"""What `--metric` names: a metric of ours by its word, or a function of the user's by `file.py:function`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec

from edgeml.wire.errors import PlanError

MetricKind = Literal["auto", "top", "auc", "f1", "r2", "mse", "mae", "call"]
CLASSES: Final[frozenset[MetricKind]] = frozenset({"top", "auc", "f1"})  # of a classification
VALUES: Final[frozenset[MetricKind]] = frozenset({"r2", "mse", "mae"})  # of a regression
MOST_K: Final = 1000


class Metric(msgspec.Struct, frozen=True):
    """`k` belongs to "top", `path` and `function` to "call". "auto" is top-1 for classes and R2 for values."""

    kind: MetricKind = "auto"
    k: int = 1
    path: str = ""
    function: str = ""

    @property
    def name(self) -> str:
        """As reports and manifests say it: without folders."""
        if self.kind == "call":
            return f"{Path(self.path).name}:{self.function}"
        return f"top{self.k}" if self.kind == "top" else self.kind

    @property
    def needs_labels(self) -> bool:
        return self.kind != "auto" and self != TOP1


AUTO: Final = Metric()
TOP1: Final = Metric("top", 1)


def parse_metric(text: str) -> Metric:
    """Read what was typed.

    Raises:
        PlanError: it names no metric, or no file.
    """
    if found := re.fullmatch(r"top-?([1-9]\d{0,3})", text):
        if int(found[1]) <= MOST_K:
            return Metric("top", int(found[1]))
    elif text != "call" and text in get_args(MetricKind) and text != "top":
        return msgspec.convert({"kind": text}, Metric)
    file, colon, function = text.rpartition(":")
    if not colon or not file.endswith(".py") or not function.isidentifier():
        raise PlanError("--metric", expected="top1, top5, auc, f1, r2, mse, mae or file.py:function", got=repr(text))
    if not Path(file).is_file():
        raise PlanError(f"--metric {text!r}: no file {file!r}", hint="give the file's path, then ':' and the function's name")
    return Metric("call", path=str(Path(file).absolute()), function=function)
