"""Prometheus metrics of one served model, in a registry of their own."""

from __future__ import annotations

from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, Info, generate_latest

_BUCKETS_S: Final = tuple(1e-4 * 2**power for power in range(16))  # 0.1 ms to 3.3 s


class Metrics:
    media_type = CONTENT_TYPE_LATEST

    def __init__(self, model: str, version: str) -> None:
        self._registry = CollectorRegistry()
        labels = ("model", "version")
        requests = Counter("edgeml_requests", "Inference requests by HTTP status.", (*labels, "code"), registry=self._registry)
        whole = Histogram("edgeml_request_seconds", "Time to an answer.", labels, buckets=_BUCKETS_S, registry=self._registry)
        inference = Histogram(
            "edgeml_inference_seconds", "Time in the model.", labels, buckets=_BUCKETS_S, registry=self._registry
        )
        Info("edgeml_model", "What is served.", registry=self._registry).info({"model": model, "version": version})
        self._requests = requests
        self._names = (model, version)
        self._ok = requests.labels(model, version, "200")
        self._whole = whole.labels(model, version)
        self._inference = inference.labels(model, version)

    def answered(self, request_s: float, inference_s: float) -> None:
        self._ok.inc()
        self._whole.observe(request_s)
        self._inference.observe(inference_s)

    def refused(self, status: int) -> None:
        self._requests.labels(*self._names, str(status)).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)
