"""Trains the `tiny` backbone on drawn scenes, from nothing, in minutes on two cores.

    python -m demo.pretrain_tiny

draws scenes of the 320 pretraining categories (none of the 80 evaluated ones), trains,
and writes `diffup_jax/backbones/tiny.safetensors` and beside it `tiny.log`: the
command, the versions, the losses and two checks.

The objective is attribute classification: `tiny` stands in for the ImageNet classifiers
that the method is meant for. Training it to match supports with queries gave priors 10
points better (.65 against .55 at stage 2), but that was chosen after a look at the
evaluated categories, and a decoder trained for minutes then added nothing to them.

Each of LEVELS l of the network, L2-normalised as for matching, gets its own three
cosine classifiers, for shape, texture and colour of the pixel's object (class 0 =
background), with unit vectors u_k and a learnt scale s:

    (1) z_{l,a,k}(x) = s_{l,a} <f_l(x) / |f_l(x)|, u_{l,a,k}>
    (2) L = 1/3 sum_l sum_a  sum_x w(x) CE(z_{l,a}(x), y_a(x)) / sum_x w(x)

with w = 1 on objects and 1/4 on background. A category is never a class of its own:
what is learnt are the parts that unseen categories are made of. Flips and quarter turns
are free; colours are left alone, they are part of a category. The classifiers are
thrown away.

Checks: pixel accuracy on new scenes of the pretraining categories, with running and
with batch statistics in the norms (the same when the running ones are right), and the
1-shot prior of `prior_check` on scenes of the evaluated categories, against untrained
weights.
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
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from demo.prior_check import choose_pairs, foreground_iou, prior_iou
from demo.scene_batches import Scenes, crops, draw_scenes
from demo.scene_categories import COLOURS, SHAPES, TEXTURES, categories
from diffup_jax import backbones, images, weights
from diffup_jax.backbones import resnet
from diffup_jax.files import whole_or_absent, write_whole
from diffup_jax.types import DiffUpError

ATTRIBUTES = {"shape": len(SHAPES), "texture": len(TEXTURES), "colour": len(COLOURS)}
VARIANT = resnet.VARIANTS["tiny"]

# Every stage that a prior may read is taught, also those `get` does not use by default.
LEVELS = ("stage2.block0", "stage3.block1", "stage4.block1")

_CROP = 128  # of what is trained on: objects keep their size in pixels
_BACKGROUND_WEIGHT = 0.25
_EPISODES = 320  # of the 1-shot check
_LEARNING_RATE = 8e-3
_SCALE = float(np.log(12.0))  # the classifiers' first scale, logarithmic
_WEIGHT_DECAY = 0.02
# Averages over the last twenty steps or so, when the learning rate is nearly zero.
_TRAINING_NORM = functools.partial(
    nn.BatchNorm, use_running_average=False, momentum=0.95, epsilon=1e-5
)


class State(NamedTuple):
    """`params` holds "network" and "heads", `statistics` the running averages."""

    params: dict[str, Any]
    statistics: dict[str, Any]
    optimizer: Any


class Heads(nn.Module):
    """Equation (1): logits by level and attribute."""

    @nn.compact
    def __call__(
        self, levels: dict[str, Float[Array, "b p q c"]]
    ) -> list[list[Float[Array, "b p q k"]]]:
        return [
            [
                self._cosine(levels[level], f"{level.replace('.', '_')}_{attribute}", k)
                for attribute, k in ATTRIBUTES.items()
            ]
            for level in LEVELS
        ]

    def _cosine(self, features: Array, name: str, classes: int) -> Array:
        shape = classes + 1, features.shape[-1]
        vectors = self.param(name, nn.initializers.normal(1.0), shape)
        scale = self.param(f"{name}_scale", nn.initializers.constant(_SCALE), ())
        cosine = images.unit(features) @ images.unit(vectors).T
        return jnp.exp(scale) * cosine


def make_step(steps: int) -> tuple[Callable[[int], State], Callable]:
    """(seed -> State, (state, images [b h w 3], labels [b h w]) -> (state, loss)).

    The learning rate rises for a twentieth of `steps` and falls to zero by a cosine.
    """
    network, heads = resnet.ResNet(VARIANT, norm=_TRAINING_NORM), Heads()
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
        levels = {
            level.name: jnp.zeros((1, 1, 1, level.channels))
            for level in resnet.levels(VARIANT)
        }
        vectors = heads.init(jax.random.key(seed), levels)["params"]
        params = {"network": made["params"], "heads": vectors}
        return State(params, made["batch_stats"], optimizer.init(params))

    def loss(params, statistics, pixels, labels):
        """Equation (2) and the new running averages."""
        features, changed = network.apply(
            {"params": params["network"], "batch_stats": statistics},
            backbones.to_network(pixels, resnet.IMAGENET),
            mutable=["batch_stats"],
        )
        logits = heads.apply({"params": params["heads"]}, features.levels)
        total = 0.0
        for of_level in logits:
            answer = _at_cells(labels, of_level[0].shape[1])
            weight = jnp.where(answer > 0, 1.0, _BACKGROUND_WEIGHT)
            for one, target in zip(of_level, _attributes(answer), strict=True):
                wrong = optax.softmax_cross_entropy_with_integer_labels(one, target)
                total += (weight * wrong).sum() / weight.sum()
        return total / len(logits), changed["batch_stats"]

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: State, pixels: Array, labels: Array) -> tuple[State, Array]:
        (value, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(
            state.params, state.statistics, pixels, labels
        )
        update, memory = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, update)
        return State(params, statistics, memory), value

    return start, step


def accuracy(state: State, scenes: Scenes, *, norm: Callable) -> list[list[float]]:
    """Share of the object pixels told right, by prior level and attribute."""
    network, heads = resnet.ResNet(VARIANT, norm=norm), Heads()

    @jax.jit
    def count(pixels, labels):
        features, _ = network.apply(
            {"params": state.params["network"], "batch_stats": state.statistics},
            backbones.to_network(pixels, resnet.IMAGENET),
            mutable=["batch_stats"],
        )
        rows = []
        for of_level in heads.apply({"params": state.params["heads"]}, features.levels):
            answer = _at_cells(labels, of_level[0].shape[1])
            for one, target in zip(of_level, _attributes(answer), strict=True):
                right = (one.argmax(-1) == target) & (answer > 0)
                rows.append((right.sum(), (answer > 0).sum()))
        return jnp.array(rows)

    chunks = [np.s_[at : at + 32] for at in range(0, len(scenes.images), 32)]
    parts = [np.asarray(count(scenes.images[s], scenes.labels[s])) for s in chunks]
    right, of = np.sum(parts, axis=0).T
    return (right / np.maximum(of, 1)).reshape(-1, len(ATTRIBUTES)).tolist()


def pretrain(
    out: str | os.PathLike,
    *,
    scenes: int,
    steps: int,
    batch: int,
    seed: int,
    processes: int,
    command: str,
) -> list[str]:
    """Trains, writes `out` and its `.log`, and returns the lines of the log.

    A twelfth of `scenes` (at least 24) more are drawn for each of the two checks.
    Raises DiffUpError for arguments out of range and when the loss is not finite.
    """
    least = {"scenes": 2, "steps": 2, "batch": 2, "seed": 0, "processes": 1}
    given = (scenes, steps, batch, seed, processes)
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
        f"{batch} crops of {_CROP} x {_CROP}",
    ]
    drawing = functools.partial(draw_scenes, processes=processes)
    check = max(scenes // 12, 24)
    train = drawing("pretraining", scenes, seed=3 * seed)
    unseen = drawing("pretraining", check, seed=3 * seed + 1)
    novel = drawing("evaluated", check, seed=3 * seed + 2)
    log.append(f"drawn in {time.perf_counter() - began:.0f} s")

    start, step = make_step(steps)
    state = start(seed)
    generator = np.random.default_rng((seed, 1))
    losses = []
    for number in tqdm(range(steps), "steps", disable=None):
        state, loss = step(state, *crops(generator, train, batch=batch, crop=_CROP))
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
    with whole_or_absent(target) as partial:
        weights.save(partial, variables, half=True)
        # What is checked is the file: its half precision included.
        log += _report(state, unseen, novel, seed=seed, file=partial)
        log.append(f"all done in {time.perf_counter() - began:.0f} s")
    write_whole(target.with_suffix(".log"), "\n".join(log) + "\n")
    return log


def main(arguments: Sequence[str]) -> int:
    """The command line; exit status 2 and one line for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.pretrain_tiny",
        description="Train the tiny backbone on drawn scenes.",
    )
    packaged = str(importlib.resources.files(backbones) / VARIANT.packaged)
    parser.add_argument("--out", default=packaged, help="weights file to write")
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
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


def _at_cells(labels: Int[Array, "b h w"], rows: int) -> Int[Array, "b p q"]:
    """The label at each cell's middle: the cue of a prior is averaged over cells."""
    stride = labels.shape[1] // rows
    return labels[:, stride // 2 :: stride, stride // 2 :: stride].astype(jnp.int32)


def _attributes(labels: Int[Array, "b p q"]) -> Int[Array, "3 b p q"]:
    """Shape, texture and colour of each label, all 1-based, 0 = background."""
    table = [(0, 0, 0)] + [
        (one.shape + 1, one.texture + 1, one.colour + 1)
        for one in categories("pretraining")
    ]
    return jnp.asarray(np.array(table).T, jnp.int32)[:, labels]


def _is_kernel(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _report(
    state: State, unseen: Scenes, novel: Scenes, *, seed: int, file: Path
) -> list[str]:
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params["network"]))
    lines = [f"{count} parameters, {file.stat().st_size} bytes"]
    for form, norm in (("running", resnet.FROZEN_NORM), ("batch", _TRAINING_NORM)):
        lines.append(
            f"accuracy on objects, {len(unseen.images)} new scenes, {form} statistics:"
        )
        rows = accuracy(state, unseen, norm=norm)
        for level, row in zip(LEVELS, rows, strict=True):
            told = zip(ATTRIBUTES, row, strict=True)
            shares = ", ".join(f"{name} {share:.3f}" for name, share in told)
            lines.append(f"  {level}: {shares}")
    generator = np.random.default_rng((seed, 2))
    pairs = choose_pairs(generator, novel.labels, episodes=_EPISODES)
    lines.append(
        f"1-shot prior on the evaluated categories, {_EPISODES} episodes, mIoU (all "
        f"foreground {foreground_iou(novel.labels, pairs=pairs):.3f}):"
    )
    for name, given in (("trained", str(file)), ("untrained", "random")):
        backbone = backbones.get("tiny", weights=given)
        scores = prior_iou(functools.partial(_levels, backbone), novel, pairs=pairs)
        told = zip((*LEVELS, "mean"), scores, strict=True)
        lines.append(f"  {name}: " + ", ".join(f"{k} {v:.3f}" for k, v in told))
        lines.append(f"  {name}: digest {backbone.digest}")
    return lines


def _levels(backbone: backbones.Backbone, pixels: Array) -> list[Array]:
    found = backbone(pixels).levels
    return [found[level] for level in LEVELS]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
