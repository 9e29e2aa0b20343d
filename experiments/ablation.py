"""Which part earns its place: one table of decoders that differ by a part.

    python -m experiments.ablation --config configs/garments.py --on novel \
        --folds 0,1 --seeds 0,1 --out runs/ablation [--rows "one forward;full"] \
        [--episodes 400] [--kept 6000] [--set train.steps=1000] [--score KEY=VALUE]

Every row trains (or takes from --out what an earlier row or call trained with the same
settings) a decoder per fold and seed, scores 1-shot masks of the clean protocol, and
prints mIoU of the mean over folds and seeds, its 95 % interval over episodes, and the
difference to the first row with the interval of paired episodes. `--on base` is for
choosing: classes left out of the training, on held-out training images; `--on seen`
scores the decoders of `--on novel` on the classes that trained them (splits.py).
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
import functools
import json
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np

from diffup_jax import config as configs
from diffup_jax import methods, multi_backbone, sections, training_data
from diffup_jax.files import write_whole
from diffup_jax.sections import Role
from experiments import decoders, overrides, splits

# The paper's: a mask drawn from noise. Further steps and samples are rows below.
_FULL = {
    "diffup.process.diffusion": True,
    "diffup.sampler.steps": 2,
    "diffup.sampler.samples": 4,
}
# Diffusion as usual, then one cure after the other: a row has all of those above it.
_PLAIN = {
    "diffup.process.diffusion": True,
    "diffup.losses.first_step": 0.0,
    "diffup.losses.time_bias": 1.0,
    "diffup.losses.from_own": 0.0,
    "diffup.losses.from_prior": 0.0,
    "diffup.losses.self_conditioning": 0.0,
    "diffup.decoder.dqm": False,
    "diffup.sampler.steps": 4,
    "diffup.sampler.samples": 1,
    "diffup.sampler.eta": 0.0,
}


def _without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    """The row with these settings left as the config has them."""
    return {key: value for key, value in row.items() if key not in names}


def _drawn(steps: int, samples: int) -> dict[str, Any]:
    return {"diffup.sampler.steps": steps, "diffup.sampler.samples": samples}


_BIASED = _without(_PLAIN, "diffup.losses.time_bias")
_STATES = _without(_BIASED, "diffup.losses.from_own", "diffup.losses.from_prior")
_FRESH = {**_STATES, "diffup.sampler.eta": 1.0}
_STARTED = _without(_FRESH, "diffup.losses.first_step")

# What both models have, and a row takes from one.
_PARTS: dict[str, dict[str, Any]] = {
    "without SCM": {"diffup.decoder.scm": False},
    "without the image": {"diffup.decoder.query_rgb": False},
    "all priors weigh the same": {"prior.fusion_temperature": 1e6},
    "cut at 1/2": {"diffup.sampler.threshold": "half"},
    "decoder B": {"diffup.decoder.size": "B"},
    "decoder L": {"diffup.decoder.size": "L"},
}

# Steps and samples that "full" is drawn with too.
_SAMPLERS = {
    "1 step, 1 sample": (1, 1),
    "2 steps, 1 sample": (2, 1),
    "4 steps, 1 sample": (4, 1),
    "4 steps, 4 samples": (4, 4),
    "10 steps, 1 sample": (10, 1),
}

# Name -> settings that differ from the config. Rows that differ in
# `diffup.sampler` only share a decoder.
ROWS: dict[str, dict[str, Any]] = {
    "one forward": {},
    **{f"one forward, {name}": part for name, part in _PARTS.items()},
    "plain diffusion, 4 steps": _PLAIN,
    "plain diffusion, 1 step": {**_PLAIN, "diffup.sampler.steps": 1},
    "+ t biased to noise": _BIASED,
    "+ x_t from own answer and prior": _STATES,
    "+ eta = 1": _FRESH,
    "+ the first step trained too": _STARTED,
    "+ self-conditioning": _without(_STARTED, "diffup.losses.self_conditioning"),
    "full": _FULL,
    "full, 1 step, 1 sample": {
        **_FULL,
        "diffup.sampler.steps": 1,
        "diffup.sampler.samples": 1,
    },
    "full, 2 steps, 1 sample": {**_FULL, "diffup.sampler.samples": 1},
    "full, 4 steps, 1 sample": {
        **_FULL,
        "diffup.sampler.steps": 4,
        "diffup.sampler.samples": 1,
    },
    "full, 4 steps, 4 samples": {**_FULL, "diffup.sampler.steps": 4},
    "full, 10 steps, 1 sample": {
        **_FULL,
        "diffup.sampler.steps": 10,
        "diffup.sampler.samples": 1,
    },
    "full, warm start": {**_FULL, "diffup.sampler.warm_start": True},
    "full, the first step not trained": {**_FULL, "diffup.losses.first_step": 0.0},
    "full, without DQM": {**_FULL, "diffup.decoder.dqm": False},
    "full, without self-conditioning": {
        **_FULL,
        "diffup.losses.self_conditioning": 0.0,
    },
    "full, conditional forward": {**_FULL, "diffup.process.condition_strength": 1.0},
    **{f"full, {name}": {**_FULL, **part} for name, part in _PARTS.items()},
}


def result(options: argparse.Namespace, changes: dict[str, Any], fold: int, seed: int):
    """Scores of one decoder on one fold, from its JSON where there is one."""
    read = functools.partial(overrides.config_of, options.config, fold=fold, seed=seed)
    settings = configs.from_config(read(changes))
    asking = configs.from_config(read({**changes, **options.score}))
    trained = "novel" if options.on == "seen" else options.on
    learnt = {
        **sections.fields_with(settings, Role.RUN),
        # What a run's digest and its own folder vouch for.
        "backbone.weights": settings.backbone.weights,
        "data.root": settings.data.root,
        "on": trained,
        "kept": options.kept,
        "version": methods.get(settings.method).version,
    }
    every = sections.flat(sections.plain(asking))
    free = {key: every[key] for key in every.keys() - learnt.keys()}
    asked = {
        **{key: free[key] for key in sorted(free) if key.startswith("diffup.")},
        **{name: getattr(options, name) for name in ("on", "cue", "shots", "drawn")},
        **{name: getattr(options, name) for name in ("swap", "score", "episodes")},
        "eval.seed": asking.eval.seed,
    }
    name = f"{trained}-{fold}-{seed}-{decoders.key_of(learnt)}"
    file = options.out / f"{name}-{decoders.key_of(asked)}.json"
    if not file.exists():
        decoder = options.out / "decoders" / f"{name}.npz"
        found = _scored(options, asking, _decoder(options, settings, decoder))
        write_whole(file, json.dumps({**found, "asked": asked, "learnt": learnt}))
    return json.loads(file.read_text())


def _decoder(options, settings, file: Path) -> dict[str, Any]:
    """What `settings` train, read from `file` where they did before."""
    rows = ()
    if not file.exists():
        split = splits.open_split(settings, options.on, shots=1, count=options.episodes)
        rows = decoders.train_rows(
            settings, split, count=options.kept, folder=options.out / "cache"
        )
    return decoders.trained(settings, rows, file=file)


def _scored(options, asking, params: dict[str, Any]) -> dict[str, Any]:
    """The decoder on the episodes that `asking` names."""
    shots = options.drawn or options.shots
    split = splits.open_split(asking, options.on, shots=shots, count=options.episodes)
    split = splits.first_shots(split, options.shots)
    if options.swap:
        network, _, weights = options.swap.partition("=")
        other = configs.BackboneSettings(name=network, weights=weights)
        asking = msgspec.structs.replace(asking, backbone=other)
    method, backbone = configs.open_method(asking)
    texts = training_data.class_texts(method, split.test, [options.cue])
    turn = multi_backbone.Turn("", asking, backbone, method, texts)
    tested = decoders.test_cache(
        asking, split, turn, cue=options.cue, folder=options.out / "cache"
    )
    found = decoders.scored(asking, split, method, params, tested)
    scores = found.scores
    return {
        "miou": scores.miou,
        "interval": list(found.interval),
        "prior": scores.prior_miou,
        "fb_iou": scores.fb_iou,
        "everything": scores.everything_foreground,
        "auroc": scores.auroc,
        "ece": scores.ece,
        "ece_foreground": scores.ece_foreground,
        "sha": split.sha,
        "classes": {
            split.test.class_names[c]: float(iou)
            for c, iou in zip(split.scored, scores.per_class, strict=True)
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
    common, options.score = map(overrides.changes_of, (options.set, options.score))
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
