"""Where a model comes from: found on disk, described, and run for the reference."""

from edgeml.exporter.source.kind import locate
from edgeml.exporter.source.model import Family, Kind, SourceModel, SourceRef

__all__ = ["Family", "Kind", "SourceModel", "SourceRef", "locate"]
