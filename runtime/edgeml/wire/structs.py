"""Lets msgspec learn the structs of a module while it is imported, when one thread is at it.

msgspec (0.22) looks into a struct when it is first decoded, and puts what it knows where other threads find it before it is
complete: two threads that are first at once end the process with a segmentation fault. So every module of the runtime and the
services that declares structs ends with `learn(__name__)`.
"""

from __future__ import annotations

import sys

import msgspec


def learn(module: str) -> None:
    """Build what decoding the structs of `module` needs, those that they hold included."""
    for value in list(vars(sys.modules[module]).values()):
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__ == module:
            msgspec.json.Decoder(value)
