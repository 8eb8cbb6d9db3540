"""An engine over the golden samples of a bundle: what it answered, and what a device says to that. Needs the runtime alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeml.runtime.backends import Array, Backend, EngineOptions, OpenBackend
from edgeml.runtime.bundle import Bundle
from edgeml.runtime.golden import sample_as, self_test, units
from edgeml.runtime.session import open_session
from edgeml.wire.errors import EdgemlError, SelfTestError
from edgeml.wire.manifest import Artifact


@dataclass(frozen=True, slots=True)
class Run:
    """An engine over the golden samples.

    `by_name` is what an application sees of each output, samples first, and the ranked output first; `raw` are the answers as
    they come, sample after sample.
    """

    backend: Backend
    by_name: dict[str, Array]
    raw: list[list[Array]]

    @property
    def answers(self) -> list[Array]:
        return list(self.by_name.values())

    def again(self, model: bytes, options: EngineOptions) -> Backend:
        """An engine that says the same once more."""
        del model, options
        return _Replayed(self.backend, self.raw)


class _Recorded:
    """A backend that keeps what it answered."""

    def __init__(self, healthy: Backend) -> None:
        self._healthy = healthy
        self.engine, self.version, self.inputs, self.outputs = healthy.engine, healthy.version, healthy.inputs, healthy.outputs
        self.raw: list[list[Array]] = []

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        self.raw.append(self._healthy.run(inputs))
        return self.raw[-1]

    def close(self) -> None:
        self._healthy.close()


class _Replayed:
    """A backend that answers what was recorded, in the same order."""

    def __init__(self, like: Backend, raw: Sequence[list[Array]]) -> None:
        self.engine, self.version, self.inputs, self.outputs = like.engine, like.version, like.inputs, like.outputs
        self._raw = iter(raw)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        del inputs
        return next(self._raw)

    def close(self) -> None:
        pass


def run(bundle: Bundle, artifact: Artifact, open_backend: OpenBackend) -> Run | None:
    """`None`: the engine refuses the file."""
    signature, manifest = bundle.manifest.signature, bundle.manifest
    inputs = {tensor.name: bundle.tensor(tensor) for tensor in manifest.golden_inputs}
    ranked = manifest.post.output if manifest.post else signature.outputs[0].name
    order = sorted((spec.name for spec in signature.outputs), key=lambda name: name != ranked)
    recorders: list[_Recorded] = []

    def recording(model: bytes, options: EngineOptions) -> Backend:
        recorders.append(_Recorded(open_backend(model, options)))
        return recorders[-1]

    try:
        with open_session(bundle, artifact, options=EngineOptions(), open_backend=recording) as session:
            count = manifest.golden_inputs[0].shape[0]
            runs = [session.run({s.name: sample_as(s, inputs[s.name][i]) for s in signature.inputs}) for i in range(count)]
    except EdgemlError:
        return None
    by_name = {name: np.stack([np.asarray(one[name], np.float64) for one in runs]) for name in order}
    return Run(recorders[0], by_name, recorders[0].raw)


def verdict(bundle: Bundle, artifact: Artifact, open_backend: OpenBackend, options: EngineOptions) -> str | None:
    """Why a device would refuse to serve, `None` if it would."""
    try:
        with open_session(bundle, artifact, options=options, open_backend=open_backend) as session:
            self_test(bundle, artifact, session)
    except SelfTestError as error:
        return str(error)
    return None


def measured(bundle: Bundle, artifact: Artifact, open_backend: OpenBackend) -> dict[str, float]:
    """How much of each bound the answers take (1: all of it), by the bound's name; of several outputs, the most."""
    assert artifact.golden is not None, "an artifact without golden vectors has no bounds"
    found = run(bundle, artifact, open_backend)
    assert found is not None, "answers that are there can be read"
    shares: dict[str, float] = {}
    for output in artifact.golden.outputs:
        expected = bundle.tensor(output.expected).astype(np.float64)
        wanted = expected.reshape(len(expected), -1) / units(output)
        off = found.by_name[output.expected.name].reshape(len(expected), -1) / units(output) - wanted
        power = float((wanted**2).sum()) or 1.0
        parts = {
            "tolerance": (float(np.abs(off).max()), output.tolerance),
            "rms": (float(np.sqrt((off**2).mean())), output.rms),
            "bias": (abs(float(off.mean())), output.bias),
            "channel": (float(np.abs(off.mean(axis=0)).max()), output.channel),
            "gain": (abs(float((off * wanted).sum())) / power, output.gain),
        }
        for name, (value, limit) in parts.items():
            if limit is not None:
                shares[name] = max(shares.get(name, 0.0), value / limit if limit else float(value > 0))
    return shares
