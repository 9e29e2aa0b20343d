"""F1: named arrays in one file: whole or absent, mapped, with a digest of every array.

    MAGIC | length of the head, 8 bytes | SHA-256 of the head | head, JSON | arrays

The head holds the key, the facts (any JSON) and of every array its type, shape, place
(a multiple of 64 bytes) and SHA-256. Opening reads the whole file and compares every
digest, so a flipped byte or a missing end is found before a number of it is used. An
`Arrays` is pickled as its path and key: a worker maps the same pages as its parent,
which the machine holds once, and checks the head only.

A store is written at once (`write`), or row by row (`RowWriter`), where a stopped
writer goes on with the row it stopped at. No jax import: data workers read this file.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from diffup_jax.files import whole_or_absent, write_whole
from diffup_jax.types import DiffUpError

_MAGIC = b"diffup arrays 2\n"
_START = len(_MAGIC) + 8 + hashlib.sha256().digest_size  # where the head begins
_ALIGN = 64
_BLOCK = 1 << 22  # bytes hashed at a time
_THREADS = 8  # arrays hashed at a time: hashing leaves the interpreter to others
_BROKEN = (OSError, ValueError, KeyError, TypeError)


class Spec(NamedTuple):
    """What is known of an array before it is made."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


class Arrays:
    """The arrays of one file, read-only, by name; `facts` is what was stored beside.

    Made by `open_or_make`. The pages are read from the disk when they are used.
    """

    def __init__(self, path: str, key: str):
        """Maps the file; only its head is checked.

        Raises DiffUpError when it is missing, damaged or of another key.
        """
        self.path, self.key = path, key
        try:
            head, start = _head(path, key)
            with open(path, "rb") as file:
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except _BROKEN as error:
            raise DiffUpError(_told(path, error)) from error
        self.facts: dict[str, Any] = head["facts"]
        self.specs = {
            name: Spec(np.dtype(kind), tuple(shape))
            for name, (kind, shape, *_) in head["arrays"].items()
        }
        self.nbytes = sum(spec.nbytes for spec in self.specs.values())
        self._arrays = {
            name: np.frombuffer(
                pages, spec.dtype, int(np.prod(spec.shape)), start + place
            ).reshape(spec.shape)
            for (name, spec), (*_, place, _) in zip(
                self.specs.items(), head["arrays"].values(), strict=True
            )
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __reduce__(self):
        return Arrays, (self.path, self.key)


def open_or_make(path: Path, key: str, make: Callable[[], None]) -> Arrays:
    """The store at `path` with this key, whose head and arrays have their digests.

    Where there is none, `make()` writes it first. One that is there and damaged, cut
    short or of another key is told in a warning and made again. Raises what `make`
    raises.
    """
    if os.path.exists(path):  # unlike Path.exists, no error where it may not look
        try:
            _verify(path, key)
            return Arrays(str(path), key)
        except _BROKEN as error:
            warnings.warn(
                f"{path} is damaged and made again: {error}.",
                RuntimeWarning,
                stacklevel=3,
            )
    make()
    return Arrays(str(path), key)


def write(
    path: str | os.PathLike[str],
    key: str,
    arrays: Mapping[str, np.ndarray],
    *,
    facts: dict[str, Any],
) -> None:
    """Writes a store whole or not at all. Raises OSError."""
    specs = {name: Spec(array.dtype, array.shape) for name, array in arrays.items()}
    layout = _Layout(key, facts, specs)
    with whole_or_absent(path) as partial, open(partial, "w+b") as file:
        file.truncate(layout.size)
        states = {}
        for name, array in arrays.items():
            content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            states[name] = hashlib.sha256(content)
            file.seek(layout.start + layout.places[name])
            file.write(content)
        layout.finish(file, states)


class RowWriter:
    """A store made row by row in PATH.part; PATH.part.json says how far it is.

    done: the number of rows that are written; a new writer of the same key, facts and
    specs goes on there, unless what was written is not what it was, which is told in a
    warning. rows: the number of all rows, the first axis of every array.
    """

    def __init__(
        self,
        path: Path,
        key: str,
        *,
        facts: dict[str, Any],
        specs: Mapping[str, Spec],
    ):
        self._path = path
        self._part = path.with_name(f"{path.name}.part")
        self._progress = path.with_name(f"{path.name}.part.json")
        self._layout = _Layout(key, facts, specs)
        (self.rows,) = {spec.shape[0] for spec in specs.values()}
        self.done = 0
        self._states = {name: hashlib.sha256() for name in specs}
        if self._progress.exists():
            self._go_on()

    def append(self, rows: Mapping[str, np.ndarray]) -> None:
        """Writes the next rows of every array; those beyond `self.rows` are dropped.

        Raises OSError when they cannot be written.
        """
        count = min(len(next(iter(rows.values()))), self.rows - self.done)
        self._part.parent.mkdir(parents=True, exist_ok=True)
        with open(self._part, "r+b" if self.done else "wb") as file:
            file.truncate(self._layout.size)
            for name, spec in self._layout.specs.items():
                content = np.ascontiguousarray(rows[name][:count], spec.dtype)
                if content.shape != (count, *spec.shape[1:]):
                    raise ValueError(f"rows of {name}: {content.shape}, not {spec}")
                content = content.reshape(-1).view(np.uint8)
                file.seek(self._place(name, self.done))
                file.write(content)
                self._states[name].update(content)
        self.done += count
        write_whole(self._progress, self._told())

    def finish(self) -> None:
        """Gives the store its name, once all rows are written."""
        if self.done != self.rows:
            raise ValueError(f"{self.done} of {self.rows} rows are written")
        with open(self._part, "r+b") as file:
            self._layout.finish(file, self._states)
        os.replace(self._part, self._path)
        self._progress.unlink(missing_ok=True)

    def _place(self, name: str, row: int) -> int:
        spec = self._layout.specs[name]
        width = spec.nbytes // max(self.rows, 1)
        return self._layout.start + self._layout.places[name] + row * width

    def _told(self) -> str:
        """What is remembered of the rows so far, JSON."""
        return json.dumps({"rows": self.done, "head": self._layout.head(self._states)})

    def _go_on(self) -> None:
        """Takes over the rows of a stopped writer, when they are as it left them."""
        try:
            told = self._progress.read_text(encoding="utf-8")
            self.done = json.loads(told)["rows"]
            with open(self._part, "rb") as file:
                for name in self._states:
                    first = self._place(name, 0)
                    length = self._place(name, self.done) - first
                    self._states[name] = _hashed(file, first, length)
            sound = told == self._told()
        except _BROKEN:
            sound = False
        if not sound:
            warnings.warn(
                f"{self._part} is damaged or was begun otherwise: made from the start.",
                RuntimeWarning,
                stacklevel=3,
            )
            self.done = 0
            self._states = {name: hashlib.sha256() for name in self._states}


class _Layout:
    """Where everything of a store lies, known before any array is."""

    def __init__(self, key: str, facts: dict[str, Any], specs: Mapping[str, Spec]):
        self.key, self.facts, self.specs = key, facts, dict(specs)
        self.places, self.bytes = {}, 0
        for name, spec in specs.items():
            self.places[name] = self.bytes
            self.bytes += spec.nbytes + -spec.nbytes % _ALIGN
        # The head stands in front but is known last. Its length is known first: that
        # of a digest is, and blanks after JSON are allowed.
        blank = {name: hashlib.sha256() for name in specs}
        self._length = len(json.dumps(self.head(blank)))
        self._length += -(_START + self._length) % _ALIGN
        self.start = _START + self._length
        self.size = self.start + self.bytes

    def head(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """The head with the digests of these states."""
        table = {
            name: [
                spec.dtype.str,
                list(spec.shape),
                self.places[name],
                states[name].hexdigest(),
            ]
            for name, spec in self.specs.items()
        }
        head = {"key": self.key, "facts": self.facts, "bytes": self.bytes}
        return {**head, "arrays": table}

    def finish(self, file: BinaryIO, states: Mapping[str, Any]) -> None:
        """Writes the head. Zeros up to the next array count to an array's digest."""
        for name, spec in self.specs.items():
            states[name].update(bytes(-spec.nbytes % _ALIGN))
        head = json.dumps(self.head(states)).encode().ljust(self._length)
        file.seek(0)
        file.write(_MAGIC + self._length.to_bytes(8, "little"))
        file.write(hashlib.sha256(head).digest() + head)


def _head(path: str | os.PathLike[str], key: str) -> tuple[dict[str, Any], int]:
    """The head of a file and where its arrays begin; raises for any other file."""
    with open(path, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"it does not begin with {_MAGIC.decode().strip()!r}")
        length = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
        digest = file.read(_START - len(_MAGIC) - 8)
        content = file.read(length) if length <= size else b""
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its head has not its digest")
    head = json.loads(content)
    if head["key"] != key:
        raise ValueError(f"its key is {head['key']!r}, not {key!r}")
    if _START + length + head["bytes"] != size:
        raise ValueError(f"{size} bytes, not {_START + length + head['bytes']}")
    return head, _START + length


def _verify(path: str | os.PathLike[str], key: str) -> None:
    """Reads all of a store; raises one of _BROKEN when anything is not as written."""
    head, start = _head(path, key)
    entries = head["arrays"].values()
    places = [place for _, _, place, _ in entries]
    ends = [*places[1:], head["bytes"]]

    def digest(place: int, end: int) -> str:
        with open(path, "rb") as file:
            return _hashed(file, start + place, end - place).hexdigest()

    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(digest, places, ends)
        for name, entry, each in zip(head["arrays"], entries, found, strict=True):
            if each != entry[3]:
                raise ValueError(f"the array {name!r} has another digest than written")


def _hashed(file: BinaryIO, first: int, length: int) -> Any:
    """The state of a hash that has seen `length` bytes of a file from `first` on."""
    state = hashlib.sha256()
    file.seek(first)
    while length and (block := file.read(min(length, _BLOCK))):
        state.update(block)
        length -= len(block)
    return state


def _told(path: str | os.PathLike[str], error: Exception) -> str:
    return (
        f"{path} is not the store of arrays that was written: {error}. It was damaged, "
        "or changed during the run. Start again: it is made again."
    )
