"""F2: weights by their Hugging Face id: from huggingface_hub's cache, or downloaded."""

from __future__ import annotations

import re
import socket
import urllib.parse
import urllib.request
from pathlib import Path

from diffup_jax import weights as weight_files
from diffup_jax.backbones import folders
from diffup_jax.types import DiffUpError

# An id in full: org/name@revision:file.
ID = re.compile(
    r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?(:(?P<file>[\w./-]+))?"
)
# Small files of a repository that `check` and tokenizers read.
_BESIDE = (
    *("config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "vocab.json", "merges.txt"),
    *("preprocessor_config.json", "open_clip_config.json"),
)


def files(name: str, *, command: str) -> tuple[Path, ...]:
    """The weight files of an id (ID) in huggingface_hub's cache.

    What is not there is downloaded, with the small files that lie beside them.
    `command` is what an error tells the user to run where there is a network. Raises
    DiffUpError when the id is unknown, has no safetensors, or cannot be fetched.
    """
    match = ID.fullmatch(name)
    repo, revision, file = match["repo"], match["revision"], match["file"]
    known = (file,) if file else (folders.SINGLE, folders.INDEX)
    new = not any(isinstance(_in_cache(repo, revision, x), Path) for x in known)
    first = _hub_file(repo, revision, known[0], command=command)
    if first is not None:
        found = (first,)
    elif file is None and (
        index := _hub_file(repo, revision, folders.INDEX, command=command)
    ):
        found = tuple(
            _hub_file(repo, revision, shard, command=command)
            for shard in folders.shards(index)
        )
    else:
        found = ()
    if not found or None in found:
        raise DiffUpError(
            f"The Hugging Face repository {name!r} has no {file or folders.SINGLE}; "
            "only safetensors are read from there. Name a file or a revision that has "
            "it (org/name@refs/pr/1, org/name:file), or give a local file."
        )
    for beside in _BESIDE if new else ():
        _hub_file(repo, revision, beside, command=command)
    return found


def file(name: str, path: str) -> Path:
    """One file of an id (ID) in huggingface_hub's cache, downloaded if need be.

    Raises DiffUpError when the id is unknown, has no such file, or cannot be fetched.
    """
    match = ID.fullmatch(name)
    command = f"hf download {match['repo']}"
    found = _hub_file(match["repo"], match["revision"], path, command=command)
    if found is None:
        raise DiffUpError(
            f"The Hugging Face repository {name!r} has no {path}; expected a folder "
            "that Model.save wrote."
        )
    return found


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
