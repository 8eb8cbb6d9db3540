"""One engine behind the signature: names, dtypes and shapes are checked, tensors mapped, quantized and laid out as bound.

Everything that does not depend on the values is decided when the session is made, so that a call costs microseconds beyond the
engine's own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self

import numpy as np

from edgeml.runtime.affinity import pinned
from edgeml.runtime.backends import Array, Backend, EngineOptions, OpenBackend, PatientBackend, RawTensor, opener
from edgeml.runtime.bundle import Bundle
from edgeml.runtime.patience import Runner
from edgeml.runtime.tensors import plan_input, plan_output, shape_text
from edgeml.wire.contract import label
from edgeml.wire.errors import DeadlineError, EngineError, InputError, ModelError
from edgeml.wire.manifest import BATCH, Artifact, Binding, Manifest, Signature, TensorSpec

DEFAULT_OPTIONS: Final = EngineOptions()


class Session:
    """One loaded artifact. Thread-safe: calls wait for each other. A context manager.

    Args:
        signature: names, dtypes and shapes as the application sees them.
        artifact_inputs, artifact_outputs: which engine tensor stands for which of them.
        backend: the loaded model; closed with the session.

    Raises:
        ModelError: a binding does not fit the engine's own tensors.
    """

    def __init__(
        self,
        signature: Signature,
        artifact_inputs: Sequence[Binding],
        artifact_outputs: Sequence[Binding],
        backend: Backend,
        *,
        manifest: Manifest | None = None,
        artifact: Artifact | None = None,
    ) -> None:
        self.signature = signature
        self.backend = backend
        self._manifest, self._artifact = manifest, artifact
        self._patient = backend if isinstance(backend, PatientBackend) else None
        self._runner = Runner()
        self._lock = threading.Lock()
        self._open = True
        specs = {spec.name: spec for spec in signature.inputs}
        ordered = sorted(artifact_inputs, key=lambda binding: binding.index)
        _check_bindings("input", ordered, backend.inputs)
        _check_bindings("output", artifact_outputs, backend.outputs)
        if len(ordered) != len(backend.inputs):
            raise ModelError("inputs of the model", expected=str(len(ordered)), got=str(len(backend.inputs)))
        self._inputs = tuple(plan_input(specs[binding.name], binding) for binding in ordered)
        outputs = {binding.name: binding for binding in artifact_outputs}
        self._outputs = tuple(plan_output(spec, outputs[spec.name]) for spec in signature.outputs)
        self._input_names = frozenset(specs)
        self._fixed_batch = _fixed_batch(specs, ordered)
        self._stacks = all(output.batched for output in self._outputs) and not any(
            name == BATCH and axis != 0 for plan in self._inputs for axis, name in plan.names
        )

    @property
    def manifest(self) -> Manifest:
        assert self._manifest is not None, "this session wraps a bare backend"
        return self._manifest

    @property
    def artifact(self) -> Artifact:
        assert self._artifact is not None, "this session wraps a bare backend"
        return self._artifact

    @property
    def batches(self) -> bool:
        """Whether any number of samples can be run in one call: every input and output is batched, and the file allows it."""
        return self._fixed_batch is None and self._stacks and all(plan.batched for plan in self._inputs)

    def run(self, inputs: Mapping[str, Array], *, deadline_s: float | None = None) -> dict[str, Array]:
        """Run once; outputs by the signature's names, dtypes and layout.

        The batch axis of all batched inputs may be left out together; then the outputs come without it too. Where the model
        file takes one sample a call, a batch is fed one by one.

        Raises:
            InputError: a name, dtype or shape does not fit; says expected and got.
            DeadlineError: no answer within `deadline_s` seconds, waiting for other calls included.
            EngineError: the engine failed, or the session is closed.
        """
        until = None if deadline_s is None else time.monotonic() + deadline_s
        feeds, count, squeeze = self._check(inputs)
        if count is None or self._fixed_batch is None or count == self._fixed_batch:
            outputs = self._call(feeds, until)
        else:
            outputs = self._one_by_one(feeds, count, until)
        if squeeze:
            for output in self._outputs:
                if output.batched:
                    outputs[output.name] = outputs[output.name][0]
        return outputs

    def check(self, inputs: Mapping[str, Array]) -> None:
        """Hold inputs to the signature without running.

        Raises:
            InputError: a name, dtype or shape does not fit; says expected and got.
        """
        self._check(inputs)

    def close(self) -> None:
        """Free the engine; a call in flight ends first."""
        with self._lock:
            if self._open:
                self._open = False
                self._runner.close()
                self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check(self, inputs: Mapping[str, Array]) -> tuple[list[Array], int | None, bool]:
        """The inputs in engine order with their batch axis, the number of samples, and whether that axis was left out."""
        if inputs.keys() != self._input_names:
            expected = ", ".join(repr(spec.name) for spec in self.signature.inputs)
            raise InputError("names of the inputs", expected=expected, got=", ".join(map(repr, inputs)) or "none")
        feeds: list[Array] = []
        axes: dict[str, int] = {}
        squeeze: bool | None = None
        for plan in self._inputs:
            given = array = inputs[plan.spec.name]
            if not isinstance(array, np.ndarray) or array.dtype != plan.dtype:
                raise plan.misfit(array)
            if plan.batched:
                left_out = array.ndim == plan.rank - 1
                if squeeze is not None and squeeze != left_out:
                    raise InputError(
                        "the batch axis is given for some inputs only", hint="give it for all of them, or for none"
                    )
                squeeze = left_out
                if left_out:
                    array = array[None]
            plan.check(array, given, axes)
            feeds.append(array)
        return feeds, axes.get(BATCH), bool(squeeze)

    def _call(self, feeds: list[Array], until: float | None) -> dict[str, Array]:
        ready = [
            array if plan.convert is None else plan.convert(array) for plan, array in zip(self._inputs, feeds, strict=True)
        ]
        if until is None:
            with self._lock:
                raw = self._require_open().run(ready)
        else:
            raw = self._call_until(ready, until)
        return {plan.name: plan.take(raw) for plan in self._outputs}

    def _call_until(self, ready: list[Array], until: float) -> list[Array]:
        if not self._lock.acquire(timeout=max(0.0, until - time.monotonic())):
            raise DeadlineError("other calls kept the engine busy")
        try:
            backend = self._require_open()
            if self._patient is not None:
                raw = self._patient.run_until(ready, until)
                self._lock.release()
                return raw
        except BaseException:
            self._lock.release()
            raise
        return self._runner.run(lambda: backend.run(ready), until, self._lock.release)

    def _require_open(self) -> Backend:
        if not self._open:
            raise EngineError("the session is closed", hint="load the model again")
        return self.backend

    def _one_by_one(self, feeds: list[Array], count: int, until: float | None) -> dict[str, Array]:
        if self._fixed_batch != 1 or not self._stacks:
            raise InputError(
                "samples in one call", expected=str(self._fixed_batch), got=str(count), hint="this model file has a fixed batch"
            )
        parts = [
            self._call([a[i : i + 1] if plan.batched else a for plan, a in zip(self._inputs, feeds, strict=True)], until)
            for i in range(count)
        ]
        return {output.name: np.concatenate([part[output.name] for part in parts]) for output in self._outputs}


def open_session(
    bundle: Bundle,
    artifact: Artifact,
    *,
    options: EngineOptions = DEFAULT_OPTIONS,
    open_backend: OpenBackend | None = None,
) -> Session:
    """Load one artifact of an open bundle.

    Raises:
        MissingExtraError, UnsupportedError: its engine is not on this machine.
        BundleError: its bytes changed since the bundle was opened.
        ModelError, EngineError: the engine refuses it, or its tensors are not those the manifest binds.
    """
    load = opener(artifact.format) if open_backend is None else open_backend
    with pinned(options.cpus):
        backend = load(bundle.blob(artifact.sha256), options)
    signature = bundle.manifest.signature
    try:
        return Session(signature, artifact.inputs, artifact.outputs, backend, manifest=bundle.manifest, artifact=artifact)
    except ModelError as error:
        backend.close()
        raise ModelError(f"artifact {label(artifact)}: {error.what}", expected=error.expected, got=error.got) from error


def _check_bindings(side: str, bindings: Sequence[Binding], tensors: Sequence[RawTensor]) -> None:
    for binding in bindings:
        where = f"{side} {binding.name!r}: tensor {binding.tensor!r} at position {binding.index}"
        if binding.index >= len(tensors):
            raise ModelError(where, expected=f"one of {len(tensors)}", got="no such position")
        tensor = tensors[binding.index]
        if tensor.name != binding.tensor:
            raise ModelError(where, expected=repr(binding.tensor), got=repr(tensor.name))
        if tensor.dtype != np.dtype(binding.dtype):
            raise ModelError(where, expected=binding.dtype, got=str(tensor.dtype))
        same = len(tensor.shape) == len(binding.shape) and all(
            axis is None or isinstance(bound, str) or axis == bound
            for axis, bound in zip(tensor.shape, binding.shape, strict=True)
        )
        if not same:
            raise ModelError(where, expected=shape_text(binding.shape), got=str(tensor.shape))


def _fixed_batch(specs: Mapping[str, TensorSpec], bindings: Sequence[Binding]) -> int | None:
    """How many samples a call must have, or `None` where the model file leaves it open."""
    for binding in bindings:
        spec = specs[binding.name]
        if not spec.has_batch or not binding.shape:
            continue
        size = binding.shape[_batch_position(binding)] if len(binding.shape) == len(spec.shape) else 1
        if isinstance(size, int):
            return size
    return None


def _batch_position(binding: Binding) -> int:
    return binding.permute.index(0) if binding.permute is not None else 0
