"""Training-free priors of a config, scored where it may be chosen.

    python -m experiments.priors --config configs/garments.py:0 \
        --scales 1 --scales 0.5 --scales 0.33,0.5,0.67 [--shots 1,5] [--episodes 160] \
        [--cue mask --cue scribble --cue point] [--set data.points=1]

Episodes of base classes on images of the training split (nothing here is trained,
so all of them may be used), scored by the clean protocol: mIoU of the fused mean at its
best threshold, for each --scales, --cue (a mask where none is named) and number of
--shots, and seconds per episode. All cues and numbers of shots see the same queries,
and fewer shots are the first of more. Novel classes and test images are not looked at.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time

import jax

from diffup_jax import config as configs
from diffup_jax import evaluation, methods, training_data
from diffup_jax.data import episodes, pipeline, protocols, sources
from experiments import overrides


def score(
    config, scales: tuple[float, ...], count: int, *, cue: str, shots: int, most: int
) -> tuple[float, float]:
    """Best-threshold mIoU in percent and seconds per episode.

    shots: the first ones of episodes that are drawn with `most`.
    """
    config.method = "prior"
    config.prior.scales = scales
    settings = configs.from_config(config)
    source = sources.open_split(settings.data, "train", shots=most)
    base = sources.fold_classes(source, settings.data.fold, role="base")
    if settings.data.skip_small_classes:
        base = sources.classes_with_images(source, base, shots=most)
    draws = [
        draw._replace(supports=tuple(way[:shots] for way in draw.supports))
        for draw in episodes.clean_draws(
            source, base, shots=most, count=count, seed=settings.seed
        )
    ]
    protocol = protocols.get("clean")
    method, backbone = configs.open_method(settings)
    params = {"backbone": backbone.params}
    ask = jax.jit(functools.partial(methods.asked, method))
    batches = pipeline.evaluation_batches(
        source,
        draws,
        numbers=range(count),
        cue=cue,
        protocol=protocol,
        data=settings.data,
        batch_size=settings.eval.batch_size,
        seed=settings.seed,
        texts=training_data.class_texts(method, source, [cue]),
        workers=0,
    )
    start = time.monotonic()
    result = evaluation.evaluate(
        lambda keys, episode: ask(params, keys, episode),
        jax.random.key(settings.seed),
        batches,
        classes=sorted({draw.class_ids[0] for draw in draws}),
        episodes=count,
        frame=protocol.frame,
        seed=settings.seed,
        resamples=1,
    )
    return result.scores.prior_miou, (time.monotonic() - start) / count


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="configs/NAME.py[:FOLD]")
    parser.add_argument("--scales", action="append", required=True)
    parser.add_argument("--cue", action="append", default=[])
    parser.add_argument("--shots", default="1")
    parser.add_argument("--episodes", type=int, default=160)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    shots = [int(part) for part in options.shots.split(",")]
    changes = overrides.changes_of(options.set)
    print("scales                   cue       shots  mIoU   s/episode")
    asked = itertools.product(options.scales, options.cue or ["mask"], shots)
    for text, cue, k in asked:
        miou, seconds = score(
            overrides.config_of(options.config, changes),
            tuple(float(part) for part in text.split(",")),
            options.episodes,
            cue=cue,
            shots=k,
            most=max(shots),
        )
        print(f"{text:24s} {cue:9s} {k:5d} {miou:5.1f} {seconds:11.3f}", flush=True)


if __name__ == "__main__":
    main()
