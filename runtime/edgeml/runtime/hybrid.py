"""A model on the device with a cloud behind it: the policy decides, the device's answer is never late because of the cloud.

    cloud = CloudClient(url, model.name, model.manifest.signature)
    hybrid = Hybrid(model, cloud, CloudGate(Policy(deadline_s=0.2)))
    result = hybrid.run({"audio": window})      # result.source says who answered, result.fallback why

Cloud calls run in a small pool of threads and are left behind when their time is up. One that takes longer than most is asked
once more beside the first, and the first usable answer counts. The thread that waits wakes up ever more often towards the end:
so it learns how late this board wakes threads up, and keeps that much of the deadline free.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Protocol, Self

import numpy as np

from edgeml.runtime import fallback
from edgeml.runtime.backends import Array
from edgeml.runtime.cloud import Answer, TooSlowError
from edgeml.runtime.cloud_gate import CloudGate
from edgeml.runtime.fallback import Reason
from edgeml.runtime.model import Model, Result, new_request_id
from edgeml.wire.errors import EdgemlError, InputError, LinkError, ServiceError
from edgeml.wire.manifest import TensorSpec

Redact = Callable[[dict[str, Array]], Mapping[str, Array] | None]

CLOUD_CALLS: Final = 4  # at once; a fifth is refused rather than queued behind slow ones
_RETRY_SHARE: Final = 0.9  # while the cloud stands in, the latency estimate sinks towards this: the device is tried again
_NAP_SHARE: Final = 0.25  # of what is left to wait, until the next look at the clock
_LEAST_NAP_S: Final = 0.005
_HEADER_BYTES: Final = 512  # about what JSON and HTTP headers add to the tensors


class Cloud(Protocol):
    """Something that answers like `CloudClient.infer`."""

    def infer(self, inputs: Mapping[str, Array], *, request_id: str, deadline_s: float) -> Answer: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why the cloud gave nothing, in a word for counters and a sentence for people."""

    word: str
    error: EdgemlError


class Hybrid:
    """Runs a model with a fall-back. Thread-safe; a context manager that closes the cloud's connections, not the model.

    Args:
        model: the device's model.
        cloud: the endpoint.
        gate: when to ask it.
        drifting: tells whether the inputs have drifted (read before every call).
        redact: gets the inputs that would be sent and gives those that may leave the device, or `None` to send nothing. If it
            raises, or gives what does not fit the signature, nothing leaves.
    """

    def __init__(
        self,
        model: Model,
        cloud: Cloud,
        gate: CloudGate,
        *,
        drifting: Callable[[], bool] = lambda: False,
        redact: Redact | None = None,
    ) -> None:
        self.policy = gate.policy
        self.device_latency_s = model.warm_latency_s  # an estimate
        self._model = model
        self._cloud = cloud
        self._gate = gate
        self._drifting = drifting
        self._redact = redact
        self._threads = ThreadPoolExecutor(CLOUD_CALLS, thread_name_prefix="edgeml-cloud")
        self._busy = threading.BoundedSemaphore(CLOUD_CALLS)
        self.last_problem: str | None = None  # why the cloud last gave nothing

    def run(self, inputs: Mapping[str, Array], *, request_id: str | None = None) -> Result:
        """Answer from the device or the cloud, as the policy says.

        Raises:
            InputError: the inputs do not fit the signature.
            EngineError: the device failed and the cloud gave nothing (or may not be asked).
            LinkError, ServiceError: `cloud-only`, and the cloud gave nothing.
        """
        identifier = new_request_id() if request_id is None else request_id
        started = time.monotonic()
        mode = self.policy.mode
        if mode == "device-only":
            return self._device(inputs, identifier)
        if mode == "cloud-only":
            answer = self._ask(inputs, identifier, started)
            if isinstance(answer, _Failure):
                raise answer.error
            return answer
        if mode == "prefer-cloud":
            return self._cloud_first(inputs, identifier, started)
        return self._device_first(inputs, identifier, started)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._cloud.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _device_first(self, inputs: Mapping[str, Array], identifier: str, started: float) -> Result:
        early = fallback.reason_before(self.policy, self.device_latency_s)
        if early is not None:
            answer = self._ask(inputs, identifier, started)
            if isinstance(answer, Result):
                self._fold(_RETRY_SHARE * self.policy.deadline_s)
                return replace(answer, fallback=early)
        try:
            result = self._device(inputs, identifier)
        except InputError:
            raise
        except EdgemlError:
            answer = self._ask(inputs, identifier, started)
            if isinstance(answer, _Failure):
                raise
            return replace(answer, fallback="error")
        below = self._model.defer_below
        reason = fallback.reason_after(self.policy, score=result.score, least_score=below, drifting=self._drifting())
        if reason is None:
            return result
        answer = self._ask(inputs, identifier, started)
        return replace(answer, fallback=reason) if isinstance(answer, Result) else result

    def _cloud_first(self, inputs: Mapping[str, Array], identifier: str, started: float) -> Result:
        answer = self._ask(inputs, identifier, started)
        if isinstance(answer, Result):
            return answer
        reason: Reason = "deadline" if answer.word == "deadline" else "error"
        return replace(self._device(inputs, identifier), fallback=reason)

    def _device(self, inputs: Mapping[str, Array], identifier: str) -> Result:
        result = self._model.run(inputs, request_id=identifier)
        self._fold(result.latency_s)
        return result

    def _fold(self, latency_s: float) -> None:
        self.device_latency_s = fallback.folded(self.device_latency_s, latency_s)  # of two at once one may be lost

    def _ask(self, inputs: Mapping[str, Array], identifier: str, started: float) -> Result | _Failure:
        """The cloud's answer, or why there is none; waits no longer than the policy leaves."""
        answer = self._call(inputs, identifier, started)
        self.last_problem = answer.word if isinstance(answer, _Failure) else None
        return answer

    def _call(self, inputs: Mapping[str, Array], identifier: str, started: float) -> Result | _Failure:
        with_batch, left_out = _with_batch(inputs, self._model)
        shown = self._shown(with_batch)
        if shown is None:
            return _Failure("withheld", LinkError("the cloud is not asked: the application keeps these inputs on the device"))
        elapsed_s, wake_s = time.monotonic() - started, self._gate.wake_reserve_s()
        share_s = fallback.cloud_share_s(self.policy, self.device_latency_s, elapsed_s, wake_s)
        if share_s <= 0:
            return _Failure("deadline", TooSlowError("no time is left to ask the cloud"))
        if not self._busy.acquire(blocking=False):
            return _Failure("busy", LinkError(f"{CLOUD_CALLS} calls to the cloud are under way"))
        size = sum(array.nbytes for array in shown.values()) + _HEADER_BYTES
        refusal = self._gate.may_ask(size)
        if refusal is not None:
            self._busy.release()
            return _Failure(refusal, LinkError(f"the cloud is not asked: {refusal.replace('_', ' ')}"))
        asked = time.monotonic()
        try:
            answer = self._first_of_two(shown, identifier, size, asked + share_s)
        except FutureTimeoutError:
            return self._failed("deadline", TooSlowError(f"the cloud did not answer within {share_s:.3f} s"))
        except TooSlowError as error:
            return self._failed("deadline", error)
        except LinkError as error:
            return self._failed("unreachable", error)
        except ServiceError as error:
            return self._failed("refused", error)
        return self._result(answer, identifier, started, asked, left_out=left_out)

    def _shown(self, inputs: dict[str, Array]) -> Mapping[str, Array] | None:
        """What may leave the device, if anything may."""
        if self._redact is None:
            return inputs
        try:
            shown = self._redact(inputs)
            if shown is not None:
                self._model.session.check(shown)
        except Exception:  # noqa: BLE001 - the application's code: whatever it raises, the inputs stay here
            return None
        return shown

    def _first_of_two(self, inputs: Mapping[str, Array], identifier: str, size: int, ends: float) -> Answer:
        """The answer to a call that may be hedged; a slot is taken for the first already.

        Raises:
            FutureTimeoutError: there was none in time.
            LinkError, ServiceError: no call brought a usable one.
        """
        calls = {self._submit(inputs, identifier, ends)}
        patience_s = self._gate.hedge_after_s()
        if patience_s is not None and patience_s < ends - time.monotonic():
            wait(calls, timeout=patience_s)
            if not any(call.done() for call in calls) and self._busy.acquire(blocking=False):
                if self._gate.may_hedge(size):
                    calls.add(self._submit(inputs, identifier, ends))
                else:
                    self._busy.release()
        while True:
            done, calls = self._wait(calls, ends)
            if not done:
                raise FutureTimeoutError
            answered = [call for call in done if call.exception() is None]
            if answered or not calls:
                return (answered or [*done])[0].result()

    def _wait(self, calls: set[Future[Answer]], ends: float) -> tuple[set[Future[Answer]], set[Future[Answer]]]:
        """(done, not done), as soon as one is done or time is up."""
        worst, done, now = 0.0, set[Future[Answer]](), time.monotonic()
        while not done and now < ends:
            wakes = min(ends, now + max(_LEAST_NAP_S, _NAP_SHARE * (ends - now)))
            done, calls = wait(calls, timeout=wakes - now, return_when=FIRST_COMPLETED)
            now = time.monotonic()
            worst = max(worst, now - wakes)
        self._gate.woke(worst)
        return done, calls

    def _submit(self, inputs: Mapping[str, Array], identifier: str, ends: float) -> Future[Answer]:
        return self._threads.submit(self._infer, inputs, identifier, max(0.001, ends - time.monotonic()))

    def _infer(self, inputs: Mapping[str, Array], identifier: str, share_s: float) -> Answer:
        try:
            return self._cloud.infer(inputs, request_id=identifier, deadline_s=share_s)
        finally:
            self._busy.release()

    def _failed(self, word: str, error: EdgemlError) -> _Failure:
        self._gate.failed()
        return _Failure(word, error)

    def _result(self, answer: Answer, identifier: str, started: float, asked: float, *, left_out: bool) -> Result | _Failure:
        signature = self._model.manifest.signature
        batched = {spec.name for spec in signature.outputs if spec.has_batch}
        outputs = {name: a[0] if left_out and name in batched else a for name, a in answer.outputs.items()}
        try:
            index, label, score = self._model.read(outputs)
        except EdgemlError as error:
            return self._failed("refused", error)
        now = time.monotonic()
        self._gate.succeeded(answer.received_bytes, now - asked)
        latency_s = now - started
        return Result(outputs, label, index, score, "cloud", latency_s, answer.model, answer.version, identifier)


def _with_batch(inputs: Mapping[str, Array], model: Model) -> tuple[dict[str, Array], bool]:
    """The inputs with the batch axis that the wire form always has, and whether it was left out.

    Raises:
        InputError: an input has another dtype or rank than the signature.
    """
    model.session.check(inputs)
    left_out = False
    complete: dict[str, Array] = {}
    for spec in model.manifest.signature.inputs:
        array = inputs[spec.name]
        if _lacks_batch(array, spec):
            left_out = True
            array = array[None]
        complete[spec.name] = array
    return complete, left_out


def _lacks_batch(array: Array, spec: TensorSpec) -> bool:
    return spec.has_batch and isinstance(array, np.ndarray) and array.ndim == len(spec.shape) - 1
