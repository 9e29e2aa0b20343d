"""The training step of the embedded image-text backbones, and what it is fed.

Four sets of names are told apart, each with a class 0 for background: the 320 whole
names, and by one word 10 shapes, 5 textures and 8 colours (`scene_captions`). With a
unit vector f(x) for each cell, the captions' unit vectors t and a learnt scale s,

    (1) z_{n,k}(x) = s <f(x), t_{n,k}>,   z_{n,0}(x) = log mean_j exp(s <f(x), t_j>)
    (2) D(f, t) = mean_n  sum_x w(x) CE(z_n(x), y_n(x)) / sum_x w(x)

where j goes over background captions, y_n(x) is the class at the cell's middle and w
the share of the cell that is of this category, times 1/4 on background. This contrast
by regions is asked of the dense joint features and, for matching, of every level l that
a prior reads by default, after a matrix on the text's side:

    (3) L = D(joint, t) + mean_l D'(unit(level_l), unit(W_l t)) + 1/2 G

with D' over the three sets of single words alone (whole names cost much time there), G
the symmetric contrast of CLIP (arXiv 2103.00020) between the image vectors of a batch
of crops and the captions of their scenes. The matrices W_l are thrown away.

A crop of 16 x 16 patches sees a window of the larger table of positions, at a place
drawn anew each step, so that larger images need no resized table.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int

from demo import scene_captions
from demo.scene_categories import categories
from diffup_jax import backbones, images, weights
from diffup_jax.backbones import clip, tokenizer, towers

PATCHES = 16  # of a training crop, each way
BACKGROUNDS = 8  # background captions per step

_BACKGROUND_WEIGHT = 0.25
_GLOBAL_WEIGHT = 0.5
_LEARNING_RATE = 2e-3
_SCALE = float(np.log(12.0))  # first scale of every contrast, logarithmic
_WEIGHT_DECAY = 0.05
# Classes of each set of names, without background.
_SETS = (len(scene_captions.WHOLE), *map(len, scene_captions.PARTS))


class Captions(NamedTuple):
    """Token ids of one step: `background` [j t], `names` [n t] (all sets, in order)
    and one caption for each image, `scenes` [b u]; `described` [b] is 0 where the image
    has no object to name.
    """

    background: Int[np.ndarray, "j t"]
    names: Int[np.ndarray, "n t"]
    scenes: Int[np.ndarray, "b u"]
    described: Float[np.ndarray, " b"]


class State(NamedTuple):
    """`params` holds "image", "text" (both with "params" inside) and "maps"."""

    params: dict[str, Any]
    optimizer: Any


def make_step(
    variant: clip.Variant, *, steps: int
) -> tuple[Callable[[int], State], Callable]:
    """(seed -> State, (state, images [b h w 3], labels [b h w], captions, corner [2])
    -> (state, loss)); `corner` is the window's first row and column in the positions.

    The learning rate rises for a twentieth of `steps` and falls to zero by a cosine.
    """
    recipe = clip.recipe_of(variant, dtype=jnp.float32)
    tower = clip.VisionTower(variant._replace(grid=PATCHES))
    text = recipe.text.module
    last = f"block_{variant.vision.depth - 1}"
    rate = optax.warmup_cosine_decay_schedule(
        0.0, _LEARNING_RATE, max(steps // 20, 1), max(steps, 2)
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, b2=0.98, weight_decay=_WEIGHT_DECAY, mask=_is_kernel),
    )

    def start(seed: int) -> State:
        params = first_params(variant, seed=seed)
        return State(params, optimizer.init(params))

    def loss(params, pixels, labels, captions, corner):
        """Equation (3)."""
        image = _window(params["image"], variant.grid, corner)
        # One pass for cells and image vector: the last block's tokens hold both.
        found, inner = tower.apply(
            image,
            backbones.to_network(pixels, recipe.normalise),
            capture_intermediates=lambda module, _: module.name == last,
        )
        (tokens,) = inner["intermediates"][last]["__call__"]
        whole = tower.apply(image, tokens[:, 0], method=_project)
        background, names, scenes = (
            text.apply(params["text"], ids) for ids in captions[:3]
        )
        scale, _ = text.apply(params["text"], method="scale")
        classes, weight = _cells(labels, variant.patch)
        vectors = jnp.concatenate([background, names])
        total = _dense(found.joint, vectors, scale, classes, weight)
        vectors = jnp.concatenate([background, names[_SETS[0] :]])
        for level, own in params["maps"].items():
            total += _dense(
                images.unit(found.levels[level]),
                images.unit(vectors @ own["kernel"]),
                jnp.exp(own["log_scale"]),
                classes[1:],
                weight,
            ) / len(params["maps"])
        logits = scale * whole @ scenes.T
        pairs = jnp.arange(len(pixels))
        wrong = sum(
            optax.softmax_cross_entropy_with_integer_labels(one, pairs)
            for one in (logits, logits.T)
        )
        named = captions.described
        mean = (wrong / 2 * named).sum() / jnp.maximum(named.sum(), 1)
        return total + _GLOBAL_WEIGHT * mean

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: State, *batch: Any) -> tuple[State, Array]:
        value, gradient = jax.value_and_grad(loss)(state.params, *batch)
        update, memory = optimizer.update(gradient, state.optimizer, state.params)
        return State(optax.apply_updates(state.params, update), memory), value

    return start, step


def first_params(variant: clip.Variant, *, seed: int) -> dict[str, Any]:
    """Where training starts: as `weights.random`, but with sines for positions, so that
    neighbours are alike from the first step, and blocks that start near the identity.
    """
    recipe = clip.recipe_of(variant, dtype=jnp.float32)
    made = weights.random(backbones.shapes(recipe), seed=seed)
    flat = flatten_dict(made, sep="/")
    for path, value in flat.items():
        depth = (variant.vision if path.startswith("image") else variant.text.tower)[1]
        if path.endswith(("out/kernel", "fc2/kernel")):
            value *= np.float32(1 / np.sqrt(2 * depth))
    table = flat["image/params/positions"]
    table[1:] = _sines(variant.grid, variant.vision.width)
    flat["text/params/log_scale"] = np.float32(_SCALE)
    generator = np.random.default_rng((seed, 3))
    joint = variant.text.joint
    maps = {
        level: {
            "kernel": generator.standard_normal(
                (joint, variant.vision.width), np.float32
            )
            / np.float32(np.sqrt(joint)),
            "log_scale": np.float32(_SCALE),
        }
        for level in recipe.prior_levels
    }
    return jax.tree.map(jnp.asarray, unflatten_dict(flat, sep="/") | {"maps": maps})


def draw_captions(
    generator: np.random.Generator,
    tokenize: tokenizer.Tokenize,
    labels: Int[np.ndarray, "b h w"],
) -> Captions:
    """Every name and every image in a sentence drawn anew."""

    def ids(names: Sequence[str], length: int) -> np.ndarray:
        return tokenize(scene_captions.sentences(generator, names))[:, :length]

    short, long = scene_captions.NAME_TOKENS, scene_captions.SCENE_TOKENS
    names = (*scene_captions.WHOLE, *sum(scene_captions.PARTS, ()))
    seen = [scene_captions.scene_name(one) for one in labels]
    return Captions(
        ids(scene_captions.scenery(generator, BACKGROUNDS), short),
        ids(names, short),
        ids([name or "background" for name in seen], long),
        np.array([bool(name) for name in seen], np.float32),
    )


def _window(image: dict, grid: int, corner: Int[Array, " 2"]) -> dict:
    """The image tower's parameters with a window of its positions."""
    table = image["params"]["positions"]
    width = table.shape[-1]
    part = jax.lax.dynamic_slice(
        table[1:].reshape(grid, grid, width), (*corner, 0), (PATCHES, PATCHES, width)
    )
    positions = jnp.concatenate([table[:1], part.reshape(-1, width)])
    return {"params": {**image["params"], "positions": positions}}


def _project(tower: clip.VisionTower, x: Float[Array, "b c"]) -> Float[Array, "b d"]:
    """The head of `VisionTower.embed` on class tokens."""
    return towers.unit(tower.projection(tower.post_norm(x)))


def _cells(labels: Int[Array, "b h w"], patch: int) -> tuple[Array, Array]:
    """Class in each set [4 b p q] (0 = background) and weight [b p q] of each cell."""
    middle = labels[:, patch // 2 :: patch, patch // 2 :: patch].astype(jnp.int32)
    b, p, q = middle.shape
    inside = labels.reshape(b, p, patch, q, patch) == middle[:, :, None, :, None]
    weight = jnp.where(middle > 0, 1.0, _BACKGROUND_WEIGHT)
    table = [(0, 0, 0, 0)] + [
        (1 + index, 1 + one.shape, 1 + one.texture, 1 + one.colour)
        for index, one in enumerate(categories("pretraining"))
    ]
    classes = jnp.asarray(np.array(table).T, jnp.int32)[:, middle]
    return classes, weight * inside.mean(axis=(2, 4))


def _dense(
    cells: Float[Array, "b p q d"],
    vectors: Float[Array, "n d"],
    scale: Float[Array, ""],
    classes: Int[Array, "s b p q"],
    weight: Float[Array, "b p q"],
) -> Float[Array, ""]:
    """Equation (2) over the last s sets; `vectors` are of the background captions, then
    of the names of these sets.
    """
    logits = scale * cells @ vectors.T
    ground = jax.nn.logsumexp(logits[..., :BACKGROUNDS], axis=-1, keepdims=True)
    ground -= np.log(BACKGROUNDS)
    ends = np.cumsum(_SETS[-len(classes) :])[:-1]
    total = 0.0
    names = jnp.split(logits[..., BACKGROUNDS:], ends, axis=-1)
    for one, target in zip(names, classes, strict=True):
        wrong = optax.softmax_cross_entropy_with_integer_labels(
            jnp.concatenate([ground, one], axis=-1), target
        )
        total += (weight * wrong).sum() / weight.sum()
    return total / len(classes)


def _sines(grid: int, width: int) -> np.ndarray:
    """Sines and cosines of row and column [grid^2 width] (arXiv 1706.03762)."""
    count = width // 4
    rate = np.exp(-np.log(100.0) * np.arange(count) / count)
    angles = np.arange(grid)[:, None] * rate
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    rows = np.repeat(axis[:, None], grid, axis=1)
    both = np.concatenate([rows, rows.swapaxes(0, 1)], axis=2)
    return both.reshape(grid * grid, -1).astype(np.float32)


def _is_kernel(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
