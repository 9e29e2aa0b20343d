"""Which part earns its place: one table of decoders that differ by a part.

    python -m tests.bench.ablation --config configs/garments.py --on novel \
        --folds 0,1 --seeds 0,1 --out runs/ablation [--rows "one forward;full"] \
        [--episodes 400] [--kept 6000] [--set train.steps=1000] [--score KEY=VALUE]

Every row trains (or takes from --out what an earlier row or call trained with the same
settings) a decoder per fold and seed, scores 1-shot masks of the clean protocol, and
prints mIoU of the mean over folds and seeds, its 95 % interval over episodes, and the
difference to the first row with the interval of paired episodes. `--on base` is for
choosing: classes left out of the training, on held-out training images; `--on seen`
scores the decoders of `--on novel` on the classes that trained them (places.py).
The training-free prior at its best threshold is the first line. --swap NAME=WEIGHTS
scores every decoder over another backbone, without training; --set changes training and
scoring (JSON values: --set 'train.also_over={"NAME": {"weights": "FILE", "levels": [],
"scales": [1.0]}}' trains over two backbones in turn), --score scoring alone.
--drawn 20 --shots 1 (then 5, 10, 20) draws 20 supports and shows the first of them: the
same queries and classes for every number of shots.

It resumes: what is in --out is not done again. Beside each decoder lies a JSON with the
scores, so tables can be made again without the data.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffup_jax import settings as setup
from diffup_jax.methods import REVISION
from tests.bench import places, trials

# The paper's: a mask drawn from noise. Further steps and samples are rows below.
_FULL = {"process.diffusion": True, "sampler.steps": 2, "sampler.samples": 4}
# Diffusion as usual, then one cure after the other: a row has all of those above it.
_PLAIN = {
    "process.diffusion": True,
    "losses.first_step": 0.0,
    "losses.time_bias": 1.0,
    "losses.from_own": 0.0,
    "losses.from_prior": 0.0,
    "losses.self_conditioning": 0.0,
    "decoder.dqm": False,
    "sampler.steps": 4,
    "sampler.samples": 1,
    "sampler.eta": 0.0,
}


def _without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    """The row with these settings left as the config has them."""
    return {key: value for key, value in row.items() if key not in names}


_BIASED = _without(_PLAIN, "losses.time_bias")
_STATES = _without(_BIASED, "losses.from_own", "losses.from_prior")
_FRESH = {**_STATES, "sampler.eta": 1.0}
_STARTED = _without(_FRESH, "losses.first_step")

# What both models have, and a row takes from one.
_PARTS: dict[str, dict[str, Any]] = {
    "without SCM": {"decoder.scm": False},
    "without affinity": {"decoder.affinity": False},
    "without layout": {"decoder.layout": False},
    "without the image": {"decoder.query_rgb": False},
    "all priors weigh the same": {"prior.fusion_temperature": 1e6},
    "cut at 1/2": {"sampler.threshold": "half"},
    "decoder B": {"decoder.size": "B"},
    "decoder L": {"decoder.size": "L"},
}
_DROPPED = {"sampler.samples": 4, "sampler.prior_dropout": 0.2}

# Name -> settings that differ from the config. Rows that differ in `sampler` only share
# a decoder.
ROWS: dict[str, dict[str, Any]] = {
    "one forward": {},
    "one forward, 4 samples, each of a part of the priors": _DROPPED,
    **{f"one forward, {name}": part for name, part in _PARTS.items()},
    "plain diffusion, 4 steps": _PLAIN,
    "plain diffusion, 1 step": {**_PLAIN, "sampler.steps": 1},
    "+ t biased to noise": _BIASED,
    "+ x_t from own answer and prior": _STATES,
    "+ eta = 1": _FRESH,
    "+ the first step trained too": _STARTED,
    "+ self-conditioning": _without(_STARTED, "losses.self_conditioning"),
    "full": _FULL,
    "full, 1 step, 1 sample": {**_FULL, "sampler.steps": 1, "sampler.samples": 1},
    "full, 2 steps, 1 sample": {**_FULL, "sampler.samples": 1},
    "full, 4 steps, 1 sample": {**_FULL, "sampler.steps": 4, "sampler.samples": 1},
    "full, 4 steps, 4 samples": {**_FULL, "sampler.steps": 4},
    "full, 10 steps, 1 sample": {**_FULL, "sampler.steps": 10, "sampler.samples": 1},
    "full, 4 samples, each of a part of the priors": {**_FULL, **_DROPPED},
    "full, warm start": {**_FULL, "sampler.warm_start": True},
    "full, the first step not trained": {**_FULL, "losses.first_step": 0.0},
    "full, without DQM": {**_FULL, "decoder.dqm": False},
    "full, without self-conditioning": {**_FULL, "losses.self_conditioning": 0.0},
    "full, conditional forward": {**_FULL, "process.condition_strength": 1.0},
    **{f"full, {name}": {**_FULL, **part} for name, part in _PARTS.items()},
}


def result(options: argparse.Namespace, changes: dict[str, Any], fold: int, seed: int):
    """Scores of one decoder on one fold, from its JSON where there is one."""
    settings = setup.from_config(
        trials.config_of(options.config, changes, fold=fold, seed=seed)
    )
    facts = setup.plain(settings)
    learnt = {name: facts[name] for name in ("decoder", "process", "losses", "prior")}
    learnt |= {"train": facts["train"], "backbone": facts["backbone"]["name"]}
    trained = "novel" if options.on == "seen" else options.on
    learnt |= {"fold": fold, "seed": seed, "on": trained, "kept": options.kept}
    learnt["revision"] = REVISION
    for later in ("also_over", "val_classes"):
        # So a decoder has the name it had before there was such a setting.
        if not learnt["train"][later]:
            del learnt["train"][later]
    data = {key: value for key, value in changes.items() if key.startswith("data.")}
    if data:
        learnt["data"] = data
    asking = setup.from_config(
        trials.config_of(
            options.config, {**changes, **options.score}, fold=fold, seed=seed
        )
    )
    facts = setup.plain(asking)
    asked = {"sampler": facts["sampler"], "episodes": options.episodes}
    asked |= {"cue": options.cue, "shots": options.shots, "swap": options.swap}
    if options.score:
        asked["score"] = options.score
    if options.drawn:
        asked["drawn"] = options.drawn
    if options.on == "seen":
        asked["on"] = options.on
    name = f"{trained}-{fold}-{seed}-{trials.key_of(learnt)}"
    file = options.out / f"{name}-{trials.key_of(asked)}.json"
    if not file.exists():
        decoder = options.out / "decoders" / f"{name}.npz"
        found = _scored(options, asking, _decoder(options, settings, decoder))
        aside = file.with_suffix(".aside")
        aside.write_text(json.dumps({**found, "asked": asked, "learnt": learnt}))
        os.replace(aside, file)
    return json.loads(file.read_text())


def _decoder(options, settings, file: Path) -> dict[str, Any]:
    """What `settings` train, read from `file` where they did before."""
    rows = ()
    if not file.exists():
        place = places.open_place(settings, options.on, shots=1, count=options.episodes)
        rows = trials.train_rows(
            settings, place, count=options.kept, folder=options.out / "cache"
        )
    return trials.trained(settings, rows, file=file)


def _scored(options, asking, params: dict[str, Any]) -> dict[str, Any]:
    """The decoder on the episodes that `asking` names."""
    shots = options.drawn or options.shots
    place = places.open_place(asking, options.on, shots=shots, count=options.episodes)
    place = places.first_shots(place, options.shots)
    if options.swap:
        network, _, weights = options.swap.partition("=")
        other = type(asking.backbone)(name=network, weights=weights)
        asking = dataclasses.replace(asking, backbone=other)
    method = setup.make_method(asking, setup.make_backbone(asking))
    tested = trials.test_cache(
        asking, place, method, cue=options.cue, folder=options.out / "cache"
    )
    found = trials.scored(asking, place, method, params, tested)
    scores = found.scores
    return {
        "miou": scores.miou,
        "interval": list(found.interval),
        "prior": scores.prior_miou,
        "fb_iou": scores.fb_iou,
        "everything": scores.everything_foreground,
        "auroc_variance": scores.auroc_variance,
        "auroc_uncertainty": scores.auroc_uncertainty,
        "auroc_spread": scores.auroc_spread,
        "ece": scores.ece,
        "ece_foreground": scores.ece_foreground,
        "sha": place.sha,
        "classes": {
            place.test.class_names[c]: float(iou)
            for c, iou in zip(place.scored, scores.per_class, strict=True)
        },
        "rows": {
            "class": found.state.class_id.tolist(),
            "intersection": found.state.intersection[:, 1].tolist(),
            "union": found.state.union[:, 1].tolist(),
        },
    }


def resampled(found: dict[str, Any], *, resamples: int = 1000) -> np.ndarray:
    """mIoU of bootstrap resamples; the same draws for results on the same episodes."""
    rows = {name: np.asarray(values) for name, values in found["rows"].items()}
    classes = np.unique(rows["class"])
    total = np.zeros(resamples)
    for class_id in classes:
        own = np.flatnonzero(rows["class"] == class_id)
        random = np.random.default_rng((0, int(class_id)))
        drawn = own[random.integers(len(own), size=(resamples, len(own)))]
        inside = rows["intersection"][drawn].sum(axis=1)
        total += 100 * inside / np.maximum(rows["union"][drawn].sum(axis=1), 1)
    return total / len(classes)


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Lines of the table: mean over the runs of each row, differences to the first."""
    mean = lambda name, key: np.mean([r[key] for r in results[name]])  # noqa: E731
    draws = {
        name: np.mean([resampled(r) for r in found], axis=0)
        for name, found in results.items()
    }
    interval = lambda x: "({:.1f} to {:.1f})".format(  # noqa: E731
        *np.percentile(x, (2.5, 97.5))
    )
    first = next(iter(results))
    lines = [
        f"| row | mIoU (95 %) | difference to {first!r} | by fold and seed |",
        "|---|---|---|---|",
        f"| everything foreground | {mean(first, 'everything'):.1f} | | |",
        f"| training-free prior, best threshold | {mean(first, 'prior'):.1f} | | "
        + " ".join(f"{r['prior']:.1f}" for r in results[first])
        + " |",
    ]
    for name, found in results.items():
        change = ""
        if name != first:
            apart = draws[name] - draws[first]
            change = f"{mean(name, 'miou') - mean(first, 'miou'):+.1f} "
            change += interval(apart)
        each = " ".join(f"{r['miou']:.1f}" for r in found)
        lines.append(
            f"| {name} | {mean(name, 'miou'):.1f} {interval(draws[name])} | "
            f"{change} | {each} |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="configs/NAME.py[:FOLD]")
    parser.add_argument("--on", choices=["novel", "seen", "base"], default="novel")
    parser.add_argument("--folds", default="", help="0,1; default: the config's FOLD")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--rows", default="", help="names of ROWS, by ;; default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--cue", default="mask")
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--drawn", type=int, default=0, help="0 = as many as --shots")
    parser.add_argument("--kept", type=int, default=6000)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--score", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--swap", default="", metavar="NAME=WEIGHTS")
    options = parser.parse_args()
    _, _, fold = options.config.partition(":")
    folds = [int(x) for x in (options.folds or fold or "0").split(",")]
    seeds = [int(x) for x in options.seeds.split(",")]
    names = [x.strip() for x in options.rows.split(";") if x.strip()] or list(ROWS)
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise SystemExit(f"unknown rows {unknown}; known: {list(ROWS)}")
    common, options.score = map(trials.changes_of, (options.set, options.score))
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list] = {}
    for name in names:
        results[name] = []
        for fold in folds:
            for seed in seeds:
                found = result(options, {**common, **ROWS[name]}, fold, seed)
                results[name].append(found)
                low, high = found["interval"]
                print(
                    f"{name}, fold {fold}, seed {seed}: {found['miou']:.1f} "
                    f"({low:.1f}-{high:.1f}), prior {found['prior']:.1f}, list "
                    f"{found['sha']}",
                    flush=True,
                )
    print(
        f"\n{options.config}, on {options.on}, folds {folds}, seeds {seeds}, "
        f"{options.cue}, {options.shots}-shot, {options.episodes} episodes each; "
        f"{jax.devices()[0].device_kind}; {options.swap}\n{table(results)}"
    )


if __name__ == "__main__":
    main()
