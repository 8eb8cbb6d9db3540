"""Bundles whose digests all hold and whose manifest lies: whoever can write one must not be able to crash a device."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgeml.runtime.bundle import open_bundle, unpack_bundle, write_bundle
from edgeml.runtime.choose import this_board
from edgeml.runtime.golden import self_test
from edgeml.runtime.model import Model
from edgeml.runtime.session import open_session
from edgeml.wire.canonical import sha256_hex
from edgeml.wire.errors import EdgemlError
from edgeml.wire.packed import digest_file
from tests.unit.bundles import make_bundle

VALUES: tuple[Any, ...] = (
    -1, 0, 1, 2, 3, 7, 2**31, 2**40, 2**63, -0.5, 0.0, 1e-300, 1e308, "", "batch", "x", "n", "../../etc/passwd", "a" * 300,
    None, [], {}, [0, 0], [1, 0], [-1], ["batch"], ["batch", 4], [4, "batch"], [1, 2, 3], "int8", "uint8", "int64", "float16",
    "bool", "tflite", "onnx", "sigmoid", True,
)  # fmt: skip
MUTATIONS = 600


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found += paths(inner, (*path, index))
    return found


def mutate(manifest: Any, chance: random.Random) -> str:
    """Change one place of a decoded manifest; gives what was done, for the failure's message."""
    place = chance.choice(paths(manifest))
    parent = manifest
    for step in place[:-1]:
        parent = parent[step]
    kind = chance.random()
    if kind < 0.75:
        parent[place[-1]] = chance.choice(VALUES)
    elif kind < 0.9:
        del parent[place[-1]]
    elif isinstance(parent, list):
        parent.append(parent[place[-1]])
    return f"{place} in {msgspec.json.encode(manifest).decode()}"


def reseal(folder: Path, manifest: Any) -> None:
    data = msgspec.json.encode(manifest, order="sorted")
    (folder / "manifest.json").write_bytes(data)
    (folder / "manifest.sha256").write_bytes(digest_file(sha256_hex(data)))


def use(folder: Path) -> None:
    """All that a device does with a bundle."""
    with open_bundle(folder) as bundle:
        this_board()
        for artifact in bundle.manifest.artifacts:
            try:
                with open_session(bundle, artifact) as session:
                    self_test(bundle, artifact, session)
                    Model(bundle.manifest, session).run({"x": np.zeros(4, np.float32)})
                    Model(bundle.manifest, session).run({"x": np.zeros((3, 4), np.float32)})
            except EdgemlError:
                continue


@pytest.mark.parametrize("seed", range(4))
def test_a_lying_manifest_is_an_error_of_ours_never_a_crash(tmp_path: Path, seed: int) -> None:
    packed = make_bundle(tmp_path, artifacts=(("onnx", "fp32"), ("onnx", "int8")), defer_below=0.5)
    unpack_bundle(packed, tmp_path / "kept")
    original = (tmp_path / "kept" / "manifest.json").read_bytes()
    chance = random.Random(seed)
    opened = 0
    for _ in range(MUTATIONS // 4):
        manifest = msgspec.json.decode(original)
        done = mutate(manifest, chance)
        reseal(tmp_path / "kept", manifest)
        try:
            use(tmp_path / "kept")
            opened += 1
        except EdgemlError:
            continue
        except Exception as error:
            raise AssertionError(done) from error
    assert 0 < opened < MUTATIONS // 4


def test_checking_a_bundle_takes_constant_memory(tmp_path: Path) -> None:
    """32 MiB of artifact, a few MiB at most at any moment."""
    padding = bytes(32 * 2**20)
    with open_bundle(make_bundle(tmp_path)) as bundle:
        blobs = {tensor.sha256: bundle.blob(tensor.sha256) for tensor in bundle.manifest.golden_inputs}
        kept = msgspec.structs.replace(
            bundle.manifest.artifacts[0], sha256=sha256_hex(padding), bytes=len(padding), golden=None
        )
        manifest = msgspec.structs.replace(bundle.manifest, artifacts=(kept,))
    path = tmp_path / "large.edgeml"
    write_bundle(manifest, {**blobs, sha256_hex(padding): padding}, path)
    tracemalloc.start()
    try:
        open_bundle(path).close()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2**20
