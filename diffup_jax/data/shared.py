"""A worker's batch in one piece of shared memory, so that it is copied once each way.

    worker    `pack`: the large arrays of a batch go to one new piece; what travels
              through the queue is its name and where each array lies
    reader    `unpack`: arrays of its own again, and the piece is gone
    at end    `sweep`: whatever workers left behind, because nobody asked for it or
              because they were stopped between two steps

All pieces of one reader have a name that begins with its `prefix`. They are registered
with Python's resource tracker as well, which removes them when the reader is killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

FOLDER = "/dev/shm"

# Smaller arrays travel through the queue: they are kept for long (the places of the
# episodes, say), and a piece costs more than they do.
_LARGE = 1 << 16
_ALIGN = 64


@dataclasses.dataclass(frozen=True)
class Parcel:
    """A batch on its way: `content` is the batch with `_Place`s for large arrays."""

    name: str
    content: Any


@dataclasses.dataclass(frozen=True)
class _Place:
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


def free_bytes() -> int:
    """Free bytes of shared memory, 0 where it has no folder."""
    return shutil.disk_usage(FOLDER).free if os.path.isdir(FOLDER) else 0


def new_prefix() -> str:
    """A beginning of names that no other reader has."""
    return f"diffup-{os.getpid()}-{secrets.token_hex(4)}-"


def pack(prefix: str, batch: Any) -> Any:
    """The batch as a `Parcel`; as it is when none of its arrays is large."""
    large: list[tuple[int, np.ndarray]] = []
    total = 0

    def place(array: np.ndarray) -> Any:
        nonlocal total
        if array.nbytes < _LARGE:
            return array
        large.append((total, array))
        found = _Place(total, array.shape, array.dtype)
        total += array.nbytes + -array.nbytes % _ALIGN
        return found

    content = _mapped(place, np.ndarray, batch)
    if not large:
        return batch
    name = prefix + secrets.token_hex(4)
    piece = SharedMemory(name, create=True, size=total)
    for offset, array in large:
        np.ndarray(array.shape, array.dtype, piece.buf, offset)[...] = array
    piece.close()
    return Parcel(name, content)


def unpack(batch: Any) -> Any:
    """What `pack` was given, each array on its own; anything else passes.

    Raises FileNotFoundError when the piece is gone.
    """
    if not isinstance(batch, Parcel):
        return batch
    piece = SharedMemory(batch.name)

    def copied(place: _Place) -> np.ndarray:
        # Not a view: an array that a caller keeps would hold the memory that workers
        # need for the next batches.
        return np.array(np.ndarray(place.shape, place.dtype, piece.buf, place.offset))

    try:
        return _mapped(copied, _Place, batch.content)
    finally:
        piece.unlink()
        piece.close()


def sweep(prefix: str) -> None:
    """Removes the pieces that nobody unpacked. Call it when the workers are gone."""
    for name in os.listdir(FOLDER) if os.path.isdir(FOLDER) else ():
        if name.startswith(prefix):
            with contextlib.suppress(FileNotFoundError):
                piece = SharedMemory(name)
                piece.unlink()
                piece.close()


def _mapped(change: Any, kind: type, value: Any) -> Any:
    """The same tuples and dictionaries with `change` of each value of a type."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(change, kind, part) for key, part in value.items()}
    if not isinstance(value, tuple):
        return value
    parts = [_mapped(change, kind, part) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
