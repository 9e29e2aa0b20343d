"""What further steps of the sampler cost a whole prediction.

    python -m experiments.steps --config configs/coco_fold0.py [--steps 1,10] \
        [--repeats 5] [--set diffup.decoder.size='"S"']

One 1-shot episode of the config's image size in one compiled program: backbone
(random weights, they cost the same), BAFT, UAPF, decoder, `samples` of the config. The
numbers of steps take turns within one run; read the ratio to the first. The last line
is (t_last - t_first) / (steps apart).
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time

import jax

from diffup_jax import config as configs
from diffup_jax import methods
from experiments import overrides
from experiments.speed import noise


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="configs/NAME.py[:FOLD]")
    parser.add_argument("--steps", default="1,10")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    counts = [int(x) for x in options.steps.split(",")]
    changes = {"backbone.weights": "random", "diffup.process.diffusion": True}
    changes |= overrides.changes_of(options.set)
    runs = {}
    for count in counts:
        config = overrides.config_of(
            options.config, {**changes, "diffup.sampler.steps": count}, seed=0
        )
        settings = configs.from_config(config)
        method, _ = configs.open_method(settings)
        episode = noise(1, 1, settings.data.image_size, seed=0)
        params = method.init(jax.random.key(0), episode)
        keys = jax.random.split(jax.random.key(1), 1)
        arguments = jax.device_put((params, keys, episode))
        ask = functools.partial(methods.asked, method)
        began = time.monotonic()
        compiled = jax.jit(ask).lower(*arguments).compile()
        print(
            f"{count} steps: compiled in {time.monotonic() - began:.1f} s", flush=True
        )
        runs[count] = (compiled, arguments, [])
    for repeat in range(options.repeats + 1):
        for compiled, arguments, seconds in runs.values():
            began = time.monotonic()
            jax.block_until_ready(compiled(*arguments))
            if repeat:  # the first call warms up
                seconds.append(time.monotonic() - began)
    size, own = settings.data.image_size, settings.diffup
    print(
        f"{settings.backbone.name} at {size} x {size}, decoder "
        f"{own.decoder.size}, mask stride {own.decoder.mask_stride}, "
        f"{own.sampler.samples} samples; {jax.devices()[0].device_kind}, "
        f"medians of {options.repeats}"
    )
    medians = {count: statistics.median(run[2]) for count, run in runs.items()}
    for count, seconds in medians.items():
        ratio = seconds / medians[counts[0]]
        print(f"{count:3d} steps: {1000 * seconds:8.1f} ms, {ratio:.2f} x")
    if len(counts) > 1:
        apart = medians[counts[-1]] - medians[counts[0]]
        print(
            f"a step of the decoder: {1000 * apart / (counts[-1] - counts[0]):.1f} ms"
        )


if __name__ == "__main__":
    main()
