"""What an application and its engine's process say to each other: msgpack frames on a socket, tensors in shared memory.

    application                         engine's process
    Load(opener, options)      →        reads the model, opens the engine
                               ←        Loaded(engine, version, inputs, outputs) | Failed
    Call(inputs)               →        tensors are read where they lie
                               ←        Answer(outputs) | Failed

The memory only grows: whichever side needs more room makes the file longer, and says so in its next frame.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec
import numpy as np

from edgeml.runtime.backends import Array, EngineOptions, Provider, RawTensor
from edgeml.wire.manifest import Quantization
from edgeml.wire.structs import learn

ALIGNMENT: Final = 64  # a cache line, and what engines like their tensors to start at
FRAME_LIMIT_BYTES: Final = 1 << 20  # tensors are not in frames: anything near this is garbage
_LENGTH: Final = struct.Struct("<I")
_PAGE_BYTES: Final = mmap.PAGESIZE
_CHUNK_BYTES: Final = 1 << 16


class Placed(msgspec.Struct, frozen=True, array_like=True):
    """A tensor in the shared memory."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


class Tensor(msgspec.Struct, frozen=True, array_like=True):
    """`RawTensor` in a frame."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    quantization: Quantization | None

    @classmethod
    def of(cls, tensor: RawTensor) -> Tensor:
        return cls(tensor.name, tensor.dtype.str, tensor.shape, tensor.quantization)

    @property
    def raw(self) -> RawTensor:
        return RawTensor(self.name, np.dtype(self.dtype), self.shape, self.quantization)


class Load(msgspec.Struct, frozen=True, tag=True):
    """`opener` is `module:function`, an `OpenBackend`."""

    opener: str
    options: EngineOptions


class Call(msgspec.Struct, frozen=True, tag=True):
    inputs: tuple[Placed, ...]
    arena_bytes: int


class Loaded(msgspec.Struct, frozen=True, tag=True):
    engine: str
    version: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    provider: Provider


class Answer(msgspec.Struct, frozen=True, tag=True):
    outputs: tuple[Placed, ...]
    arena_bytes: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """`error` is the name of a class of `wire.errors`."""

    error: str
    what: str
    expected: str | None = None
    got: str | None = None
    hint: str | None = None


Request = Load | Call
Reply = Loaded | Answer | Failed
M = TypeVar("M")


class Wire:
    """One end of the socket."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._encoder = msgspec.msgpack.Encoder()
        self._pending = bytearray()  # a frame may come in pieces, and its end after the reader's time was up

    def send(self, message: Request | Reply) -> None:
        payload = self._encoder.encode(message)
        self._socket.settimeout(None)
        self._socket.sendall(_LENGTH.pack(len(payload)) + payload)

    def receive(self, decoder: msgspec.msgpack.Decoder[M], until: float | None) -> M:
        """The next message, waiting no longer than `until` (of `time.monotonic`).

        Raises:
            TimeoutError: it is not here yet; a later call goes on where this one stopped.
            EOFError: the other side is gone.
            ValueError: it sends garbage.
        """
        while (frame := self._frame()) is None:
            remaining = None if until is None else until - time.monotonic()
            if remaining is not None and remaining <= 0:
                raise TimeoutError
            self._socket.settimeout(remaining)
            try:
                chunk = self._socket.recv(_CHUNK_BYTES)
            except ConnectionError as error:
                raise EOFError("the connection broke") from error
            if not chunk:
                raise EOFError("the connection was closed")
            self._pending += chunk
        try:
            return decoder.decode(frame)
        except msgspec.MsgspecError as error:
            raise ValueError(f"not a message: {error}") from error

    def close(self) -> None:
        self._socket.close()

    def _frame(self) -> bytes | None:
        if len(self._pending) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._pending)
        if length > FRAME_LIMIT_BYTES:
            raise ValueError(f"a frame of {length} bytes")
        end = _LENGTH.size + length
        if len(self._pending) < end:
            return None
        frame = bytes(self._pending[_LENGTH.size : end])
        del self._pending[:end]
        return frame


class Arena:
    """Shared memory that grows. Views of it stay valid for as long as somebody holds them."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.remap()

    def put(self, arrays: Sequence[Array], start: int = 0) -> tuple[Placed, ...]:
        """Copy arrays in, one after the other from `start`; makes room where there is too little."""
        placed = []
        offset = start
        for array in arrays:
            offset = _aligned(offset)
            placed.append(Placed(array.dtype.str, array.shape, offset))
            offset += array.nbytes
        self.reserve(offset)
        for array, place in zip(arrays, placed, strict=True):
            np.copyto(self.view(place), array)
        return tuple(placed)

    def view(self, placed: Placed) -> Array:
        """The tensor where it lies.

        Raises:
            ValueError, TypeError: it does not lie in the memory.
        """
        if not 0 <= placed.offset <= self.bytes:
            raise ValueError(f"offset {placed.offset} of {self.bytes} bytes")
        return np.ndarray(placed.shape, np.dtype(placed.dtype), self._map, placed.offset)

    def reserve(self, size: int) -> None:
        """Have at least `size` bytes, making the file longer if the other side has not."""
        if size <= self.bytes:
            return
        if os.fstat(self.descriptor).st_size < size:
            os.ftruncate(self.descriptor, _aligned(size, _PAGE_BYTES))
        self.remap()

    def remap(self) -> None:
        """See what the other side has added."""
        self.bytes = os.fstat(self.descriptor).st_size
        self._map = mmap.mmap(self.descriptor, self.bytes)


def end_of(placed: Sequence[Placed]) -> int:
    """The first byte behind all of them."""
    return max((p.offset + np.dtype(p.dtype).itemsize * int(np.prod(p.shape, dtype=np.int64)) for p in placed), default=0)


def shared_file(size: int) -> int:
    """The descriptor of a file in memory that cannot be made shorter, so that no view of it can break."""
    if sys.platform == "linux":
        import fcntl

        descriptor = os.memfd_create("edgeml", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return descriptor
    else:  # noqa: RET505 - mypy reads what follows a platform's branch as that platform's
        with tempfile.TemporaryFile() as file:
            file.truncate(size)
            return os.dup(file.fileno())


def _aligned(size: int, to: int = ALIGNMENT) -> int:
    return -(-size // to) * to


learn(__name__)
