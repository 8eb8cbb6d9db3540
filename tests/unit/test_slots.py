"""Two slots and a pointer: what is on disk after every failure."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeml.runtime.atomic import write_file
from edgeml.runtime.slots import Installed, Slots
from edgeml.wire.errors import UpdateError
from edgeml.wire.messages import Slot

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


class Quota:
    """Stands for `os.write` on a disk with so many bytes left; a write that does not fit is cut short, then refused."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, descriptor: int, data: memoryview) -> int:
        if self.left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = min(self.left, len(data))
        self.left -= taken
        return os.write(descriptor, data[:taken])


def put(slots: Slots, digest: str, version: str) -> None:
    part = slots.part(digest)
    part.write_bytes(digest.encode())
    slots.install(part, Installed(digest, version, digest, 64))


def test_a_new_process_finds_what_was_installed_and_which_is_active(tmp_path: Path) -> None:
    slots = Slots(tmp_path, "kws")
    put(slots, A, "1.0.0")
    put(slots, B, "1.1.0")
    slots.activate(B)
    again = Slots(tmp_path, "kws")
    assert again.report() == (Slot("1.0.0", A, active=False), Slot("1.1.0", B, active=True))
    assert again.path(B).read_bytes() == B.encode()


def test_a_file_that_the_pointer_does_not_name_is_removed_at_start(tmp_path: Path) -> None:
    slots = Slots(tmp_path, "kws")
    put(slots, A, "1.0.0")
    slots.path(C).write_bytes(b"left by a process that was killed")
    assert not Slots(tmp_path, "kws").path(C).exists()


def test_a_slot_whose_file_is_gone_is_not_named(tmp_path: Path) -> None:
    slots = Slots(tmp_path, "kws")
    put(slots, A, "1.0.0")
    slots.activate(A)
    slots.path(A).unlink()
    again = Slots(tmp_path, "kws")
    assert again.active is None
    assert again.installed == ()


@pytest.mark.parametrize(
    "text", [b"", b"{", b'{"active": "../../etc"}', b"\xff", b"[]"], ids=["empty", "cut", "path", "bytes", "list"]
)
def test_a_pointer_that_cannot_be_read_is_as_none(tmp_path: Path, text: bytes) -> None:
    Slots(tmp_path, "kws")
    (tmp_path / "slots.json").write_bytes(text)
    assert Slots(tmp_path, "kws").installed == ()


def test_pruning_never_deletes_the_active_slot(tmp_path: Path) -> None:
    slots = Slots(tmp_path, "kws")
    put(slots, A, "1.0.0")
    put(slots, B, "1.1.0")
    slots.activate(A)
    slots.prune([B])
    assert {slot.digest for slot in slots.installed} == {A, B}
    slots.prune([])
    assert [slot.digest for slot in slots.installed] == [A]
    assert not slots.path(B).exists()


@pytest.mark.parametrize("left", [0, 1, 50, 150], ids=lambda n: f"{n} bytes left")
def test_a_disk_that_fills_up_while_the_pointer_is_written_keeps_the_old_one(tmp_path: Path, left: int) -> None:
    slots = Slots(tmp_path, "kws")
    put(slots, A, "1.0.0")
    slots.activate(A)
    full = Slots(tmp_path, "kws", write=Quota(left))
    with pytest.raises(UpdateError, match="No space left") as caught:
        put(full, B, "1.1.0")
    assert (caught.value.code, caught.value.retryable) == ("disk_full", True)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [f"{A}.edgeml", "slots.json"]
    again = Slots(tmp_path, "kws")
    assert again.active == A


def test_what_cannot_fit_is_refused_before_the_first_byte(tmp_path: Path) -> None:
    with pytest.raises(UpdateError, match="do not fit") as caught:
        Slots(tmp_path, "kws").require_space(1 << 60)
    assert (caught.value.code, caught.value.retryable) == ("disk_full", True)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_file(path, b"old")
    with pytest.raises(OSError, match="No space"):
        write_file(path, b"new and longer", write=Quota(4))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@contextlib.contextmanager
def tiny_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own, where this process may mount one."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk_keeps_the_old_version(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", "256k") as disk:
        slots = Slots(disk, "kws")
        put(slots, A, "1.0.0")
        slots.activate(A)
        with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(bytes(4096)):
                pass
        with pytest.raises(UpdateError):
            slots.require_space(1)
        with pytest.raises(OSError, match="No space"):
            put(slots, B, "1.1.0")
        assert Slots(disk, "kws").active == A
