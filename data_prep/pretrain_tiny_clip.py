"""Trains `tiny_clip_s` and `tiny_clip_m`, the embedded image-text backbones.

    python -m data_prep.pretrain_tiny_clip --name tiny_clip_s

draws scenes of the 320 pretraining categories (none of the 80 evaluated ones), trains
both towers of `diffup_jax.backbones.clip` on captions, from nothing, in minutes on two
cores, and writes NAME.safetensors, beside it NAME.log and tiny_clip.json, the word list
of the text tower. Every word of the evaluated names occurs in training, none of their
combinations does.

Four sets of names are told apart, each with a class 0 for background: the 320 whole
names, and by one word 10 shapes, 5 textures and 8 colours (`scene_captions`). With a
unit vector f(x) for each cell, the captions' unit vectors t and a learnt scale s,

    (1) z_{n,k}(x) = s <f(x), t_{n,k}>,   z_{n,0}(x) = log mean_j exp(s <f(x), t_j>)
    (2) D(f, t) = mean_n  sum_x w(x) CE(z_n(x), y_n(x)) / sum_x w(x)

where j goes over background captions, y_n(x) is the class at the cell's middle and w
the share of the cell that is of this category, times 1/4 on background. This contrast
by regions is asked of the dense joint features and, for matching, of every level l that
a prior reads by default, after a matrix on the text's side:

    (3) L = D(joint, t) + mean_l D'(unit(level_l), unit(W_l t)) + 1/4 G

with D' over the three sets of single words alone (whole names cost much time there), G
the symmetric contrast of CLIP (arXiv 2103.00020) between the image vectors of a batch
of crops and the captions of their scenes. The matrices W_l are thrown away.

Images are windows of the scenes at several scales. A crop of 16 x 16 patches sees a
window of the 24 x 24 table of positions, at a place drawn anew each step, so that
images of 192 x 192, the quickstart's size, need no resized table.

Checks, on new scenes of the pretraining categories at 192 x 192: `joint_check`, and the
1-shot prior of `prior_check`. With --evaluated, the dense ones once more on scenes of
the evaluated categories: for information, after every choice has been made.
"""

from __future__ import annotations

import argparse
import functools
import importlib.resources
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image
from tqdm import tqdm

from data_prep import joint_check, scene_captions
from data_prep.prior_check import choose_pairs, foreground_iou, prior_iou
from data_prep.scene_batches import Scenes, crops, draw_scenes
from data_prep.scene_categories import categories
from diffup_jax import backbones, images, weights
from diffup_jax.backbones import clip, tokenizer, towers
from diffup_jax.types import DiffUpError

NAMES = ("tiny_clip_s", "tiny_clip_m")

_PATCHES = 16  # of a training crop, each way
_WINDOWS = (128, 152, 176, 200)  # pixels of a scene that become a crop
_CHECK_SIZE = 192
_BACKGROUNDS = 8  # background captions per step
_BACKGROUND_WEIGHT = 0.25
_GLOBAL_WEIGHT = 0.25
_EPISODES = 320  # of the dense checks
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
    tower = clip.VisionTower(variant._replace(grid=_PATCHES))
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
        ids(scene_captions.scenery(generator, _BACKGROUNDS), short),
        ids(names, short),
        ids([name or "background" for name in seen], long),
        np.array([bool(name) for name in seen], np.float32),
    )


def pretrain(
    out: str | os.PathLike,
    *,
    name: str,
    scenes: int,
    steps: int,
    batch: int,
    seed: int,
    processes: int,
    evaluated: bool,
    command: str,
) -> list[str]:
    """Trains, writes `out`, its `.log` and the word list, and returns the log's lines.

    A tenth of `scenes` (at least 100) more are drawn for the checks. Raises DiffUpError
    for arguments out of range and when the loss is not finite.
    """
    least = {"scenes": 2, "steps": 2, "batch": 2, "seed": 0, "processes": 1}
    given = (scenes, steps, batch, seed, processes)
    for (option, low), value in zip(least.items(), given, strict=True):
        if value < low:
            raise DiffUpError(f"--{option} {value} is too small: use at least {low}")
    target = Path(out)
    if target.suffix != ".safetensors" or not target.parent.is_dir():
        raise DiffUpError(
            f"--out {str(target)!r} must be a file NAME.safetensors in a folder that "
            "exists: name another file, or make the folder"
        )
    began = time.perf_counter()
    versions = ("jax", "flax", "optax", "numpy", "pillow")
    variant = clip.VARIANTS[name]
    log = [
        f"command: {command}",
        f"python {platform.python_version()}, "
        + ", ".join(f"{package} {version(package)}" for package in versions)
        + f", {os.cpu_count()} cores, {jax.default_backend()}",
        f"seed {seed}, {scenes} scenes of the pretraining categories, {steps} steps of "
        f"{batch} crops of {_PATCHES} x {_PATCHES} patches",
    ]
    drawing = functools.partial(draw_scenes, processes=processes)
    check = max(scenes // 10, joint_check.SCENES)
    train = drawing("pretraining", scenes, seed=3 * seed)
    unseen = {"pretraining": drawing("pretraining", check, seed=3 * seed + 1)}
    if evaluated:
        unseen["evaluated"] = drawing("evaluated", check, seed=3 * seed + 2)
    log.append(f"drawn in {time.perf_counter() - began:.0f} s")

    words = target.with_name(variant.text.tokenizer)
    _write(words, json.dumps({"words": scene_captions.words()}, indent=1) + "\n")
    tokenize = tokenizer.get(
        words.name, folder=words.parent, length=variant.text.context
    )
    start, step = make_step(variant, steps=steps)
    state = start(seed)
    generator = np.random.default_rng((seed, 1))
    losses = []
    for number in tqdm(range(steps), "steps", disable=None):
        state, loss = step(state, *_batch(generator, train, tokenize, variant, batch))
        losses.append(loss)
        if (number + 1) % 50 == 0 or number + 1 == steps:
            recent = float(np.mean(jax.device_get(losses[-50:])))
            if not np.isfinite(recent):
                raise DiffUpError(
                    f"the loss is {recent} at step {number + 1}: try another --seed"
                )
            log.append(f"step {number + 1}: mean loss of the last 50 {recent:.4f}")
    log.append(f"trained in {time.perf_counter() - began:.0f} s since the start")

    partial = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        made = {part: state.params[part] for part in ("image", "text")}
        weights.save(partial, made, half=True)
        # What is checked is the file: its half precision included.
        backbone = backbones.get(name, weights=str(partial))
        size = partial.stat().st_size
        count = sum(leaf.size for leaf in jax.tree.leaves(made))
        log.append(f"{count} parameters, {size} bytes, digest {backbone.digest}")
        for pool, some in unseen.items():
            log += _report(backbone, shrunk(some, _CHECK_SIZE), pool=pool, seed=seed)
        log.append(f"all done in {time.perf_counter() - began:.0f} s")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    _write(target.with_suffix(".log"), "\n".join(log) + "\n")
    return log


def shrunk(scenes: Scenes, size: int) -> Scenes:
    """The scenes at size x size: images by area, labels by the nearest pixel."""
    rows = (np.arange(size) * 2 + 1) * scenes.labels.shape[1] // (2 * size)
    return Scenes(
        np.stack([_resized(image, size) for image in scenes.images]),
        scenes.labels[:, rows][:, :, rows],
    )


def main(arguments: Sequence[str]) -> int:
    """The command line; exit status 2 and one line for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.pretrain_tiny_clip",
        description="Train an embedded image-text backbone on drawn scenes.",
    )
    parser.add_argument("--name", choices=NAMES, required=True)
    parser.add_argument("--out", help="weights file to write; the packaged one if none")
    parser.add_argument("--scenes", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--evaluated", action="store_true", help="see the module")
    options = vars(parser.parse_args(arguments))
    packaged = clip.VARIANTS[options["name"]].packaged
    out = options.pop("out") or str(importlib.resources.files(backbones) / packaged)
    said = " ".join(
        f"--{option}" if value is True else f"--{option} {value}"
        for option, value in options.items()
        if value is not False
    )
    try:
        log = pretrain(out, **options, command=f"{parser.prog} {said}")
    except DiffUpError as error:
        print(f"pretrain_tiny_clip: {error}", file=sys.stderr)
        return 2
    print("\n".join(log))
    return 0


def _batch(generator, scenes, tokenize, variant, batch) -> tuple:
    """What one step takes besides the state."""
    window = int(generator.choice(_WINDOWS))
    pixels, labels = shrunk(
        Scenes(*crops(generator, scenes, batch=batch, crop=window)),
        _PATCHES * variant.patch,
    )
    corner = generator.integers(0, variant.grid - _PATCHES + 1, 2)
    return pixels, labels, draw_captions(generator, tokenize, labels), corner


def _resized(image: UInt8[np.ndarray, "h w 3"], size: int) -> np.ndarray:
    if image.shape[0] == size:
        return image
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(image)).resize(
            (size, size), Image.Resampling.BILINEAR
        )
    )


def _window(image: dict, grid: int, corner: Int[Array, " 2"]) -> dict:
    """The image tower's parameters with a window of its positions."""
    table = image["params"]["positions"]
    width = table.shape[-1]
    part = jax.lax.dynamic_slice(
        table[1:].reshape(grid, grid, width), (*corner, 0), (_PATCHES, _PATCHES, width)
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
    ground = jax.nn.logsumexp(logits[..., :_BACKGROUNDS], axis=-1, keepdims=True)
    ground -= np.log(_BACKGROUNDS)
    ends = np.cumsum(_SETS[-len(classes) :])[:-1]
    total = 0.0
    names = jnp.split(logits[..., _BACKGROUNDS:], ends, axis=-1)
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


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _report(
    backbone: backbones.Backbone, scenes: Scenes, *, pool: str, seed: int
) -> list[str]:
    generator = np.random.default_rng((seed, 2))
    pairs = choose_pairs(generator, scenes.labels, episodes=_EPISODES)
    names = tuple(one.name for one in categories(pool))
    everything = foreground_iou(scenes.labels, pairs=pairs)
    lines = [f"{len(scenes.images)} new scenes of the {pool} categories:"]
    if pool == "pretraining":
        found, told = joint_check.retrieval(backbone, scenes)
        lines.append(
            f"  top-1 among {joint_check.SCENES}: caption of an image {found:.3f}, "
            f"image of a caption {told:.3f}"
        )
    dense = joint_check.text_iou(backbone, scenes, names, pairs=pairs)
    lines.append(
        f"  {_EPISODES} episodes, best-threshold mIoU (all foreground "
        f"{everything:.3f}):"
    )
    lines.append(f"  text {dense:.3f}")
    levels = backbone.prior_levels
    scores = prior_iou(
        lambda pixels: [backbone(pixels).levels[level] for level in levels],
        scenes,
        pairs=pairs,
    )
    told = zip((*levels, "mean"), scores, strict=True)
    lines.append("  1 shot: " + ", ".join(f"{k} {v:.3f}" for k, v in told))
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
