"""Whether golden vectors stop a broken engine and let every healthy one through.

    scripts/bench golden [BUNDLE ...] [--json] [--misses]

Each artifact of each bundle is run by its engine with one fault at a time, in its answers (`_golden_faults`) or in its file
(`_golden_files`), and held to the bundle's golden vectors as a device does before it serves; then by every healthy set of
kernels of this machine. Without BUNDLE: every bundle in ~/.cache/edgeml/golden, where the digits bundle is exported to.

A fault is *felt* if it changes the class of a golden sample, or moves a value by more than 1 % of the output's range.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks import _golden_faults as faults
from benchmarks._golden_files import faulty_files
from edgeml.exporter.pipeline import export
from edgeml.exporter.plan import make_plan
from edgeml.runtime.backends import Array, Backend, EngineOptions, OpenBackend, opener
from edgeml.runtime.backends.onnx import saturates_int8
from edgeml.runtime.bundle import Bundle, open_bundle
from edgeml.runtime.golden import sample_as, self_test
from edgeml.runtime.session import open_session
from edgeml.wire.errors import EdgemlError, SelfTestError
from edgeml.wire.manifest import Artifact, Format
from examples.digits.data import write

ROOT: Final = Path(__file__).resolve().parent.parent
CACHE: Final = Path.home() / ".cache" / "edgeml" / "golden"
FELT: Final = 0.01  # of an output's range
HEALTHY: Final[Mapping[Format, tuple[EngineOptions, ...]]] = {
    "onnx": (
        EngineOptions(), EngineOptions(kernels="reference"), EngineOptions(kernels="exact"), EngineOptions(threads=2),
        *(() if saturates_int8() else (EngineOptions(kernels="stock"),)),
    ),
    "tflite": (
        EngineOptions(), EngineOptions(kernels="reference"), EngineOptions(kernels="exact"), EngineOptions(threads=2),
        EngineOptions(kernels="exact", threads=4),
    ),
    "coreml": (),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trial:
    model: str
    artifact: str
    fault: str
    caught: bool
    felt: bool
    flips: int  # golden samples whose class it changed
    moved: float  # largest change, of the output's range


@dataclass(slots=True)
class Found:
    trials: list[Trial] = field(default_factory=list)
    healthy: int = 0
    refused: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--misses", action="store_true", help="list every fault that was let through")
    asked = parser.parse_args()
    found = Found()
    for path in asked.bundles or default_bundles():
        with open_bundle(path) as bundle:
            look_at(bundle, found)
        print(f"{path.name}: {len(found.trials)} faults so far", file=sys.stderr, flush=True)
    if not asked.json:
        print("\n".join(table(found)))
        if asked.misses:
            print("\n".join(misses(found)))
    print(json.dumps(summary(found)))


def default_bundles() -> list[Path]:
    CACHE.mkdir(parents=True, exist_ok=True)
    if not (CACHE / "meter-1.0.0.edgeml").exists():
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            plan = make_plan(
                f"{ROOT}/examples/digits/model.py:v1_0_0", to="onnx,tflite", precision="fp32,fp16,int8", out=CACHE,
                calib=Path(folder) / "calib.npz", evaluation=Path(folder) / "eval.npz", name="meter", version="1.0.0",
            )  # fmt: skip
            export(plan)
    return sorted(CACHE.glob("*.edgeml"))


def look_at(bundle: Bundle, found: Found) -> None:
    for artifact in bundle.manifest.artifacts:
        if artifact.golden is None or artifact.format == "coreml":
            continue
        name = f"{artifact.format}:{artifact.precision}"
        for options in HEALTHY[artifact.format]:
            refusal = verdict(bundle, artifact, opener(artifact.format), options)
            found.healthy += 1
            if refusal is not None:
                found.refused.append(f"{bundle.manifest.name} {name} {options.kernels} x{options.threads}: {refusal}")
        healthy = answers(bundle, artifact, opener(artifact.format))
        for fault, open_backend in broken(artifact, bundle.blob(artifact.sha256), healthy):
            try:
                got = answers(bundle, artifact, open_backend())
            except EdgemlError:
                continue  # an engine that refuses the file serves nothing: no fault to catch
            flips, moved = difference(healthy, got)
            if moved == 0.0:
                continue  # this model's numbers are the same with it: no fault
            caught = verdict(bundle, artifact, open_backend(), EngineOptions()) is not None
            felt = flips > 0 or not moved <= FELT
            found.trials.append(Trial(bundle.manifest.name, name, fault, caught, felt, flips, moved))


def verdict(bundle: Bundle, artifact: Artifact, open_backend: OpenBackend, options: EngineOptions) -> str | None:
    """Why a device would refuse to serve, `None` if it would."""
    try:
        with open_session(bundle, artifact, options=options, open_backend=open_backend) as session:
            self_test(bundle, artifact, session)
    except SelfTestError as error:
        return str(error)
    return None


def answers(bundle: Bundle, artifact: Artifact, open_backend: OpenBackend) -> list[Array]:
    """Every output over the golden samples, the ranked one first."""
    signature = bundle.manifest.signature
    inputs = {tensor.name: bundle.tensor(tensor) for tensor in bundle.manifest.golden_inputs}
    ranked = bundle.manifest.post.output if bundle.manifest.post else signature.outputs[0].name
    order = sorted((spec.name for spec in signature.outputs), key=lambda name: name != ranked)
    with open_session(bundle, artifact, options=EngineOptions(), open_backend=open_backend) as session:
        count = bundle.manifest.golden_inputs[0].shape[0]
        runs = [session.run({s.name: sample_as(s, inputs[s.name][i]) for s in signature.inputs}) for i in range(count)]
    return [np.stack([np.asarray(run[name], np.float64).ravel() for run in runs]) for name in order]


def difference(healthy: Sequence[Array], got: Sequence[Array]) -> tuple[int, float]:
    """(samples whose class changed, largest change as a share of its output's range)."""
    flips = int((np.argmax(healthy[0], axis=1) != np.argmax(got[0], axis=1)).sum())
    moved = 0.0
    for mine, other in zip(healthy, got, strict=True):
        change = np.abs(mine - other)
        if not np.isfinite(change).all():
            return flips, float("inf")
        moved = max(moved, float(change.max() / (np.ptp(mine) or 1.0)))
    return flips, moved


Loader = Callable[[], OpenBackend]
"""Gives an engine with a fault: a fresh one for each use, since some faults remember."""


def broken(artifact: Artifact, model: bytes, healthy: Sequence[Array]) -> Iterator[tuple[str, Loader]]:
    opens = opener(artifact.format)
    for name, change, feed in answer_faults(artifact, healthy):
        yield name, _wrapped(opens, change, feed, artifact, healthy[0])
    for name, data in faulty_files(artifact.format, model):
        yield name, _replaced(opens, data)


def answer_faults(artifact: Artifact, healthy: Sequence[Array]) -> Iterator[tuple[str, faults.Change, faults.Feed | None]]:
    for name, change in (faults.ANSWERS | (faults.QUANTIZED if _raw_step(artifact, healthy[0]) else {})).items():
        yield name, change, None
    last = artifact.outputs[0].shape[-1] if artifact.outputs[0].shape else 1
    if isinstance(last, int) and last > 1:
        for index in faults.channels(last):
            yield "a channel of the output silent", faults.channel(index), None
            yield "two channels of the output exchanged", faults.exchange(index, (index + 1) % last), None
    if len(artifact.outputs) > 1 and healthy[0].shape == healthy[1].shape:
        yield "outputs swapped", faults.SWAPPED, None
    yield "axes of the input turned", faults.same, faults.turned


def _wrapped(opens: OpenBackend, change: faults.Change, feed: faults.Feed | None, artifact: Artifact, healthy: Array) -> Loader:
    def load(model: bytes, options: EngineOptions) -> Backend:
        unit = artifact.outputs[0].quantization.scale if artifact.outputs[0].quantization else 1.0
        memory = faults.Memory(_raw_step(artifact, healthy), float(np.ptp(healthy)) / unit)
        return faults.Faulty(opens(model, options), change, memory, feed=feed)

    return lambda: load


def _replaced(opens: OpenBackend, data: bytes) -> Loader:
    return lambda: lambda _, options: opens(data, options)


def _raw_step(artifact: Artifact, healthy: Array) -> float:
    return 1.0 if artifact.outputs[0].quantization else step(healthy)


def step(values: Array) -> float:
    """The step of a quantized output: the least gap, where so few values occur that it has one."""
    distinct = np.unique(values)
    return float(np.diff(distinct).min()) if 1 < len(distinct) <= 256 and len(distinct) * 4 <= values.size else 0.0


def table(found: Found) -> Iterator[str]:
    models = sorted({trial.model for trial in found.trials})
    rows: dict[str, dict[str, list[Trial]]] = defaultdict(lambda: defaultdict(list))
    for trial in found.trials:
        rows[trial.fault][trial.model].append(trial)
    width = max(map(len, rows), default=10)
    yield f"{'fault':{width}}  {'caught':>11}  {'felt':>11}  " + "  ".join(f"{model[:14]:>14}" for model in models)
    for fault, by_model in rows.items():
        whole = [trial for trials in by_model.values() for trial in trials]
        cells = "  ".join(f"{_share(by_model.get(model, [])):>14}" for model in models)
        yield f"{fault:{width}}  {_share(whole):>11}  {_share([t for t in whole if t.felt]):>11}  {cells}"
    yield f"{'all':{width}}  {_share(found.trials):>11}  {_share([t for t in found.trials if t.felt]):>11}"
    yield f"healthy kernels refused: {len(found.refused)} of {found.healthy}"
    yield from found.refused


def misses(found: Found) -> Iterator[str]:
    for trial in found.trials:
        if not trial.caught:
            felt = "felt" if trial.felt else "not felt"
            moved = f"moves values by at most {trial.moved:.2%} of the range, {trial.flips} classes change"
            yield f"let through ({felt}): {trial.model} {trial.artifact}: {trial.fault}: {moved}"


def _share(trials: Sequence[Trial]) -> str:
    return f"{sum(trial.caught for trial in trials)}/{len(trials)}" if trials else ""


def summary(found: Found) -> dict[str, object]:
    felt = [trial for trial in found.trials if trial.felt]
    kinds = sorted({trial.fault for trial in found.trials})
    return {
        "models": len({trial.model for trial in found.trials}),
        "kinds": len(kinds),
        "faults": len(found.trials),
        "caught": sum(trial.caught for trial in found.trials),
        "felt": len(felt),
        "felt_caught": sum(trial.caught for trial in felt),
        "healthy": found.healthy,
        "healthy_refused": len(found.refused),
        "by_kind": {kind: _share([trial for trial in found.trials if trial.fault == kind]) for kind in kinds},
    }


if __name__ == "__main__":
    main()
