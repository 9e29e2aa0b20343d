"""Is the prior's variance the error of its mean? Measured where it may be looked at.

    python -m experiments.calibration --config configs/garments.py:0 \
        [--episodes 160] [--cues mask,box,scribble,point]

1-shot episodes of base classes on images of the training split by the clean protocol;
nothing here is trained, so all of them may be used. Novel classes and test images are
not looked at. With y in {0, 1} the truth, mu and sigma^2 the training-free prior's
maps, u a map that claims to be E[(mu - y)^2]:

    reliability   by bin of sigma^2: mean of sigma^2, of (mu - y)^2, share of pixels
    gap           sum over 20 bins of equal size of share |mean u - mean (mu - y)^2|
    rank          Spearman correlation of u with (mu - y)^2 over pixels
    AUROC         of "this pixel is wrong at Otsu's threshold", by u, equation (5)

for u = sigma^2 and, to compare, its first sum alone (how much the priors disagree),
c sigma^2 with the c that makes the means over these very pixels equal (whether the
shape is right where the scale is not), and mu (1 - mu), the variance of a pixel that is
foreground with probability mu. "fit" is the D >= 0 and O >= 0 of equation (3) of
uapf.py that have the least squares here, floor kept. One pixel in 16 is taken (every
fourth row and column).
"""

from __future__ import annotations

import argparse
import functools

import jax
import numpy as np
from scipy import optimize

from diffup_jax import config as configs
from diffup_jax import evaluation, methods
from diffup_jax.data import episodes, pipeline, protocols, sources
from diffup_jax.methods.prior import uapf
from diffup_jax.types import CUES
from experiments import overrides

STRIDE = 4
# Bins of sigma^2 in the table: the floors of the cues lie between the first ones.
EDGES = (0, 0.004, 0.008, 0.015, 0.025, 0.035, 0.05, 0.07, 0.1, 0.15, 0.26)


def pixels(settings, ask, *, cue: str, count: int) -> np.ndarray:
    """Columns mu, sigma^2, y and wrong of the pixels taken, [4 pixels]."""
    source = sources.open_split(settings.data, "train", shots=1)
    base = sources.fold_classes(source, settings.data.fold, role="base")
    if settings.data.skip_small_classes:
        base = sources.classes_with_images(source, base, shots=1)
    draws = episodes.clean_draws(source, base, shots=1, count=count, seed=settings.seed)
    batches = pipeline.evaluation_batches(
        source,
        draws,
        numbers=range(count),
        cue=cue,
        protocol=protocols.get("clean"),
        data=settings.data,
        batch_size=settings.eval.batch_size,
        seed=settings.seed,
        texts=None,
        workers=0,
    )
    answers = evaluation.predictions(ask, jax.random.key(settings.seed), batches)
    found = []
    for batch, episode, answer in answers:
        real, step = len(batch.places), slice(None, None, STRIDE)
        parts = (
            answer.maps["prior_mean"],
            answer.maps["prior_variance"],
            episode.query.mask,
            answer.probability,
        )
        mean, variance, truth, prob = (
            np.asarray(part)[:real, 0, step, step] for part in parts
        )
        valid = np.asarray(episode.query.valid)[:real, step, step]
        wrong = (prob > 0.5) != truth
        found.append(np.stack([mean, variance, truth, wrong])[:, valid])
    return np.concatenate(found, axis=1).astype(np.float64)


def ranks(values: np.ndarray) -> np.ndarray:
    """From 0, equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[place]


def gap(claimed: np.ndarray, error: np.ndarray) -> float:
    """Mean over 20 bins of equal size of |mean claim - mean error|."""
    order = np.argsort(claimed, kind="stable")
    parts = [np.array_split(x[order], 20) for x in (claimed, error)]
    return float(
        np.mean([abs(c.mean() - e.mean()) for c, e in zip(*parts, strict=True)])
    )


def auroc(values: np.ndarray, wrong: np.ndarray) -> float:
    """Equation (5) from ranks, nothing binned."""
    many = int(wrong.sum())
    above = ranks(values)[wrong > 0].sum() - many * (many - 1) / 2
    return float(above / (many * (len(wrong) - many)))


def report(cue: str, found: np.ndarray) -> None:
    """Print the reliability table, the line of each claim and the fit."""
    mean, variance, truth, wrong = found
    error = np.square(mean - truth)
    floor = uapf.FLOORS[CUES.index(cue)]
    # Equation (3) solved for its first sum; the maps were resized since, so nearly.
    whole = mean * (1 - mean)
    between = uapf.LEFT_OPEN * whole + floor - variance
    between = np.clip(between / (uapf.LEFT_OPEN - uapf.DISAGREED), 0, whole)
    print(f"\n{cue}: {len(mean)} pixels, {100 * truth.mean():.1f} % foreground, "
          f"{100 * wrong.mean():.1f} % wrong")  # fmt: skip
    print("  sigma^2 in        mean   (mu-y)^2   ratio   % of pixels")
    place = np.digitize(variance, EDGES) - 1
    for k in range(len(EDGES) - 1):
        inside = place == k
        if inside.any():
            claimed, measured = variance[inside].mean(), error[inside].mean()
            print(
                f"  {EDGES[k]:.3f}-{EDGES[k + 1]:.3f}  {claimed:8.4f} {measured:10.4f} "
                f"{measured / claimed:7.1f} {100 * inside.mean():13.1f}"
            )
    print("  u             mean u  (mu-y)^2     gap    rank   AUROC")
    scale = error.mean() / variance.mean()
    claims = {
        "sigma^2": variance,
        "disagreement": between,
        f"{scale:.2f} sigma^2": scale * variance,
        "mu (1 - mu)": whole,
    }
    for name, claimed in claims.items():
        rank = np.corrcoef(ranks(claimed), ranks(error))[0, 1]
        print(
            f"  {name:12s} {claimed.mean():7.4f} {error.mean():9.4f} "
            f"{gap(claimed, error):7.4f} {rank:7.2f} {auroc(claimed, wrong):7.3f}",
            flush=True,
        )
    sums = np.stack([between, whole - between], axis=1)
    (disagreed, left_open), _ = optimize.nnls(sums, error - floor)
    print(f"  fit: D = {disagreed:.2f}, O = {left_open:.2f}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="configs/NAME.py[:FOLD]")
    parser.add_argument("--episodes", type=int, default=160)
    parser.add_argument("--cues", default="mask,box,scribble,point")
    options = parser.parse_args()
    config = overrides.config_of(options.config, {"method": "prior"})
    settings = configs.from_config(config)
    method, backbone = configs.open_method(settings)
    params = {"backbone": backbone.params}
    answer = jax.jit(functools.partial(methods.asked, method))  # once for all cues

    def ask(keys, episode):
        return answer(params, keys, episode)

    for cue in options.cues.split(","):
        report(cue, pixels(settings, ask, cue=cue, count=options.episodes))


if __name__ == "__main__":
    main()
