"""Trains the `tiny` backbone on drawn scenes, from nothing, in minutes on two cores.

    python -m data_prep.pretrain_tiny

draws scenes of the 320 pretraining categories (none of the 80 evaluated ones), trains,
and writes `diffup_jax/backbones/tiny.safetensors` and beside it `tiny.log`: the
command, the versions, the losses and two checks.

The network is trained at what it is for, matching by cosine. Crops come in pairs that
show one category; each is the support of the other. At the last block l of stages 2, 3
and 4, with L2-normalised features q of the query and the contrast prior of `baft`,

    (1) z_l(x) = s_l (<q_l(x), p_l+> - <q_l(x), p_l->) + b_l
    (2) L = 1/3 sum_l [ mean over w+ of softplus(-z_l) + mean over w- of softplus(z_l) ]

where p_l+- are the support's prototypes, w+- the query's true foreground and background
averaged over the level's cells, s_l and b_l learnt. So each level must put the object
apart from the background and from the other objects of both crops, none of them by
name: unseen combinations of the same parts are met in the same way. Flips and quarter
turns are free; colours are left alone, they are part of a category.

Chosen by measuring 150 to 300 steps on categories held out from the pretraining pool,
1-shot mIoU of stages 2, 3 and 4: classifying every pixel's shape, texture and colour by
linear layers .49 .54 .45, by cosine layers .55 .58 .41 (less with more steps), matching
.59 .60 .55; classifying beside matching added nothing.

Checks: the loss on new scenes of the pretraining categories with running and with batch
statistics in the norms (nearly the same when the running ones are right), and the
1-shot prior of `prior_check` on new scenes of the pretraining and of the evaluated
categories, against untrained weights.
"""

from __future__ import annotations

import argparse
import functools
import importlib.resources
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, UInt8
from tqdm import tqdm

from data_prep.prior_check import choose_pairs, foreground_iou, prior_iou
from data_prep.scene_batches import Scenes, by_category, draw_scenes, pair_crops
from diffup_jax import backbones, baft, images, weights
from diffup_jax.backbones import resnet
from diffup_jax.types import DiffUpError

VARIANT = resnet.VARIANTS["tiny"]
LEVELS = ("stage2.block0", "stage3.block1", "stage4.block1")

_CROP = 128  # of what is trained on: objects keep their size in pixels
_FEWEST = 200  # scenes: enough to show most of the 320 categories twice
_LEARNING_RATE = 8e-3
_WEIGHT_DECAY = 0.02
_START = {"scale": float(np.log(6.0)), "bias": -1.0}  # the scale is a logarithm
# Averages over the last twenty steps or so, when the learning rate is nearly zero.
_TRAINING_NORM = functools.partial(
    nn.BatchNorm, use_running_average=False, momentum=0.95, epsilon=1e-5
)


class State(NamedTuple):
    """`params`: "network", "scale" [l], "bias" [l]; `statistics`: running averages."""

    params: dict[str, Any]
    statistics: dict[str, Any]
    optimizer: Any


def make_step(steps: int) -> tuple[Callable[[int], State], Callable]:
    """(seed -> State, (state, images [b h w 3], masks [b h w]) -> (state, loss)).

    The learning rate rises for a twentieth of `steps` and falls to zero by a cosine.
    """
    network = resnet.ResNet(VARIANT, norm=_TRAINING_NORM)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, _LEARNING_RATE, max(steps // 20, 1), max(steps, 2)
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, weight_decay=_WEIGHT_DECAY, mask=_is_kernel),
    )

    def start(seed: int) -> State:
        image = jax.ShapeDtypeStruct((1, _CROP, _CROP, 3), jnp.float32)
        shapes = jax.eval_shape(network.init, jax.random.key(0), image)
        made = jax.tree.map(jnp.asarray, weights.random(shapes, seed=seed))
        ends = {name: jnp.full(len(LEVELS), value) for name, value in _START.items()}
        params = {"network": made["params"], **ends}
        return State(params, made["batch_stats"], optimizer.init(params))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: State, pixels: Array, masks: Array) -> tuple[State, Array]:
        gradient_of = jax.value_and_grad(matching_loss, has_aux=True)
        (value, statistics), gradient = gradient_of(
            state.params, state.statistics, pixels, masks, norm=_TRAINING_NORM
        )
        update, memory = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, update)
        return State(params, statistics, memory), value

    return start, step


def matching_loss(
    params: dict[str, Any],
    statistics: dict[str, Any],
    pixels: UInt8[Array, "b h w 3"],
    masks: Bool[Array, "b h w"],
    *,
    norm: Callable[..., nn.Module],
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """Equation (2) and the new running averages; crops i and b/2 + i are a pair."""
    features, changed = resnet.ResNet(VARIANT, norm=norm).apply(
        {"params": params["network"], "batch_stats": statistics},
        backbones.to_network(pixels, resnet.IMAGENET),
        mutable=["batch_stats"],
    )
    half = len(pixels) // 2
    total = 0.0
    for index, level in enumerate(LEVELS):
        query = images.unit(features.levels[level])
        wanted = images.area_average(masks.astype(jnp.float32), query.shape[1:3])
        support, cue = (jnp.roll(one, half, axis=0) for one in (query, wanted))
        contrast = jax.vmap(baft.contrast)(query, support, cue, 1 - cue)
        logit = jnp.exp(params["scale"][index]) * contrast + params["bias"][index]
        missed = (jax.nn.softplus(-logit) * wanted).sum() / wanted.sum()
        false = (jax.nn.softplus(logit) * (1 - wanted)).sum() / (1 - wanted).sum()
        total += (missed + false) / len(LEVELS)
    return total, changed["batch_stats"]


def pretrain(
    out: str | os.PathLike,
    *,
    scenes: int,
    steps: int,
    batch: int,
    episodes: int,
    seed: int,
    processes: int,
    command: str,
) -> list[str]:
    """Trains, writes `out` and its `.log`, and returns the lines of the log.

    `batch` counts pairs of crops, `episodes` those of each 1-shot check. A twelfth of
    `scenes`, 200 at least, are drawn anew for each of the two checks. Raises
    DiffUpError for arguments out of range, before anything is done, and when the loss
    is not finite.
    """
    least = {"scenes": _FEWEST, "steps": 2, "batch": 2, "episodes": 1, "seed": 0}
    least["processes"] = 1
    given = (scenes, steps, batch, episodes, seed, processes)
    for (name, low), value in zip(least.items(), given, strict=True):
        if value < low:
            raise DiffUpError(f"--{name} {value} is too small: use at least {low}")
    target = Path(out)
    if target.suffix != ".safetensors" or not target.parent.is_dir():
        raise DiffUpError(
            f"--out {str(target)!r} must be a file NAME.safetensors in a folder that "
            "exists: name another file, or make the folder"
        )
    began = time.perf_counter()
    names = ("jax", "flax", "optax", "numpy", "pillow")
    log = [
        f"command: {command}",
        f"python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in names)
        + f", {os.cpu_count()} cores, {jax.default_backend()}",
        f"seed {seed}, {scenes} scenes of the pretraining categories, {steps} steps of "
        f"{batch} pairs of crops of {_CROP} x {_CROP}",
    ]
    drawing = functools.partial(draw_scenes, processes=processes)
    check = max(scenes // 12, _FEWEST)
    train = drawing("pretraining", scenes, seed=3 * seed)
    unseen = drawing("pretraining", check, seed=3 * seed + 1)
    novel = drawing("evaluated", check, seed=3 * seed + 2)
    log.append(f"drawn in {time.perf_counter() - began:.0f} s")

    start, step = make_step(steps)
    state = start(seed)
    generator = np.random.default_rng((seed, 1))
    pairs = functools.partial(pair_crops, pairs=batch, crop=_CROP)
    members = by_category(train.labels)
    losses = []
    for number in tqdm(range(steps), "steps", disable=None):
        state, loss = step(state, *pairs(generator, train, members=members))
        losses.append(loss)
        if (number + 1) % 50 == 0 or number + 1 == steps:
            recent = float(np.mean(jax.device_get(losses[-50:])))
            if not np.isfinite(recent):
                raise DiffUpError(
                    f"the loss is {recent} at step {number + 1}: try another --seed"
                )
            log.append(f"step {number + 1}: mean loss of the last 50 {recent:.4f}")
    log.append(f"trained in {time.perf_counter() - began:.0f} s since the start")

    variables = {"params": state.params["network"], "batch_stats": state.statistics}
    partial = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        weights.save(partial, variables, half=True)
        # What is checked is the file: its half precision included.
        log += _report(state, unseen, novel, episodes, seed=seed, file=partial)
        log.append(f"all done in {time.perf_counter() - began:.0f} s")
        partial.with_suffix(".log").write_text("\n".join(log) + "\n", encoding="utf-8")
        os.replace(partial, target)
        os.replace(partial.with_suffix(".log"), target.with_suffix(".log"))
    finally:
        partial.unlink(missing_ok=True)
        partial.with_suffix(".log").unlink(missing_ok=True)
    return log


def main(arguments: Sequence[str]) -> int:
    """The command line; exit status 2 and one line for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.pretrain_tiny",
        description="Train the tiny backbone on drawn scenes.",
    )
    packaged = str(importlib.resources.files(backbones) / VARIANT.packaged)
    parser.add_argument("--out", default=packaged, help="weights file to write")
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--batch", type=int, default=16, help="pairs of crops")
    parser.add_argument("--episodes", type=int, default=320, help="of each check")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = vars(parser.parse_args(arguments))
    out = options.pop("out")
    said = " ".join(f"--{name} {value}" for name, value in options.items())
    try:
        log = pretrain(out, **options, command=f"{parser.prog} {said}")
    except DiffUpError as error:
        print(f"pretrain_tiny: {error}", file=sys.stderr)
        return 2
    print("\n".join(log))
    return 0


def _is_kernel(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _report(
    state: State,
    unseen: Scenes,
    novel: Scenes,
    episodes: int,
    *,
    seed: int,
    file: Path,
) -> list[str]:
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params["network"]))
    lines = [f"{count} parameters, {file.stat().st_size} bytes"]
    generator = np.random.default_rng((seed, 2))
    batch = pair_crops(
        generator, unseen, members=by_category(unseen.labels), pairs=64, crop=_CROP
    )
    for form, norm in (("running", resnet.FROZEN_NORM), ("batch", _TRAINING_NORM)):
        loss = jax.jit(functools.partial(matching_loss, norm=norm))
        value, _ = loss(state.params, state.statistics, *batch)
        lines.append(f"loss on new scenes, {form} statistics: {float(value):.4f}")
    trained, untrained = (
        backbones.get("tiny", weights=given) for given in (str(file), "random")
    )
    for pool, scenes in (("pretraining", unseen), ("evaluated", novel)):
        pairs = choose_pairs(generator, scenes.labels, episodes=episodes)
        chance = foreground_iou(scenes.labels, pairs=pairs)
        lines.append(
            f"1-shot prior, {pool} categories, {len(scenes.images)} new scenes, "
            f"{episodes} episodes, mIoU (all foreground {chance:.3f}):"
        )
        for name, backbone in (("trained", trained), ("untrained", untrained)):
            features = functools.partial(_levels, backbone)
            scores = prior_iou(features, scenes, pairs=pairs)
            told = zip((*LEVELS, "mean of the priors"), scores, strict=True)
            lines.append(f"  {name}: " + ", ".join(f"{k} {v:.3f}" for k, v in told))
    lines.append(f"digest of the weights: {trained.digest}")
    return lines


def _levels(backbone: backbones.Backbone, pixels: Array) -> list[Array]:
    found = backbone(pixels).levels
    return [found[level] for level in LEVELS]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
