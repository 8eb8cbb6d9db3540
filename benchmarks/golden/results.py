"""Results of faults: one JSON line an artifact in a file outside the repository, and their tables."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import edgeml.runtime.golden
from benchmarks.golden.trials import Found, Trial

CACHE: Final = Path.home() / ".cache" / "edgeml" / "golden"
FILE: Final = "faults.jsonl"


def place() -> Path:
    """EDGEML_GOLDEN_RESULTS, or `faults.jsonl` in the cache."""
    return Path(os.environ.get("EDGEML_GOLDEN_RESULTS") or CACHE / FILE)


def code_digest() -> str:
    """Of the faults and of the self-test that they are held to."""
    found = hashlib.sha256()
    for path in [*sorted(Path(__file__).parent.glob("*.py")), Path(edgeml.runtime.golden.__file__)]:
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def key(bundle: str, artifact: str) -> str:
    """Of a result: the bundle's digest, the artifact's label and the code."""
    return f"{bundle} {artifact} {code_digest()}"


def append(one: Found, named: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"key": named} | asdict(one)) + "\n")


def read(path: Path) -> dict[str, Found]:
    """The newest line of each key."""
    if not path.exists():
        return {}
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines() if text.strip()]
    return {line.pop("key"): Found(**{**line, "trials": [Trial(**trial) for trial in line["trials"]]}) for line in lines}


def table(found: Sequence[Found], by: Callable[[Found, Trial], str], head: str) -> Iterator[str]:
    rows: dict[str, list[Trial]] = defaultdict(list)
    for one in found:
        for trial in one.trials:
            rows[by(one, trial)].append(trial)
    width = max(map(len, [*rows, head]), default=10)
    yield f"{head:{width}}  {'caught':>11}  {'of those felt':>13}"
    for name, trials in sorted(rows.items()):
        yield f"{name:{width}}  {share(trials):>11}  {share(_felt(trials)):>13}"
    everything = [trial for trials in rows.values() for trial in trials]
    yield f"{'all':{width}}  {share(everything):>11}  {share(_felt(everything)):>13}"


def healthy(found: Sequence[Found]) -> Iterator[str]:
    refused = [f"{one.model} {one.artifact} {refusal}" for one in found for refusal in one.refused]
    yield f"healthy kernels refused: {len(refused)} of {sum(one.healthy for one in found)}"
    yield from refused


def misses(found: Sequence[Found]) -> Iterator[str]:
    for one in found:
        for trial in one.trials:
            if not trial.caught:
                felt = "felt" if trial.felt else "not felt"
                moved = f"moves values by at most {trial.moved:.2%} of the range, {trial.flips} classes change"
                yield f"let through ({felt}): {one.model} {one.artifact}: {trial.fault}: {moved}"


def share(trials: Sequence[Trial]) -> str:
    return f"{sum(trial.caught for trial in trials)}/{len(trials)}" if trials else ""


def _felt(trials: Iterable[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.felt]


def summary(found: Sequence[Found]) -> dict[str, Any]:
    trials = [trial for one in found for trial in one.trials]
    kinds = sorted({trial.fault for trial in trials})
    felt = _felt(trials)
    return {
        "models": len({one.model for one in found}),
        "artifacts": len(found),
        "kinds": len(kinds),
        "faults": len(trials),
        "caught": sum(trial.caught for trial in trials),
        "felt": len(felt),
        "felt_caught": sum(trial.caught for trial in felt),
        "healthy": sum(one.healthy for one in found),
        "healthy_refused": sum(len(one.refused) for one in found),
        "by_kind": {name: share([trial for trial in trials if trial.fault == name]) for name in kinds},
    }
