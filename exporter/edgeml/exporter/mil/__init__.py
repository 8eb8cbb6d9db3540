"""Core ML without a Mac: read an ML program as a package, run it with reference semantics."""

from edgeml.exporter.mil.backend import open_mil
from edgeml.exporter.mil.package import pack_mlpackage, unpack_mlpackage

__all__ = ["open_mil", "pack_mlpackage", "unpack_mlpackage"]
