"""Corrective clicks: mIoU of a trained run after 0, 1, 2, ... simulated strokes.

    python -m experiments.correction --config configs/garments.py:0 \
        --workdir runs/garments_f0 [--clicks 3] [--episodes 400] [--on novel|base]

Instead of the folder of a run, --decoder FILE.npz takes a decoder that
experiments.ablation trained, and --set KEY=VALUE the settings it was trained with.

1-shot mask episodes, one way, scored at the network's size. After every prediction the
simulated user clicks once: on the largest connected component of the error, at the
point of it that is furthest from its border, with a disc of 5 px (at 384) that stays
inside the component: foreground where the mask was missed, background where it was
false. All strokes so far and the present mask go back into `answer`; what is observed
of the query is made once. Without diffusion, and with --fresh, the mask does not go
back: each answer is made anew from the corrected prior.

"painted" is the naive peer: the same discs set in the first prediction, no model asked.
What the user would have painted is in both scores, so only their difference is the
model's.

--on novel: the list of `config.eval`, as eval.py scores it. --on base: base classes on
held-out images of the training split; constants are chosen there and nowhere else.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from diffup_jax import config as configs
from diffup_jax import evaluation_data, metrics, scoring
from diffup_jax.data import episodes, lists, pipeline, protocols, rasters, sources
from diffup_jax.types import Strokes
from experiments import decoders, overrides

_RADIUS = 5 / 384  # of a click, in image sides
_RESAMPLES = 1000


class Click(NamedTuple):
    """A disc of pixels [h w], and whether it says foreground."""

    foreground: bool
    disc: Bool[np.ndarray, "h w"]


class Cases(NamedTuple):
    """What is scored: a source, the episodes drawn of it, and their classes."""

    source: sources.Source
    draws: tuple[episodes.Draw, ...]
    classes: tuple[int, ...]


def click(
    shown: Bool[np.ndarray, "h w"],
    truth: Bool[np.ndarray, "h w"],
    valid: Bool[np.ndarray, "h w"],
) -> Click | None:
    """What a user would click on next, or None where nothing is wrong."""
    missed, false = truth & ~shown & valid, shown & ~truth & valid
    largest = [rasters.components(error) == 1 for error in (missed, false)]
    areas = [part.sum() for part in largest]
    if not any(areas):
        return None
    foreground = bool(areas[0] >= areas[1])
    part = largest[0 if foreground else 1]
    # The image's border is a border of the component too.
    inside = ndimage.distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(np.argmax(inside), inside.shape)
    radius = min(_RADIUS * len(part), inside[y, x] - 0.5)
    rows, columns = np.ogrid[: part.shape[0], : part.shape[1]]
    return Click(foreground, (rows - y) ** 2 + (columns - x) ** 2 <= radius**2)


def novel_cases(settings) -> Cases:
    """The evaluation list of the config."""
    test = evaluation_data.open_test(settings, shots=1)
    return Cases(test.source, test.draws, test.classes)


def base_cases(settings) -> Cases:
    """As many episodes of base classes on the images that training held out."""
    source = sources.open_split(settings.data, "train", shots=1)
    base = sources.fold_classes(source, settings.data.fold, role="base")
    _, held_out = sources.hold_out(source, settings.data.val_fraction)
    usable = [c for c in base if len(held_out.image_ids(c)) >= 2]
    draws = episodes.clean_draws(
        held_out, usable, shots=1, count=settings.eval.episodes, seed=settings.eval.seed
    )
    return Cases(held_out, draws, tuple(sorted({d.class_ids[0] for d in draws})))


def load(settings, options):
    """The method and its parameters, of a run or of an ablation."""
    method, backbone = configs.open_method(settings)
    if options.workdir:
        params, name = scoring.load(settings, method, backbone, options.workdir)
    else:
        found = decoders.trained(settings, (), file=options.decoder)
        params, name = {"backbone": backbone.params, **found}, options.decoder.stem
    print(f"decoder {name}, backbone {backbone.name} {backbone.digest}", flush=True)
    return method, params


def score(settings, method, params, cases: Cases, *, clicks: int, fresh: bool):
    """States after 0..clicks clicks, those of the painted peer, seconds per answer."""
    observe = jax.jit(
        lambda params, episode: method.observe(
            params, episode.query, method.encode(params, episode.support)
        )
    )
    answer = jax.jit(method.answer)
    answers = [metrics.zero(cases.classes) for _ in range(clicks + 1)]
    painted = list(answers)
    key = jax.random.key(settings.eval.seed)
    seconds = []
    batches = pipeline.evaluation_batches(
        cases.source,
        cases.draws,
        numbers=range(len(cases.draws)),
        cue="mask",
        protocol=protocols.get(settings.eval.protocol),
        data=settings.data,
        batch_size=settings.eval.batch_size,
        seed=settings.eval.seed,
        texts=None,
        workers=0,
    )
    with contextlib.closing(batches):
        for batch in batches:
            count = len(batch.places)
            if not count:
                continue
            episode = jax.device_put(batch.episode)
            places = np.resize(batch.places.astype(np.uint32), len(batch.class_ids))
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
            observed = observe(params, episode)
            found = first = answer(params, keys, observed, None)

            def add(state, found, batch=batch, episode=episode, count=count):
                return metrics.update(
                    state,
                    metrics.score(found, episode.query),
                    numbers=batch.places.tolist(),
                    class_id=batch.class_ids[:count],
                )

            said = np.zeros((2, *found.probability.shape), bool)
            answers[0] = add(answers[0], found)
            for number in range(1, clicks + 1):
                _point(said, found, batch, count)
                began = time.monotonic()
                mask = None if fresh else found.probability
                strokes = Strokes(*map(jnp.asarray, said), mask)
                found = jax.block_until_ready(answer(params, keys, observed, strokes))
                seconds.append((time.monotonic() - began) / len(places))
                answers[number] = add(answers[number], found)
                naive = jnp.where(said[1], 0.0, first.probability)
                naive = first._replace(probability=jnp.where(said[0], 1.0, naive))
                painted[number] = add(painted[number], naive)
    painted[0] = answers[0]
    return answers, painted, float(np.median(seconds)) if seconds else 0.0


def _point(said, found, batch, count: int) -> None:
    """Adds one click per episode to the strokes said [2 b 1 h w], in place."""
    query = batch.episode.query
    shown = map(metrics.predicted, *(np.asarray(part) for part in found[:2]))
    for row, masks in zip(range(count), shown, strict=False):
        truth, valid = query.mask[row, 0], query.valid[row]
        made = click(masks[0], truth, valid)
        if made is not None:
            said[0 if made.foreground else 1, row, 0] |= made.disc


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="configs/NAME.py[:FOLD]")
    of = parser.add_mutually_exclusive_group(required=True)
    of.add_argument("--workdir", help="folder of the trained run")
    of.add_argument("--decoder", type=Path, help="or a decoder that ablation trained")
    parser.add_argument("--clicks", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--on", choices=("novel", "base"), default="novel")
    parser.add_argument("--fresh", action="store_true", help="do not restart the chain")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    if options.decoder and not options.decoder.is_file():
        parser.error(f"--decoder: there is no file {str(options.decoder)!r}")
    config = overrides.config_of(options.config, overrides.changes_of(options.set))
    config.eval.episodes = options.episodes
    config.eval.shots = (1,)
    config.eval.ways = 1
    settings = configs.from_config(config)
    own = getattr(settings, "diffup", None)
    if options.fresh and not (own and own.process.diffusion):
        parser.error("--fresh: without diffusion every answer is made anew")
    cases = {"novel": novel_cases, "base": base_cases}[options.on](settings)
    sha = lists.draws_sha(cases.draws)
    device = jax.devices()[0].device_kind
    print(
        f"{options.on} classes ({len(cases.classes)}) of {cases.source.name} fold "
        f"{settings.data.fold}, {len(cases.draws)} episodes, list {sha}, seed "
        f"{settings.eval.seed}, {settings.data.image_size} px, {device}",
        flush=True,
    )
    method, params = load(settings, options)
    answers, painted, seconds = score(
        settings, method, params, cases, clicks=options.clicks, fresh=options.fresh
    )
    print("clicks  mIoU                   painted only")
    for number, states in enumerate(zip(answers, painted, strict=True)):
        told = []
        for state in states:
            low, high = metrics.bootstrap_interval(
                state, seed=settings.eval.seed, resamples=_RESAMPLES
            )
            told.append(f"{metrics.compute(state).miou:5.1f} ({low:.1f}-{high:.1f})")
        print(f"{number:6d}  {told[0]:22s} {told[1]}")
    print(f"{seconds:.3f} s per corrected answer of an observed query (median)")


if __name__ == "__main__":
    main()
