"""F2: frozen feature extractors behind one door, `get(name, weights=...)`.

    bb = backbones.get("resnet50", weights=None)      # default weights of the table
    bb = backbones.from_folder("my_dinov2")           # any size, by its config.json
    features = bb(images)                             # uint8 or [0, 1], NHWC
    features.levels["stage4.block2"], features.last   # [b p q c]

A backbone is data (a recipe: module, levels, normalisation, file layouts, default
weights) plus weights. Its answer is `types.Features`: named levels of known stride and
channels, float32 whatever it computes in. It is frozen: gradients stop at its outputs.
One with a text tower also answers `features.joint` [b p q d], and `encode_text` [n d],
both of length 1: their product is the dense image-text similarity.

Networks are files here with `VARIANTS`, `PARAMETERS` (how many each variant has),
`recipe(name)`, `recipe_of(variant)` and `from_config(config)`; a new one is one more
word in `_FAMILIES`. They are imported when the first name is looked up.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffup_jax import weights as weight_files
from diffup_jax.backbones import folders, stores
from diffup_jax.backbones.backbone import Backbone, to_network
from diffup_jax.backbones.recipe import Recipe, dtype_of
from diffup_jax.types import DiffUpError

__all__ = [
    "Backbone",
    "from_folder",
    "get",
    "hollow",
    "locate",
    "names",
    "parameters",
    "recipe",
    "shapes",
    "to_network",
]

_FAMILIES = (
    *("resnet", "vgg", "squeezenet", "vit", "dinov2", "dinov3", "swin", "convnext"),
    *("efficientnet", "clip", "clip_resnet", "siglip"),
)
# Untrained weights are named by the word alone, so they must be the same every time.
_RANDOM_SEED = 0
_HERE = Path(__file__).parent


def names() -> tuple[str, ...]:
    """Every name `get` knows."""
    return tuple(name for family in _families() for name in family.VARIANTS)


def recipe(name: str, *, dtype: str = "float32") -> Recipe:
    """What the table says about `name`. Raises DiffUpError for an unknown name."""
    return _family(name).recipe(name, dtype=dtype_of(dtype))


def parameters(name: str) -> int:
    """How many trained parameters `name` has, all towers together, from its family's
    table; the statistics of norms are none. Raises DiffUpError for an unknown name.
    """
    return _family(name).PARAMETERS[name]


def get(name: str, *, weights: str | None, dtype: str = "float32") -> Backbone:
    """The backbone `name`, computing in `dtype` ("float32" or "bfloat16").

    `weights` is "" or None (the file packaged with it, or its default Hugging Face id),
    "random", a local folder or file (environment variables are expanded; .safetensors,
    .npz, .pth), or a Hugging Face id (see `stores`). A local path wins over an id.
    Parameters are float32 for either dtype.

    Raises DiffUpError for an unknown name, missing or damaged files, files of another
    network, and an id that is not in the cache and cannot be downloaded.
    """
    family = _family(name)
    found = family.recipe(name, dtype=dtype_of(dtype))
    if weights == "random":
        return _random(name, found)
    source = locate(name, weights=weights)
    return _build(name, found, source, sizes=repr(family.VARIANTS[name]))


def from_folder(path: str | os.PathLike, *, dtype: str = "float32") -> Backbone:
    """A backbone of any size of a supported family, from a folder with Hugging Face's
    config.json and safetensors, as `save_pretrained` writes it.

    Its name is the folder's. Images are normalised as preprocessor_config.json beside
    it says, where there is one: config.json cannot tell DINO from a supervised ViT.
    Raises DiffUpError when the folder is not one, or holds a network of another family.
    """
    folder = Path(os.path.expandvars(path)).expanduser()
    config = folders.config(folder)
    for family in _families():
        variant = family.from_config(config)
        if variant is not None:
            name = folder.resolve().name
            source = stores.locate(name, str(folder), packaged=None, default="")
            found = family.recipe_of(variant, dtype=dtype_of(dtype))
            normalise = folders.normalise(folder) or found.normalise
            found = found._replace(normalise=normalise)
            return _build(name, found, source, sizes=repr(variant))
    raise DiffUpError(
        f"{str(folder / 'config.json')!r} is of model_type "
        f"{config.get('model_type')!r}; no network here is built from that. Families: "
        f"{', '.join(_FAMILIES)}."
    )


def hollow(name: str, *, dtype: str = "float32") -> Backbone:
    """The backbone `name` with zeros that take no memory for weights: for shapes only.

    Its parameters are real arrays (views of a single zero) of the right shapes.
    """
    found = recipe(name, dtype=dtype)
    zeros = jax.tree.map(
        lambda like: np.broadcast_to(np.zeros((), like.dtype), like.shape),
        shapes(found),
    )
    return _assemble(name, found, zeros, digest="", origin="hollow", folder=_HERE)


def shapes(recipe: Recipe) -> dict[str, Any]:
    """{"image": shapes of the parameters, "text": of the text tower's, if it has one}.

    Nothing is run: compiling the initialisers takes many seconds.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    side = -(-64 // recipe.multiple_of) * recipe.multiple_of
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    found = {"image": jax.eval_shape(recipe.module.init, key, image)}
    if recipe.text is not None:
        ids = jax.ShapeDtypeStruct((1, recipe.text.context_length), jnp.int32)
        found["text"] = jax.eval_shape(recipe.text.module.init, key, ids)
    return found


def locate(name: str, *, weights: str | None) -> stores.Source:
    """The files behind `weights`, downloaded if need be (see `stores.locate`)."""
    found = recipe(name)
    packaged = _HERE / found.packaged if found.packaged else None
    return stores.locate(name, weights, packaged=packaged, default=found.hub)


@functools.cache
def _families() -> tuple[ModuleType, ...]:
    return tuple(
        importlib.import_module(f"{__package__}.{family}")
        for family in _FAMILIES
        if (_HERE / f"{family}.py").is_file()
    )


def _family(name: str) -> ModuleType:
    family = next((f for f in _families() if name in f.VARIANTS), None)
    if family is None:
        close = difflib.get_close_matches(name, names(), cutoff=0.4)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise DiffUpError(
            f"Unknown backbone {name!r}.{hint} Known: {', '.join(names())}. "
            "Choose one with --config.backbone.name=NAME."
        )
    return family


def _random(name: str, recipe: Recipe) -> Backbone:
    made = {
        part: weight_files.random(like, seed=_RANDOM_SEED)
        for part, like in shapes(recipe).items()
    }
    digest = weight_files.digest(_of_digest(made))
    return _assemble(name, recipe, made, digest=digest, origin="random", folder=_HERE)


def _build(name: str, recipe: Recipe, source: stores.Source, *, sizes: str) -> Backbone:
    params, digest = stores.converted(
        name,
        source,
        sizes=sizes,
        make=lambda: _convert(name, recipe, source),
    )
    made = params if recipe.text is not None else {"image": params}
    return _assemble(
        name,
        recipe,
        made,
        digest=digest,
        origin=source.origin,
        folder=source.folder,
    )


def _convert(name: str, recipe: Recipe, source: stores.Source) -> dict[str, Any]:
    """The parameters of the source, as `_of_digest` has them."""
    arrays = stores.read(source)
    like = shapes(recipe)
    tables = {"image": recipe.tables}
    if recipe.text is not None:
        tables["text"] = recipe.text.tables
    own = weight_files.own_layout(_of_digest(like))
    made = {}
    for part, known in tables.items():
        rows = own.rows
        ignore: tuple[str, ...] = ()
        if recipe.text is not None:
            # Each tower's books leave the other tower's keys to the other's books.
            mine = tuple(row for row in rows if row.target.startswith(f"{part}/"))
            ignore = tuple(f"{other}/.*" for other in tables if other != part)
            rows = tuple(
                row._replace(target=row.target.removeprefix(f"{part}/")) for row in mine
            )
        own_part = own._replace(rows=rows, ignore=ignore)
        table, fit = weight_files.best_table(
            (*known, own_part), arrays, target_shapes=like[part]
        )
        tower = f" ({part} tower)" if recipe.text is not None else ""
        files = ", ".join(repr(str(file)) for file in source.files)
        made[part] = weight_files.convert(
            table,
            arrays,
            target_shapes=like[part],
            what=(
                f"Backbone {name!r}{tower} was asked for, and {fit} of the "
                f"{len(arrays)} keys of the file {files} fit it"
            ),
        )
    return _of_digest(made)


def _of_digest(parts: dict[str, Any]) -> dict[str, Any]:
    """What is stored and what the digest is of: the image tower alone, or both."""
    return parts if "text" in parts else parts["image"]


def _assemble(
    name: str,
    recipe: Recipe,
    parts: dict[str, Any],
    *,
    digest: str,
    origin: str,
    folder: Path,
) -> Backbone:
    if origin != "hollow":
        # On a CPU the arrays are taken over where they lie, in the mapped file.
        parts = jax.device_put(parts, may_alias=True)
    return Backbone(
        name=name,
        module=recipe.module,
        params=parts["image"],
        levels=recipe.levels,
        prior_levels=recipe.prior_levels,
        normalise=recipe.normalise,
        digest=digest,
        weights=origin,
        multiple_of=recipe.multiple_of,
        debias=recipe.debias,
        text=recipe.text,
        text_params=parts.get("text"),
        folder=folder,
    )
