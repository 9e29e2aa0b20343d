"""Our backbones against torch eager: time of a forward pass, and of getting ready.

    python -m experiments.backbones forward [--names resnet50,...] [--repeats 7]
                                            [--cores 1]
    python -m experiments.backbones start   [--names resnet50,...] [--repeats 5]

The reference is transformers' model with random weights, saved by it; ours is read from
that file by `backbones.from_folder`. Needs the extra `parity`; nothing is downloaded.

forward: one image of 384 x 384 pixels (392 x 392 where patches are of 14), float32, to
the last hidden state. Both take turns within one run. torch runs eagerly, with its own
default attention; ours is compiled by XLA, and "compile" is what the first call costs.
Both have one thread on each of `--cores` cores (all, unless given). "CPU" is processor
time of a pass: on one core it hardly changes when other programs run, while on several
torch's threads burn it waiting for each other. "error" is the largest difference of the
two answers over the largest value: they compute the same.

start: a fresh process each, imports left out: our weights from the converted store
("stored"), ours with an empty store ("first": read, convert, hash, write), and torch's
`from_pretrained` on the same folder.

Numbers depend on the machine: read the ratios. Run it when nothing else runs.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

SIZE = 384
NAMES = ("resnet50", "dinov2_s14", "clip_b16", "swin_t")


def forward(names: Sequence[str], repeats: int) -> None:
    """Prints a line per network: milliseconds of both, CPU milliseconds, ratios."""
    import jax
    import torch

    from diffup_jax import backbones

    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    torch.set_grad_enabled(False)
    print(
        f"{jax.devices()[0].device_kind}, {cores} cores, jax {jax.__version__}, torch "
        f"{torch.__version__}, float32, batch 1, medians of {repeats} (least, most)"
    )
    print("              |  ms: ours, torch, ours / torch   | CPU ms | compile | error")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            body = _saved(name, Path(folder))
            backbone = backbones.from_folder(folder)
            side = -(-SIZE // backbone.multiple_of) * backbone.multiple_of
            x = np.random.default_rng(0).normal(size=(1, side, side, 3))
            x = x.astype(np.float32)
            nchw = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
            options = _options(name)
            ours = jax.jit(
                lambda params, x, b=backbone: b.apply(params, x, normalised=True).last
            )
            began = time.perf_counter()
            got = np.asarray(ours(backbone.params, x))
            compiled = time.perf_counter() - began
            want = body(nchw, **options).last_hidden_state.numpy()
            ways: dict[str, Callable] = {
                "ours": lambda f=ours, p=backbone.params, x=x: jax.block_until_ready(
                    f(p, x)
                ),
                "torch": lambda b=body, x=nchw, o=options: b(x, **o),
            }
            wall, spent = _in_turn(ways, repeats)
            ratios = [a / b for a, b in zip(*wall.values(), strict=True)]
            print(
                f"{name:10s} {side}² | {_told(wall['ours'])} {_told(wall['torch'])} "
                f"{statistics.median(ratios):.2f} | {spent['ours']:.0f} "
                f"{spent['torch']:.0f} {spent['ours'] / spent['torch']:.2f} | "
                f"{compiled:.1f} s | {_error(got, want):.1e}",
                flush=True,
            )


def start(names: Sequence[str], repeats: int) -> None:
    """Prints a line per network: seconds until its weights are usable."""
    spawn = multiprocessing.get_context("spawn")
    print(f"seconds, medians of {repeats} fresh processes (least, most)")
    print("           |  MiB | stored | first | torch from_pretrained")
    for name in names:
        with tempfile.TemporaryDirectory() as root:
            folder, cache = Path(root) / "model", Path(root) / "cache"
            os.environ["DIFFUP_CACHE"] = str(cache)
            _saved(name, folder)
            size = (folder / "model.safetensors").stat().st_size / 2**20
            found: dict[str, list[float]] = {"stored": [], "first": [], "torch": []}
            for _ in range(repeats):
                shutil.rmtree(cache, ignore_errors=True)
                for way in ("first", "stored", "torch"):
                    work = _load_torch if way == "torch" else _load_ours
                    with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
                        found[way].append(pool.submit(work, name, str(folder)).result())
            told = " | ".join(_told(seconds, digits=2) for seconds in found.values())
            print(f"{name:10s} | {size:4.0f} | {told}", flush=True)


def _saved(name: str, folder: Path):
    """transformers' model, random, saved with its config; its part to run."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    if name == "resnet50":
        model = transformers.ResNetModel(transformers.ResNetConfig())
    elif name == "dinov2_s14":
        config = transformers.Dinov2Config(
            hidden_size=384, num_attention_heads=6, patch_size=14, image_size=518
        )
        model = transformers.Dinov2Model(config)
    elif name == "clip_b16":
        config = transformers.CLIPConfig(vision_config={"patch_size": 16})
        model = transformers.CLIPModel(config)
    else:
        model = transformers.SwinModel(transformers.SwinConfig())
    model = model.eval()
    model.save_pretrained(folder)
    return getattr(model, "vision_model", model)


def _options(name: str) -> dict[str, bool]:
    """What the reference must be told to take images of a size it was not made for."""
    return {"interpolate_pos_encoding": True} if name in ("clip_b16", "swin_t") else {}


def _in_turn(ways: dict[str, Callable], repeats: int) -> tuple[dict, dict]:
    """({way: milliseconds of every pass}, {way: median CPU milliseconds})."""
    wall: dict[str, list[float]] = {name: [] for name in ways}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, run in ways.items():  # a slow minute hits all of them
            began, used = time.perf_counter(), time.process_time()
            run()
            if turn:  # the first one warms up
                wall[name].append(1e3 * (time.perf_counter() - began))
                spent[name].append(1e3 * (time.process_time() - used))
    return wall, {name: statistics.median(each) for name, each in spent.items()}


def _error(got: np.ndarray, want: np.ndarray) -> float:
    if want.shape != got.shape:  # channels first, or tokens with a class token first
        cells = got.shape[1] * got.shape[2]
        want = want.transpose(0, 2, 3, 1) if want.ndim == 4 else want[:, -cells:]
    want = want.reshape(got.shape)
    return float(np.abs(got - want).max() / np.abs(want).max())


def _load_ours(name: str, folder: str) -> float:
    import jax

    from diffup_jax import backbones

    backbones.recipe(name)  # imports every family
    began = time.perf_counter()
    backbone = backbones.get(name, weights=folder)
    jax.block_until_ready(backbone.params)
    return time.perf_counter() - began


def _load_torch(name: str, folder: str) -> float:
    import transformers

    kind = {
        "resnet50": transformers.ResNetModel,
        "dinov2_s14": transformers.Dinov2Model,
        "clip_b16": transformers.CLIPModel,
        "swin_t": transformers.SwinModel,
    }[name]
    began = time.perf_counter()
    kind.from_pretrained(folder, local_files_only=True)
    return time.perf_counter() - began


def _told(values: Sequence[float], *, digits: int = 0) -> str:
    middle, least, most = (
        f"{value:.{digits}f}"
        for value in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({least}, {most})"


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.backbones")
    parser.add_argument("part", choices=["forward", "start"])
    parser.add_argument("--names", default=",".join(NAMES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    options = parser.parse_args(arguments)
    names = options.names.split(",")
    strange = [name for name in names if name not in NAMES]
    if strange:
        parser.error(f"--names {','.join(strange)}: known are {','.join(NAMES)}")
    # Before jax and torch count the cores to start their threads.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    part = forward if options.part == "forward" else start
    part(names, options.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
