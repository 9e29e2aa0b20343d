"""F0: files: written whole or not at all, read with one clear error, kept in one place.

A file or folder is made under a name beside its own and takes its name when it is done:
a reader finds it whole or absent, whatever stops the writer. No jax import: data
workers read this file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffup_jax.types import DiffUpError

_ASIDE = ".partial."


@contextlib.contextmanager
def whole_or_absent(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name beside `path`; what the block makes there becomes `path` at its end.

    It may be a file or a folder, and replaces what is there. Its ending is that of
    `path`, and no other process has it. When the block raises, or makes nothing, what
    it made is removed and `path` is left as it was. The folder of `path` is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, old = aside(path), aside(path)
    try:
        yield partial
        if partial.is_dir() and path.is_dir():
            path.rename(old)  # a folder can only take the place of an empty one
            try:
                os.replace(partial, path)
            except OSError:
                old.rename(path)
                raise
        else:
            os.replace(partial, path)
    finally:
        for left in (partial, old):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    left.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file whole or not at all; text as UTF-8 with its line ends as they are.

    Raises OSError when the folder cannot be made or written to.
    """
    with whole_or_absent(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def write_changed(path: str | os.PathLike[str], content: str | bytes) -> None:
    """`write_whole`, but a file that has this content already is left untouched."""
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    if not (path.is_file() and path.read_bytes() == content):
        write_whole(path, content)


def aside(path: Path) -> Path:
    """A new name in the folder of `path`, with its ending, that no process has."""
    return path.with_name(f"{_ASIDE}{secrets.token_hex(4)}.{path.name}")


def left_aside(path: Path) -> list[Path]:
    """What killed writers of `path` left in its folder; live ones are among them."""
    start = len(f"{_ASIDE}{secrets.token_hex(4)}.")
    return [
        found
        for found in path.parent.glob(f"{_ASIDE}*")
        if found.name[start:] == path.name
    ]


def cache_folder(name: str) -> Path:
    """$DIFFUP_CACHE/`name`, by default ~/.cache/diffup/`name`; it may not exist yet."""
    root = os.environ.get("DIFFUP_CACHE") or "~/.cache/diffup"
    return Path(root).expanduser() / name


def file_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content in hexadecimal digits; raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: str | os.PathLike[str], *, fix: str) -> str:
    r"""The text of a UTF-8 file, with or without byte-order mark; line ends are \n.

    fix: one sentence or more that end the message: what the file should be, and how to
    get it. Raises DiffUpError when it is missing, cannot be read or is not UTF-8.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise DiffUpError(f"{path} is missing. {fix}") from None
    except OSError as error:
        raise DiffUpError(
            f"cannot read {path}: {error.strerror or error}. {fix}"
        ) from error
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DiffUpError(
            f"{path} is not UTF-8 text: its byte {error.start} is "
            f"0x{content[error.start]:02x}. Save it as UTF-8. {fix}"
        ) from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | os.PathLike[str], *, fix: str) -> Any:
    """The content of a JSON file, read by `read_text`.

    Raises DiffUpError as `read_text` does, and when the text is no JSON.
    """
    text = read_text(path, fix=fix)
    try:
        return json.loads(text)
    except ValueError as error:
        raise DiffUpError(f"{path} is not valid JSON ({error}). {fix}") from error
