"""Core ML without a Mac: read an ML program as a package (`package`), run it with reference semantics (`backend`)."""

from edgeml.exporter.mil.package import pack_mlpackage, unpack_mlpackage

__all__ = ["pack_mlpackage", "unpack_mlpackage"]
