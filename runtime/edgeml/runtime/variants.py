"""A/B: the hash of a request decides which of two versions answers it, the same one each time the request comes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Final

from edgeml.runtime.backends import Array
from edgeml.runtime.model import Result, new_request_id
from edgeml.runtime.swap import Leased
from edgeml.wire.errors import EdgemlError, InputError

_HASHES: Final = 2.0**64


def takes_part(request_id: str, salt: str, share: float) -> bool:
    """Whether a request belongs to the challenger: hash(salt, id) / 2^64 < share.

    As the share grows, requests only join; another salt deals them anew.
    """
    digest = hashlib.sha256(f"{salt}\0{request_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / _HASHES < share


class Arm(Leased):
    """A version that answers its share of the requests; `serve` runs it, `close` frees it."""

    def __init__(
        self,
        serve: Callable[[Mapping[str, Array], str], Result],
        close: Callable[[], None],
        *,
        share: float,
        salt: str,
    ) -> None:
        super().__init__()
        self._serve, self._free = serve, close
        self._share, self._salt = share, salt

    def run(self, inputs: Mapping[str, Array], request_id: str | None, champion: Callable[[str | None], Result]) -> Result:
        """From this version or the champion; a request that this one fails on is answered by the champion.

        Raises:
            InputError: the inputs fit neither.
            EdgemlError: the champion failed.
        """
        identifier = new_request_id() if request_id is None else request_id
        if takes_part(identifier, self._salt, self._share) and self.enter():
            try:
                return self._serve(inputs, identifier)
            except InputError:
                raise
            except EdgemlError:  # counted where it was served
                return champion(identifier)
            finally:
                self.leave()
        return champion(identifier)

    def _close(self) -> None:
        self._free()
