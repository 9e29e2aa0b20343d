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
import json
import os
import re
import socket
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffup_jax import weights as weight_files
from diffup_jax.backbones.recipe import Normalise
from diffup_jax.types import DiffUpError

_HUB_ID = re.compile(
    r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?(:(?P<file>[\w./-]+))?"
)
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# Small files of a Hugging Face repository that `check` and tokenizers read.
_BESIDE = (
    *("config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "vocab.json", "merges.txt"),
    *("preprocessor_config.json", "open_clip_config.json"),
)
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
    named = os.environ.get("DIFFUP_CACHE")
    root = Path(named).expanduser() if named else Path.home() / ".cache" / "diffup"
    return root / "backbones"


def locate(
    name: str, weights: str | os.PathLike | None, *, packaged: Path | None, hub: str
) -> Source:
    """The files that the option `weights` means for the backbone `name`.

    Downloads what is not there yet. Raises DiffUpError when there is no such file or
    id, and when it cannot be downloaded.
    """
    if not weights:
        if packaged is not None:
            return Source((packaged,), "packaged", packaged.parent)
        if not hub:
            raise DiffUpError(
                f"Backbone {name!r} has no weights packaged with it and no default "
                f"id, and the option for a file is empty ({weights!r}). "
                f"{weight_files.PROVIDE}"
            )
        return _from_hub(hub, command=f"diffup backbones fetch {name}")
    text = os.path.expandvars(os.fspath(weights))
    path = Path(text).expanduser()
    if path.is_dir():
        return Source(_in_folder(path), text, path)
    hub_id = _HUB_ID.fullmatch(text)
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


def config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder. Raises DiffUpError when there is none to read."""
    file = folder / "config.json"
    if not folder.is_dir():
        raise DiffUpError(
            f"No folder at {str(folder)!r}; expected one with config.json and "
            "safetensors, as Hugging Face's save_pretrained writes it."
        )
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DiffUpError(
            f"{str(file)!r} cannot be read: {error}. The folder needs the config.json "
            "of its network; without one, name the network: backbones.get(NAME, "
            f"weights={str(folder)!r})."
        ) from error
    if not isinstance(found, dict):
        raise DiffUpError(f"{str(file)!r} is not the config.json of a network.")
    return found


def normalise(folder: Path) -> Normalise | None:
    """What preprocessor_config.json does to an image in [0, 1]; None without the file.

    Raises DiffUpError when it cannot be read, or scales otherwise than by 1/255.
    """
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        scale = float(found.get("rescale_factor", 1 / 255))
        plain = not found.get("do_normalize", True)
        mean, std = ((0.0,) * 3, (1.0,) * 3)
        if not plain:
            mean, std = (
                tuple(float(x) for x in found[key])
                for key in ("image_mean", "image_std")
            )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DiffUpError(
            f"{str(file)!r} cannot be read ({type(error).__name__}: {error}); expected "
            "image_mean and image_std, three numbers each. Correct or remove it."
        ) from error
    if abs(scale * 255 - 1) > 1e-6 or len(mean) != 3 or len(std) != 3:
        raise DiffUpError(
            f"{str(file)!r} asks for rescale_factor {scale}, image_mean {mean} and "
            f"image_std {std}; expected 1/255 and three channels. Correct or remove it."
        )
    return Normalise(mean, std, bgr=False)


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


def _in_folder(folder: Path) -> tuple[Path, ...]:
    if (folder / _SINGLE).is_file():
        return (folder / _SINGLE,)
    if (folder / _INDEX).is_file():
        return tuple(folder / shard for shard in _shards(folder / _INDEX))
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return (found[0],)
    there = ", ".join(f.name for f in found) if found else "no .safetensors file"
    raise DiffUpError(
        f"The folder {str(folder)!r} holds {there}; expected {_SINGLE}, or shards with "
        f"{_INDEX}, or exactly one .safetensors file. Name the file itself, or "
        "save the network with save_pretrained."
    )


def _shards(index: Path) -> tuple[str, ...]:
    """File names in an index, in order."""
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        plain = sorted(set(names))
        if not plain or any(Path(name).name != name for name in plain):
            raise ValueError(f"its weight_map names {plain[:3]}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DiffUpError(
            f"{str(index)!r} cannot be read as an index of shards: {error}. Fetch the "
            "folder again."
        ) from error
    return tuple(plain)


# --- Hugging Face ---------------------------------------------------------------------


def _from_hub(hub: str, *, command: str) -> Source:
    match = _HUB_ID.fullmatch(hub)
    repo, revision, file = match["repo"], match["revision"], match["file"]
    known = (file,) if file else (_SINGLE, _INDEX)
    new = not any(isinstance(_in_cache(repo, revision, x), Path) for x in known)
    first = _hub_file(repo, revision, known[0], command=command)
    if first is not None:
        files = (first,)
    elif file is None and (index := _hub_file(repo, revision, _INDEX, command=command)):
        files = tuple(
            _hub_file(repo, revision, shard, command=command)
            for shard in _shards(index)
        )
    else:
        files = ()
    if not files or None in files:
        raise DiffUpError(
            f"The Hugging Face repository {hub!r} has no {file or _SINGLE}; only "
            "safetensors are read from there. Name a file or a revision that has it "
            "(org/name@refs/pr/1, org/name:file), or give a local file."
        )
    for beside in _BESIDE if new else ():
        _hub_file(repo, revision, beside, command=command)
    return Source(files, hub, files[0].parent)


def _hub_file(
    repo: str, revision: str | None, file: str, *, command: str
) -> Path | None:
    """The file in huggingface_hub's cache, downloaded if need be; None when the
    repository has no such file.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    there = _in_cache(repo, revision, file)
    if there is not None:
        return there if isinstance(there, Path) else None
    try:
        if not constants.HF_HUB_OFFLINE and not _reachable(constants.ENDPOINT):
            raise OSError(f"{constants.ENDPOINT} has no address here")
        return Path(huggingface_hub.hf_hub_download(repo, file, revision=revision))
    except errors.LocalEntryNotFoundError as error:
        reason = error
    except errors.EntryNotFoundError:
        return None
    except errors.GatedRepoError as error:
        raise DiffUpError(
            f"The weights {repo!r} are given only to those who accepted their licence: "
            f"do so at {constants.ENDPOINT}/{repo}, log in with 'hf auth login', "
            f"then: {command}"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise DiffUpError(
            f"Hugging Face has no {repo!r}{f' at {revision!r}' if revision else ''}, "
            "and there is no local file or folder of that name. " + weight_files.PROVIDE
        ) from error
    except OSError as error:  # no network, a broken one, a full disk
        reason = error
    if file in _BESIDE:
        return None  # useful, not needed
    raise DiffUpError(
        f"The weights {repo!r} ({file}) are not in the cache "
        f"{constants.HF_HUB_CACHE!r} and cannot be downloaded "
        f"({str(reason).splitlines()[0] if str(reason) else type(reason).__name__}). "
        f"Where there is a network, run: {command}\nHF_HOME or HF_HUB_CACHE name "
        f"another cache folder. {weight_files.PROVIDE}"
    ) from reason


def _in_cache(repo: str, revision: str | None, file: str) -> Path | bool | None:
    """The file in the cache; False = the repository is known not to have it."""
    import huggingface_hub

    there = huggingface_hub.try_to_load_from_cache(repo, file, revision=revision)
    if isinstance(there, str):
        return Path(there)
    return None if there is None else False


def _reachable(endpoint: str) -> bool:
    """False when the endpoint cannot even be looked up; its library would try for 20
    seconds. Behind a proxy nothing can be said from here.
    """
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(endpoint).hostname, None)
    except OSError:
        return False
    return True


# --- Keys of the store ----------------------------------------------------------------


def _content(files: tuple[Path, ...], folder: Path) -> str:
    """Hash of the files' bytes, remembered for their paths, sizes and times."""
    state = hashlib.sha256()
    for file in files:
        facts = file.stat()
        state.update(f"{file.resolve()} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    known = folder / f"seen-{state.hexdigest()[:16]}"
    if known.is_file():
        found = known.read_text(encoding="ascii", errors="replace")
        if re.fullmatch(r"[0-9a-f]{16}", found):
            return found
    state = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            state.update(hashlib.file_digest(stream, "sha256").digest())
    found = state.hexdigest()[:16]
    partial = known.with_name(f".{known.name}.{os.getpid()}")
    partial.write_text(found, encoding="ascii")
    os.replace(partial, known)
    return found


def _warn(folder: Path, error: OSError) -> None:
    warnings.warn(
        f"Converted weights cannot be kept in {str(folder)!r} ({error}); they are "
        "converted again every time. DIFFUP_CACHE names another folder.",
        RuntimeWarning,
        stacklevel=3,
    )
