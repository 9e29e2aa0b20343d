"""What a memory and kept priors save: times measured in turn within one run.

    python -m experiments.speed [--repeats 7] [--size 384]

queries: one episode of 1 and of 5 shots by the training-free method and by DiffUp
(decoder B, one forward). "whole" is the episode asked at once (`methods.asked`),
"encode" its examples alone, "second" a further query by the memory that is there. Each
is one compiled program; the ratio is whole / second, what a further query costs less.

training: one step of DiffUp-B on kept priors ("kept") against the same step that makes
them from its episodes ("made"): 2 episodes of 1 shot.

Over resnet50 with random weights, which cost what trained ones cost, in float32. Every
number is a median; of ratios, taken within a turn, the least and the most are told too.
Numbers depend on the machine: read the ratios. Run it when nothing else runs.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from diffup_jax import config as configs
from diffup_jax import methods, training
from diffup_jax.types import CUES, DiffUpError, Episode, Query, Support

_SHOTS = (1, 5)
_BATCH = 2


def noise(b: int, shots: int, size: int, *, seed: int) -> Episode:
    """Noise with a box of foreground: costs do not depend on what is seen."""
    random = np.random.default_rng(seed)
    fg = np.zeros((b, 1, shots, size, size), bool)
    fg[..., size // 4 : size // 2, size // 4 : size // 2] = True
    return Episode(
        Support(
            images=random.integers(256, size=(*fg.shape, 3), dtype=np.uint8),
            fg=fg,
            bg=~fg,
            kind=np.full(fg.shape[:3], CUES.index("mask"), np.int32),
            valid=np.ones(fg.shape[:3], bool),
            text=np.zeros((b, 1, 0), np.float32),
            text_valid=np.zeros((b, 1), bool),
        ),
        Query(
            image=random.integers(256, size=(b, size, size, 3), dtype=np.uint8),
            valid=np.ones((b, size, size), bool),
            mask=fg[:, :, 0],
        ),
    )


def queries(size: int, repeats: int) -> None:
    """Prints a line for each method and number of shots."""
    print("method  shots |  ms: whole  encode  second | whole / second")
    for name in ("prior", "diffup"):
        method, _ = configs.open_method(_settings(name, size))
        whole = jax.jit(functools.partial(methods.asked, method))
        encode, predict = jax.jit(method.encode), jax.jit(method.predict)
        for shots in _SHOTS:
            episode = noise(1, shots, size, seed=0)
            params = method.init(jax.random.key(0), episode)
            keys = jax.random.split(jax.random.key(1), 1)
            params, episode = jax.device_put((params, episode))
            memory = encode(params, episode.support)
            made = {
                "whole": functools.partial(whole, params, keys, episode),
                "encode": functools.partial(encode, params, episode.support),
                "second": functools.partial(
                    predict, params, keys, episode.query, memory
                ),
            }
            found = _in_turn(made, repeats)
            times = " ".join(f"{statistics.median(x):7.1f}" for x in found.values())
            ratio = _ratio(found["whole"], found["second"])
            print(f"{name:7s} {shots:5d} |    {times} | {ratio}", flush=True)


def training_step(size: int, repeats: int) -> None:
    """Prints the line of one step of the training."""
    settings = _settings("diffup", size)
    method, _ = configs.open_method(settings)
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    tx = training.optimiser(settings.train)
    episode = jax.device_put(noise(_BATCH, 1, size, seed=0))
    runs: dict[str, Callable[[], object]] = {}
    for name, loss in (("made", method.loss), ("kept", method.loss_prepared)):
        # The state's buffers are reused by a step: each has its own.
        state, frozen = training.init_state(method, tx, settings, mesh)
        batch = episode
        if name == "kept":
            batch = jax.jit(method.prepare)(frozen, episode)
        step = training.make_step(loss, tx, mesh, ema_decay=0.999, seed=0)
        runs[name] = functools.partial(_go_on, step, [state], frozen, batch)
    found = _in_turn(runs, repeats)
    times = " ".join(f"{statistics.median(x):7.1f}" for x in found.values())
    print(f"training step |  ms: made    kept\n{_BATCH} episodes    |    {times} | "
          f"{_ratio(found['made'], found['kept'])}")  # fmt: skip


def _settings(method: str, size: int) -> configs.Settings:
    return configs.from_config(
        {
            "method": method,
            "backbone": {"name": "resnet50", "weights": "random"},
            "data": {"image_size": size},
        }
    )


def _go_on(step, state: list, frozen, batch):
    state[0], metrics = step(state[0], frozen, batch)
    return metrics


def _in_turn(
    runs: dict[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Milliseconds of every call; the first of each, which compiles, is left out."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():  # a slow minute hits all of them
            began = time.perf_counter()
            jax.block_until_ready(run())
            if turn:
                found[name].append(1e3 * (time.perf_counter() - began))
    return found


def _ratio(longer: Sequence[float], shorter: Sequence[float]) -> str:
    ratios = [a / b for a, b in zip(longer, shorter, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--size", type=int, default=384, help="image side in pixels")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats: at least 1")
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, resnet50, float32, "
        f"{options.size} x {options.size}, medians of {options.repeats}",
        flush=True,
    )
    try:
        queries(options.size, options.repeats)
        training_step(options.size, options.repeats)
    except DiffUpError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
