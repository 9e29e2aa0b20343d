"""Arrays in one file that every process maps instead of holding.

    MAGIC | length of the head, 8 bytes | head, JSON | the arrays, each at 64 bytes

The head holds the key, the facts (any JSON), the place of each array, the size of the
file and the hash of facts, places and arrays. A file is written to a sibling and
renamed, so it is whole or absent; one that is damaged, or whose key is another, is made
again and never trusted.

A `Mapped` is pickled as its path and key: a worker maps the same pages as its parent,
which the machine holds once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffup_jax.types import DiffUpError

_MAGIC = b"diffup arrays 1\n"
_ALIGN = 64


class Mapped:
    """The arrays of one file, read-only, by name; `facts` is what was stored beside.

    Made by `open_mapped`. The pages are read from the disk when they are used.
    """

    def __init__(self, path: str, key: str):
        """Raises DiffUpError when the file is not there whole with this key."""
        self.path, self.key = path, key
        try:
            head, start = _head(path, key)
            with open(path, "rb") as file:
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DiffUpError(
                f"{path} is not the index it was ({type(error).__name__}: {error}); "
                "was the data set changed during the run? Start again: it is rebuilt."
            ) from error
        self.facts: dict[str, Any] = head["facts"]
        self._arrays = {
            name: np.frombuffer(
                pages, np.dtype(kind), int(np.prod(shape)), start + offset
            ).reshape(shape)
            for name, (kind, shape, offset) in head["arrays"].items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __reduce__(self):
        return Mapped, (self.path, self.key)


def open_mapped(
    key: str, make: Callable[[], tuple[dict[str, np.ndarray], dict[str, Any]]]
) -> Mapped:
    """The cached file with this key, if it is whole.

    Without one, `make()` answers (arrays, facts), which are written. Raises DiffUpError
    when the cache folder cannot be written.
    """
    path = cache_file(key)
    if not _is_whole(path, key):
        arrays, facts = make()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, key, arrays, facts)
        except OSError as error:
            raise DiffUpError(
                f"no place for an index ({path}: {error.strerror or error}). Make the "
                "folder writable, or name another in the variable DIFFUP_CACHE."
            ) from error
    return Mapped(str(path), key)


def cache_file(key: str) -> Path:
    """$DIFFUP_CACHE/index/KEY.index; the folder is ~/.cache/diffup by default."""
    named = os.environ.get("DIFFUP_CACHE")
    root = Path(named or "~/.cache/diffup").expanduser()
    return root / "index" / f"{key}.index"


def file_hash(path: str | os.PathLike[str]) -> str:
    """32 hexadecimal digits over the content of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, _hash).hexdigest()


def _hash(head: dict[str, Any] | None = None) -> Any:
    """An empty hash, or one that has seen what a head says of its arrays."""
    told = b"" if head is None else json.dumps([head["facts"], head["arrays"]]).encode()
    return hashlib.blake2b(told, digest_size=16)


def _head(path: str | os.PathLike[str], key: str) -> tuple[dict[str, Any], int]:
    """The head of a file and where its arrays begin; raises for any other file."""
    with open(path, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("no such file of arrays")
        length = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
        if length > size:
            raise ValueError("cut short")
        head = json.loads(file.read(length))
    if head["key"] != key:
        raise ValueError("made from other data")
    if head["size"] != size:
        raise ValueError(f"{size} bytes instead of {head['size']}")
    return head, len(_MAGIC) + 8 + length


def _is_whole(path: Path, key: str) -> bool:
    try:
        head, start = _head(path, key)
        with open(path, "rb") as file:
            file.seek(start)
            digest = hashlib.file_digest(file, lambda: _hash(head))
        return digest.hexdigest() == head["hash"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(path: Path, key: str, arrays, facts) -> None:
    table, offset = {}, 0
    for name, array in arrays.items():
        table[name] = (array.dtype.str, array.shape, offset)
        offset += array.nbytes + -array.nbytes % _ALIGN
    head = {"key": key, "facts": facts, "arrays": table}
    # The head goes in front but is known last: it is padded with blanks to a length
    # known first, which JSON allows.
    length = len(json.dumps({**head, "size": 1 << 62, "hash": "0" * 32}))
    length += -(len(_MAGIC) + 8 + length) % _ALIGN
    start = len(_MAGIC) + 8 + length
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    body = _hash(head)
    try:
        with open(partial, "wb") as file:
            file.seek(start)
            for array in arrays.values():
                content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                for piece in (content, bytes(-array.nbytes % _ALIGN)):
                    body.update(piece)
                    file.write(piece)
            head |= {"size": start + offset, "hash": body.hexdigest()}
            file.seek(0)
            file.write(_MAGIC + length.to_bytes(8, "little"))
            file.write(json.dumps(head).encode().ljust(length))
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
