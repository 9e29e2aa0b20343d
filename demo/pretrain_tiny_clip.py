"""Trains `tiny_clip_s` and `tiny_clip_m`, the embedded image-text backbones.

    python -m demo.pretrain_tiny_clip --name tiny_clip_s

draws scenes of the 320 pretraining categories (none of the 80 evaluated ones), trains
both towers of `diffup_jax.backbones.clip` on captions, from nothing, in minutes on two
cores, and writes NAME.safetensors, beside it NAME.log and tiny_clip.json, the word list
of the text tower. Every word of the evaluated names occurs in training, none of their
combinations does.

The objective is the one of `caption_training`: dense features against captions.

Images are windows of the scenes at several scales, 16 x 16 patches each; the table of
positions is for 24 x 24, an image of 192 x 192, the quickstart's size.

Checks, on new scenes of the pretraining categories at 192 x 192: `joint_check`, and the
1-shot prior of `prior_check`. When every choice has been made,

    python -m demo.pretrain_tiny_clip --name tiny_clip_s --evaluated

trains nothing: it adds to the log, for information, what the dense checks give on
scenes of the evaluated categories.
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
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from demo import joint_check, scene_captions
from demo.caption_training import PATCHES, draw_captions, make_step
from demo.prior_check import choose_pairs, foreground_iou, prior_iou
from demo.scene_batches import Scenes, crops, draw_scenes
from demo.scene_categories import categories
from diffup_jax import backbones, weights
from diffup_jax.backbones import clip, tokenizer
from diffup_jax.files import read_text, whole_or_absent, write_whole
from diffup_jax.types import DiffUpError

NAMES = ("tiny_clip_s", "tiny_clip_m")

_WINDOWS = (128, 152, 176, 200)  # pixels of a scene that become a crop
_CHECK_SIZE = 192
_EPISODES = 320  # of the dense checks


def pretrain(
    out: str | os.PathLike,
    *,
    name: str,
    scenes: int,
    steps: int,
    batch: int,
    seed: int,
    processes: int,
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
    packages = ("jax", "flax", "optax", "numpy", "pillow")
    variant = clip.VARIANTS[name]
    log = [
        f"command: {command}",
        f"python {platform.python_version()}, "
        + ", ".join(f"{package} {version(package)}" for package in packages)
        + f", {os.cpu_count()} cores, {jax.default_backend()}",
        f"seed {seed}, {scenes} scenes of the pretraining categories, {steps} steps of "
        f"{batch} crops of {PATCHES} x {PATCHES} patches",
    ]
    drawing = functools.partial(draw_scenes, processes=processes)
    check = max(scenes // 10, joint_check.SCENES)
    train = drawing("pretraining", scenes, seed=3 * seed)
    unseen = drawing("pretraining", check, seed=3 * seed + 1)
    log.append(f"drawn in {time.perf_counter() - began:.0f} s")

    words = target.with_name(variant.text.tokenizer)
    write_whole(words, json.dumps({"words": scene_captions.words()}, indent=1) + "\n")
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

    with whole_or_absent(target) as partial:
        made = {part: state.params[part] for part in ("image", "text")}
        weights.save(partial, made, half=True)
        # What is checked is the file: its half precision included.
        backbone = backbones.get(name, weights=str(partial))
        size = partial.stat().st_size
        count = sum(leaf.size for leaf in jax.tree.leaves(made))
        log.append(f"{count} parameters, {size} bytes, digest {backbone.digest}")
        unseen = shrunk(unseen, _CHECK_SIZE)
        log += [f"{len(unseen.images)} new scenes of the pretraining categories:"]
        found, told = joint_check.retrieval(backbone, unseen)
        log.append(
            f"  top-1 among {joint_check.SCENES}: caption of an image {found:.3f}, "
            f"image of a caption {told:.3f}"
        )
        log += _dense_checks(backbone, unseen, pool="pretraining", seed=seed)
        log.append(f"all done in {time.perf_counter() - began:.0f} s")
    write_whole(target.with_suffix(".log"), "\n".join(log) + "\n")
    return log


def evaluated(
    out: str | os.PathLike, *, name: str, scenes: int, seed: int, processes: int
) -> list[str]:
    """The dense checks of the file `out` on `scenes` new scenes of the evaluated
    categories; the lines are added to its log and returned.
    """
    backbone = backbones.get(name, weights=str(out))
    drawn = draw_scenes("evaluated", scenes, seed=3 * seed + 2, processes=processes)
    lines = [
        f"afterwards, for information: digest {backbone.digest}, {scenes} scenes of "
        "the evaluated categories",
        *_dense_checks(
            backbone, shrunk(drawn, _CHECK_SIZE), pool="evaluated", seed=seed
        ),
    ]
    log = Path(out).with_suffix(".log")
    before = read_text(log, fix="It is written when the network is trained.")
    write_whole(log, before + "\n".join(lines) + "\n")
    return lines


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
        prog="python -m demo.pretrain_tiny_clip",
        description="Train an embedded image-text backbone on drawn scenes.",
    )
    parser.add_argument("--name", choices=NAMES, required=True)
    parser.add_argument("--out", help="weights file to write; the packaged one if none")
    parser.add_argument("--scenes", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument(
        "--evaluated",
        action="store_true",
        help="train nothing: check the file on the evaluated categories",
    )
    options = vars(parser.parse_args(arguments))
    packaged = f"{options['name']}.safetensors"
    out = options.pop("out") or str(importlib.resources.files(backbones) / packaged)
    check = options.pop("evaluated")
    said = " ".join(f"--{option} {value}" for option, value in options.items())
    try:
        if check:
            used = {key: options[key] for key in ("name", "seed", "processes")}
            log = evaluated(out, scenes=_EPISODES, **used)
        else:
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
        PATCHES * variant.patch,
    )
    corner = generator.integers(0, variant.grid - PATCHES + 1, 2)
    return (
        pixels,
        labels,
        draw_captions(generator, tokenize, labels),
        corner,
    )


def _resized(image: UInt8[np.ndarray, "h w 3"], size: int) -> np.ndarray:
    if image.shape[0] == size:
        return image
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(image)).resize(
            (size, size), Image.Resampling.BILINEAR
        )
    )


def _dense_checks(
    backbone: backbones.Backbone, scenes: Scenes, *, pool: str, seed: int
) -> list[str]:
    generator = np.random.default_rng((seed, 2))
    pairs = choose_pairs(generator, scenes.labels, episodes=_EPISODES)
    names = tuple(one.name for one in categories(pool))
    text = joint_check.text_iou(backbone, scenes, names, pairs=pairs)
    levels = backbone.prior_levels
    scores = prior_iou(
        lambda pixels: [backbone(pixels).levels[level] for level in levels],
        scenes,
        pairs=pairs,
    )
    told = zip((*levels, "mean"), scores, strict=True)
    return [
        f"  {_EPISODES} episodes, best-threshold mIoU (all foreground "
        f"{foreground_iou(scenes.labels, pairs=pairs):.3f}):",
        f"  text {text:.3f}",
        "  1 shot: " + ", ".join(f"{name} {score:.3f}" for name, score in told),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
