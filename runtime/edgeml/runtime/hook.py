"""Functions of the application that a configuration file names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeml.wire.errors import ConfigError


def load_hook(key: str, where: str, folder: Path) -> Callable[..., Any]:
    """The function that `where`, "module:function", names; the module is looked for in `folder` first.

    Raises:
        ConfigError: there is no such module or function; `key` says whose value it is.
    """
    module, _, name = where.partition(":")
    if not module or not name:
        raise ConfigError(key, expected="module:function", got=repr(where))
    sys.path.insert(0, str(folder.absolute()))
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise ConfigError(f"{key} = {where!r} cannot be loaded: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise ConfigError(key, expected="a function", got=f"{where!r}, a {type(found).__name__}")
    hook: Callable[..., Any] = found
    return hook
