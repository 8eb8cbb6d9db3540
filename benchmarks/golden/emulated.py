"""Golden vectors on emulated processors: a healthy one is not refused, and one that saturates is.

| name | processor, and kernels |
|---|---|
| `cortex-a76` | Raspberry Pi 5, by the engines' own aarch64 wheels (`scripts/arm64`) |
| `haswell` | x86-64 without VNNI and AVX-512, by this environment's engines, without saturation as edgeml asks for there |
| `haswell-stock` | the same with ONNX Runtime's own choice: pairs of products saturate in 16 bits |

An emulator takes up to a minute a bundle; what engines answered there is kept, and held to the bundle's vectors as they are.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.golden.board import KERNELS
from benchmarks.golden.runs import Run, measured, verdict
from edgeml.runtime.backends import Array, EngineOptions, opener
from edgeml.runtime.bundle import Bundle, open_bundle
from edgeml.wire.contract import label
from edgeml.wire.manifest import Artifact

ROOT: Final = Path(__file__).resolve().parent.parent.parent
ARM64: Final = str(ROOT / "scripts" / "arm64")


@dataclass(frozen=True, slots=True)
class Held:
    """One artifact's answers there: why they are refused, and how much of the tightest bound they take (1: all of it)."""

    model: str
    artifact: str
    refused: str | None
    taken: float
    bound: str


def main(board: str, bundles: Sequence[Path], kept: Path, *, as_json: bool) -> int:
    held = [one for path in bundles for one in hold(board, path, kept)]
    refused = [one for one in held if one.refused is not None]
    if not as_json:
        for one in held:
            print(f"{one.model:22} {one.artifact:12} {one.refused or 'pass':6} {one.taken:6.1%} of the bound {one.bound}")
    worst = {name: max(one.taken for one in held if one.artifact == name) for name in sorted({one.artifact for one in held})}
    facts = {"on": board, "bundles": len(bundles), "artifacts": len(held), "refused": len(refused), "most_of_a_bound": worst}
    print(json.dumps(facts))
    return int(bool(refused))


def python(board: str) -> list[str]:
    """What runs Python there."""
    if board == "cortex-a76":
        return [ARM64, "python"]
    subprocess.run([ARM64, "prepare"], check=True)
    folder = subprocess.run([ARM64, "where"], capture_output=True, text=True, check=True).stdout.strip()
    return [f"{folder}/emulator/usr/bin/qemu-x86_64", "-cpu", "Haswell,-hle,-rtm", sys.executable]


def hold(board: str, path: Path, kept: Path) -> Iterator[Held]:
    with open_bundle(path) as bundle:
        found = answers(board, path, bundle, kept)
        for artifact in bundle.manifest.artifacts:
            if artifact.golden is not None and artifact.format in KERNELS[board]:
                yield _held(bundle, artifact, found)


def answers(board: str, path: Path, bundle: Bundle, kept: Path) -> dict[str, Array]:
    """What the engines answered there to this bundle's golden samples: now, or when they were asked before."""
    known = place(bundle, kept)
    if not known.exists():
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept) as folder:
            made = Path(folder) / "answers.npz"
            command = [*python(board), "-m", "benchmarks.golden.board", str(path.resolve()), str(made), board]
            ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if ended.returncode:
                sys.exit(f"{path.name} on {board}: {ended.stderr.strip() or f'exit code {ended.returncode}'}")
            made.rename(known)
        print(f"{path.name}: {ended.stdout.strip()}", file=sys.stderr, flush=True)
    with np.load(known, allow_pickle=False) as file:
        return dict(file)


def place(bundle: Bundle, kept: Path) -> Path:
    """Where answers of these model files to these golden samples are kept."""
    parts = [*(f"{label(one)} {one.sha256}" for one in bundle.manifest.artifacts)]
    parts += [tensor.sha256 for tensor in bundle.manifest.golden_inputs]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return kept / f"{bundle.manifest.name}-{digest[:12]}.npz"


def _held(bundle: Bundle, artifact: Artifact, found: dict[str, Array]) -> Held:
    name = label(artifact)
    columns = [found[f"{name}/{at}"] for at in range(sum(key.startswith(f"{name}/") for key in found))]
    if not columns:
        return Held(bundle.manifest.name, name, "the engine does not run it there", 0.0, "")
    backend = opener(artifact.format)(bundle.blob(artifact.sha256), EngineOptions())  # for the names and shapes of its tensors
    replayed = Run(backend, {}, [list(row) for row in zip(*columns, strict=True)])
    refused = verdict(bundle, artifact, replayed.again, EngineOptions())
    shares = measured(bundle, artifact, replayed.again)
    bound = max(shares, key=lambda one: shares[one])
    backend.close()
    return Held(bundle.manifest.name, name, refused, shares[bound], bound)
