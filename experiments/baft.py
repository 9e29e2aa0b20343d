"""What streaming costs and saves: time and memory of BAFT's attention and priors.

    python -m experiments.baft [--sides 48,96] [--shots 1,5,20] [--channels 256]
                               [--repeats 2] [--most 4096] [--prior-shots 5,20,50]

attention: assembly and self-propagation of one query by k supports (k + 1 passes over
the keys), streamed against the form that holds the matrix of positions. Memory is XLA's
own count of temporary bytes of the compiled program. Both are timed in turn within one
run. What would need more than `--most` megabytes is compiled (the memory is exact) but
not run.

priors: `baft.remember` and `baft.make_priors` whole, reliability included: memory for
every number of `--prior-shots`, compiled and not run.

Numbers depend on the machine: read the ratios. Run it when nothing else runs.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp

from diffup_jax import attention, images
from diffup_jax.methods.prior import baft

TEMPERATURE = 0.05
MEGABYTE = 1 << 20


def naive(query, support, values):
    """Assembly [k s] by every support, then self-propagation, with whole matrices."""
    read = lambda q, s, v: (  # noqa: E731
        jax.nn.softmax(q @ s.T / TEMPERATURE, axis=-1) @ v
    )
    maps = jax.vmap(read, (None, 0, 0))(query, support, values)[..., 0]
    return read(query, query, maps.T)


def streamed(query, support, values):
    """The same through attention.attend, support by support."""
    everywhere = jnp.ones(len(query), bool)
    read = lambda q, s, v: attention.attend(  # noqa: E731
        q, s, v, everywhere, temperature=TEMPERATURE
    )
    maps = jax.lax.map(lambda sv: read(query, *sv), (support, values))[..., 0]
    return read(query, query, maps.T)


def compare(side: int, shots: int, channels: int, repeats: int, most: int) -> None:
    """Prints one line: temporary memory and seconds of both forms, and ratios."""
    n = side * side
    keys = jax.random.split(jax.random.key(0), 3)
    args = (
        images.unit(jax.random.normal(keys[0], (n, channels))),
        images.unit(jax.random.normal(keys[1], (shots, n, channels))),
        jax.random.uniform(keys[2], (shots, n, 1)),
    )
    forms = {"naive": naive, "streamed": streamed}
    programs = {name: jax.jit(f).lower(*args).compile() for name, f in forms.items()}
    memory = {name: _temporary(program) for name, program in programs.items()}
    best = dict.fromkeys(forms, float("inf"))
    for _ in range(repeats):
        for name, program in programs.items():
            if memory[name] <= most:
                start = time.perf_counter()
                jax.block_until_ready(program(*args))
                best[name] = min(best[name], time.perf_counter() - start)
    seconds = {n: f"{s:8.3f}" if s < 1e9 else "not run" for n, s in best.items()}
    ratio = best["streamed"] / best["naive"] if best["naive"] < 1e9 else float("nan")
    print(
        f"{side:4}^2 {shots:5} | {memory['naive']:9.1f} {memory['streamed']:9.1f} "
        f"{memory['naive'] / memory['streamed']:7.1f}x | {seconds['naive']:>8} "
        f"{seconds['streamed']:>8} {ratio:7.2f}",
        flush=True,
    )


def priors(side: int, shots: int, channels: int) -> None:
    """Prints the temporary memory of all priors of one episode, and the size of the
    features, which are inputs.
    """
    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)  # noqa: E731

    def made(query, support, fg, bg):
        valid = jnp.ones(fg.shape[:3], bool)
        memory = baft.remember(
            (support,), fg=fg, bg=bg, valid=valid, temperature=TEMPERATURE
        )
        return baft.make_priors(
            (query,),
            memory,
            text=None,
            text_valid=jnp.zeros(fg.shape[:2], bool),
            temperature=TEMPERATURE,
            grid=(side, side),
        )

    features = shape(1, 1, shots, side, side, channels)
    cue = shape(1, 1, shots, 4 * side, 4 * side)
    args = (shape(1, side, side, channels), features, cue, cue)
    used = _temporary(jax.jit(made).lower(*args).compile())
    size = 4 * shots * side * side * channels / MEGABYTE
    print(f"{side:4}^2 {shots:5} | {used:9.1f} {size:9.1f}", flush=True)


def main() -> None:
    """Reads the options and prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", default="48,96")
    parser.add_argument("--shots", default="1,5,20")
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--most", type=int, default=4096)
    parser.add_argument("--prior-shots", default="5,20,50")
    options = parser.parse_args()
    sides, shots, prior_shots = (
        [int(x) for x in text.split(",")]
        for text in (options.sides, options.shots, options.prior_shots)
    )
    print(f"{jax.devices()[0].device_kind}, {options.channels} channels, float32")
    print("attention     | MB: naive  streamed   ratio | s: naive streamed   ratio")
    for side in sides:
        for k in shots:
            compare(side, k, options.channels, options.repeats, options.most)
    print("priors        | MB: used  features of the shots")
    for side in sides:
        for k in prior_shots:
            priors(side, k, options.channels)


def _temporary(program) -> float:
    """Megabytes that a compiled program needs beside its inputs and outputs."""
    return program.memory_analysis().temp_size_in_bytes / MEGABYTE


if __name__ == "__main__":
    main()
