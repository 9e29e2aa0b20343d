"""F2: where a backbone's weights come from, and the store of converted ones.

`locate` turns the option `weights` into files on this machine:

    "" or None          the file packaged with the network, else its default id
    an existing path    one file, or a folder with one .safetensors file, or with shards
                        and their index
    org/name            a Hugging Face id, `org/name@revision:file` in full: what is in
                        huggingface_hub's cache is used as it is, the rest is downloaded
                        into it; safetensors only

A path wins over an id; environment variables are expanded. `converted` keeps the result
of a conversion, in `$DIFFUP_CACHE/backbones` (or ~/.cache/diffup/backbones), under the
hash of the source files' content and of all code that took part in the conversion, so
that neither a changed file nor a changed converter can meet an old result. It is
memory-mapped when it is read. The content is hashed once for each path, size and time
of change.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffup_jax import files
from diffup_jax import weights as weight_files
from diffup_jax.backbones import folders, hub
from diffup_jax.types import DiffUpError

# Smaller sources are converted in less time than a store would save.
_WORTH_KEEPING = 16 << 20


class Source(NamedTuple):
    """Weights on this machine: one file or all shards of one set, and what to call it.

    `folder` is where they lie, with what lies beside them (config.json, tokenizer).
    """

    files: tuple[Path, ...]
    origin: str
    folder: Path


def cache_folder() -> Path:
    """The folder of converted weights."""
    return files.cache_folder("backbones")


def locate(
    name: str, weights: str | os.PathLike | None, *, packaged: Path | None, default: str
) -> Source:
    """The files that the option `weights` means for the backbone `name`.

    Downloads what is not there yet. Raises DiffUpError when there is no such file or
    id, and when it cannot be downloaded.
    """
    if not weights:
        if packaged is not None:
            return Source((packaged,), "packaged", packaged.parent)
        if not default:
            raise DiffUpError(
                f"Backbone {name!r} has no weights packaged with it and no default "
                f"id, and the option for a file is empty ({weights!r}). "
                f"{weight_files.PROVIDE}"
            )
        return _from_hub(default, command=f"diffup backbones fetch {name}")
    text = os.path.expandvars(os.fspath(weights))
    path = Path(text).expanduser()
    if path.is_dir():
        return Source(folders.files(path), text, path)
    hub_id = hub.ID.fullmatch(text)
    file = path.suffix in weight_files.READABLE or path.is_absolute()
    if path.exists() or (file and not (hub_id and hub_id["file"])):
        return Source((path,), text, path.parent)  # reading tells what is wrong
    if hub_id:
        command = f"diffup backbones fetch {name} --weights {text}"
        return _from_hub(text, command=command)
    raise DiffUpError(
        f"No weights at {text!r}: it is neither a file, nor a folder, nor a Hugging "
        f"Face id (org/name). {weight_files.PROVIDE}"
    )


def read(source: Source) -> dict[str, np.ndarray]:
    """All arrays of the source by key. Raises DiffUpError for a key in two shards."""
    found: dict[str, np.ndarray] = {}
    for file in source.files:
        arrays = weight_files.read(file)
        twice = found.keys() & arrays.keys()
        if twice:
            raise DiffUpError(
                f"{str(file)!r} holds {sorted(twice)[:3]}, which another file of "
                f"{source.origin!r} holds too. Keep one set of weights in the folder."
            )
        found |= arrays
    return found


def converted(
    name: str,
    source: Source,
    *,
    sizes: str,
    make: Callable[[], dict[str, Any]],
) -> tuple[dict[str, Any], str]:
    """(params, digest): from the store, else made, and stored when that is worth it.

    `sizes` says everything the conversion depends on besides the files and the code. A
    store that cannot be written to is told in a warning, and done without.
    """
    sound = all(file.is_file() for file in source.files)
    if not sound or sum(f.stat().st_size for f in source.files) < _WORTH_KEEPING:
        params = make()
        return params, weight_files.digest(params)
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = _content(source.files, folder)
        label = re.sub(r"[^\w.-]", "_", name)
        file = folder / f"{label}-{content}-{converter(sizes)}.safetensors"
        if file.is_file():
            try:
                return weight_files.load_converted(file)
            except DiffUpError:
                file.unlink(missing_ok=True)  # damaged: made again
    except OSError as error:
        file = None
        _warn(folder, error)
    params = make()
    digest = weight_files.digest(params)
    if file is not None:
        try:
            weight_files.save_converted(file, params, digest=digest)
            for old in folder.glob(f"{label}-{content}-*.safetensors"):
                if old != file:  # of another version of this program
                    old.unlink(missing_ok=True)
        except OSError as error:
            _warn(folder, error)
    return params, digest


def converter(sizes: str) -> str:
    """Hash of `sizes` and of all code that takes part in a conversion.

    The code itself, because a version number is a thing to forget.
    """
    state = hashlib.sha256(sizes.encode())
    here = Path(__file__).parent
    for file in (*sorted(here.glob("*.py")), Path(weight_files.__file__)):
        state.update(file.read_bytes())
    return state.hexdigest()[:16]


def _from_hub(name: str, *, command: str) -> Source:
    found = hub.files(name, command=command)
    return Source(found, name, found[0].parent)


def _content(sources: tuple[Path, ...], folder: Path) -> str:
    """Hash of the files' bytes, remembered for their paths, sizes and times."""
    state = hashlib.sha256()
    for file in sources:
        facts = file.stat()
        state.update(f"{file.resolve()} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    known = folder / f"seen-{state.hexdigest()[:16]}"
    if known.is_file():
        found = known.read_text(encoding="ascii", errors="replace")
        if re.fullmatch(r"[0-9a-f]{16}", found):
            return found
    state = hashlib.sha256()
    for file in sources:
        state.update(bytes.fromhex(files.file_hash(file)))
    found = state.hexdigest()[:16]
    files.write_whole(known, found)
    return found


def _warn(folder: Path, error: OSError) -> None:
    warnings.warn(
        f"Converted weights cannot be kept in {str(folder)!r} ({error}); they are "
        "converted again every time. DIFFUP_CACHE names another folder.",
        RuntimeWarning,
        stacklevel=3,
    )
