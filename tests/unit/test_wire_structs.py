"""Structs are known before threads decode them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    path for folder in ("runtime/edgeml", "fleet/edgeml") for path in (ROOT / folder).rglob("*.py") if path.name != "structs.py"
)
RACE = """
import sys, threading
from edgeml.wire.manifest import Manifest
import msgspec

sys.setswitchinterval(1e-6)
text = b'{"schema":1,"name":"a","version":"1.0.0","signature":{"inputs":[],"outputs":[]},"source":{"kind":"x","sha256":"%s",\
"bytes":1},"exporter":{},"options":{},"seed":0,"artifacts":[],"reference":{"n":1}}' % (b"0" * 64)
together, read = threading.Barrier(8), []

def decode():
    together.wait()
    read.append(msgspec.json.decode(text, type=Manifest).name)

threads = [threading.Thread(target=decode) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(*read)
"""


def declares_structs(tree: ast.Module) -> bool:
    bases = {ast.unparse(base) for node in tree.body if isinstance(node, ast.ClassDef) for base in node.bases}
    return bool(bases & {"msgspec.Struct", "_Record"})


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_that_declares_structs_learns_them_at_import(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Expr)]
    assert not declares_structs(tree) or "learn(__name__)" in calls


def test_many_threads_that_decode_a_manifest_first_all_get_it() -> None:
    """Without `learn` more than half of these processes end with a segmentation fault."""
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", RACE], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.split()) == (0, ["a"] * 8)
