"""The cloud endpoint that devices fall back to: a bundle behind the Open Inference Protocol v2."""

from __future__ import annotations

from edgeml.serving.app import make_app

__all__ = ["make_app"]
