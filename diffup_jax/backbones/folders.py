"""F2: a folder with a network, as Hugging Face's `save_pretrained` writes it.

Its weights are `model.safetensors`, or shards with their index, or the only
.safetensors file there; config.json tells the network, preprocessor_config.json how its
images are scaled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffup_jax.backbones.recipe import Normalise
from diffup_jax.files import read_json
from diffup_jax.types import DiffUpError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder. Raises DiffUpError when there is none to read."""
    file = folder / "config.json"
    if not folder.is_dir():
        raise DiffUpError(
            f"No folder at {str(folder)!r}; expected one with config.json and "
            "safetensors, as Hugging Face's save_pretrained writes it."
        )
    fix = (
        "The folder needs the config.json of its network; without one, name the "
        f"network: backbones.get(NAME, weights={str(folder)!r})."
    )
    found = read_json(file, fix=fix)
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
    fix = "Expected image_mean and image_std, three numbers each; correct or remove it."
    found = read_json(file, fix=fix)
    try:
        scale = float(found.get("rescale_factor", 1 / 255))
        plain = not found.get("do_normalize", True)
        mean, std = ((0.0,) * 3, (1.0,) * 3)
        if not plain:
            mean, std = (
                tuple(float(x) for x in found[key])
                for key in ("image_mean", "image_std")
            )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DiffUpError(
            f"{str(file)!r} cannot be read ({type(error).__name__}: {error}). {fix}"
        ) from error
    if abs(scale * 255 - 1) > 1e-6 or len(mean) != 3 or len(std) != 3:
        raise DiffUpError(
            f"{str(file)!r} asks for rescale_factor {scale}, image_mean {mean} and "
            f"image_std {std}; expected 1/255 and three channels. Correct or remove it."
        )
    return Normalise(mean, std, bgr=False)


def files(folder: Path) -> tuple[Path, ...]:
    """The weight files of a folder. Raises DiffUpError when it is not clear which."""
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    if (folder / INDEX).is_file():
        return tuple(folder / shard for shard in shards(folder / INDEX))
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return (found[0],)
    there = ", ".join(f.name for f in found) if found else "no .safetensors file"
    raise DiffUpError(
        f"The folder {str(folder)!r} holds {there}; expected {SINGLE}, or shards with "
        f"{INDEX}, or exactly one .safetensors file. Name the file itself, or "
        "save the network with save_pretrained."
    )


def shards(index: Path) -> tuple[str, ...]:
    """File names in an index, in order. Raises DiffUpError when it is no index."""
    fix = "Expected an index of shards; fetch the folder again."
    found = read_json(index, fix=fix)
    try:
        names = found["weight_map"].values()
        plain = sorted(set(names))
        if not plain or any(Path(name).name != name for name in plain):
            raise ValueError(f"its weight_map names {plain[:3]}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DiffUpError(
            f"{str(index)!r} names no weights ({type(error).__name__}: {error}). {fix}"
        ) from error
    return tuple(plain)
