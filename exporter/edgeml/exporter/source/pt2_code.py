"""What in a `.pt2` file would run as code, found without torch.

`torch.export.load` trusts its file: it falls back to a full unpickling where the safe one fails, evaluates shape expressions as
Python, looks operators up as attributes of torch by any path, and loads compiled libraries. A file of weights and standard
operators needs none of that.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from edgeml.exporter.source.archive import read_text
from edgeml.wire.errors import ModelError

SAFE_PICKLES: Final = {
    "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"
}  # in the environment: torch then unpickles tensors and nothing else
_COMPILED: Final = "/data/aotinductor/"
_OBJECTS: Final = ("custom_obj", "opaque_obj")  # prefixes of constants that are pickled whole
_TARGET: Final = re.compile(
    r"torch\.ops\.(?!load_library|import_module|loaded_libraries)[A-Za-z]\w*\.\w+(\.[A-Za-z]\w*)?"
    r"|_operator\.(?!attrgetter|methodcaller|itemgetter|call\b)[A-Za-z]\w*|math\.[A-Za-z]\w*|torch\.sym_\w+|torch\._sym_\w+"
)
_FILES: Final = re.compile(r"\bfrom_file\b|\bsave\b|\bload\b")  # operators that open files
_WORD: Final = re.compile(r"[^\W\d]\w*")
_SYMBOL: Final = re.compile(r"[a-z]{1,4}_?\d+")  # s0, u3, zuf0
_EXPRESSION: Final = re.compile(r"[\w\s+\-*/%(),<>=!&|~]*|-?\d+\.\d+")
_ATOM: Final = re.compile(
    r"Symbol\('[A-Za-z_]\w*'(, \w+=(True|False))*\)|Float\('-?[\d.e+-]+', precision=\d+\)"
)  # as sympy's srepr
_FUNCTION_NAMES: Final = """
FloorDiv ModularIndexing Where PythonMod Mod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural FloatPow
FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat Identity
Add Mul Pow Integer Rational Equality Unequality GreaterThan LessThan StrictGreaterThan StrictLessThan ITE
Max Min Abs Eq Ne Lt Le Gt Ge And Or Not True False floor ceiling oo int_oo
"""
_FUNCTIONS: Final = frozenset(_FUNCTION_NAMES.split())


def check_pt2(path: Path) -> None:
    """Raises:
    ModelError: loading the file would run code from it.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for name in names:
            if _COMPILED in f"/{name}":
                raise _refusal(path, f"the compiled library {name!r}")
        for name in names:
            if name.endswith(".json"):
                what = next(_code(json.loads(read_text(archive, name))), None)
                if what is not None:
                    raise _refusal(path, what)


def _refusal(path: Path, what: str) -> ModelError:
    return ModelError(f"{path.name!r} holds {what}: loading it may run code", hint="pass --trust if you wrote it")


def _code(root: Any) -> Iterator[str]:
    """Descriptions of what would run."""
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, dict):
            waiting.extend(value.values())
            target, text, place = value.get("target"), value.get("expr_str"), value.get("path_name")
            if isinstance(target, str) and (not _TARGET.fullmatch(target) or _FILES.search(target)):
                yield f"a call of {target[:80]!r}"
            if isinstance(text, str) and not _is_arithmetic(text):
                yield f"the expression {text[:80]!r}"
            if isinstance(place, str) and place.startswith(_OBJECTS):
                yield f"the pickle {place[:80]!r}"


def _is_arithmetic(text: str) -> bool:
    plain = _ATOM.sub("0", text)
    words = _WORD.findall(plain)
    return bool(_EXPRESSION.fullmatch(plain)) and all(_SYMBOL.fullmatch(word) or word in _FUNCTIONS for word in words)
