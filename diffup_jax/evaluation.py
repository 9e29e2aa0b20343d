"""F5: the evaluation loop and its report.

    batches --predict--> probability and maps --score--> counts --update--> state
    state --compute--> scores --row--> results.json and the printed table

Batches are `EvaluationBatch`es in the order of the evaluation list; they say which
places of it they hold. `predict(keys, episode)`, with one key per episode, answers
(prob [b n h w] in [0, 1], maps) at the network's size, maps holding "prior_mean",
"prior_variance" and "uncertainty" of the same shape. The evaluator knows no method.

Pixels are counted there, on the device; or, where a batch carries truths at their
query's own size, on the host after every map was brought to that size.

The results file holds what was measured and under which setting, and no time, so that
running the same evaluation twice writes the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from tqdm import tqdm

from diffup_jax import metrics
from diffup_jax.data import frames
from diffup_jax.data.batches import EvaluationBatch
from diffup_jax.types import DiffUpError, Episode

MAPS = ("prior_mean", "prior_variance", "uncertainty")

# The keys of a row of the results file, in their order.
ROW_KEYS = (
    *("dataset", "fold", "protocol", "image_size", "backbone", "weights_digest"),
    *("cue", "shots", "ways", "episodes", "episodes_sha", "seed", "steps", "samples"),
    *("miou", "miou_ci95", "fb_iou", "prior_miou", "prior_threshold", "per_class"),
    *("everything_foreground", "auroc_variance", "auroc_uncertainty"),
    *("absent_classes", "skipped", "weights"),
)

Predict = Callable[[Array, Episode], tuple[Array, dict[str, Array]]]


class Evaluation(NamedTuple):
    """A finished run: `interval` is the mIoU's 95 % bootstrap interval in percent.

    `ious` [e]: each episode's foreground IoU in percent, in the order of the list, NaN
    where nothing was to be found, and `places` where in the list they stand.
    `empty` queries were left out as the protocol asks, `damaged` episodes as
    config.data.on_error does. `seconds` is the duration of the whole loop, its
    compilation included.
    """

    state: metrics.State
    scores: metrics.Scores
    interval: tuple[float, float]
    ious: Float[np.ndarray, " e"]
    places: Int[np.ndarray, " e"]
    empty: int
    damaged: tuple[str, ...]
    seconds: float


class Setting(NamedTuple):
    """Under what a number was measured; without all of it a number says nothing.

    `weights_digest` identifies the backbone's weights, `episodes_sha` the evaluation
    list, `steps` and `samples` the sampler, `weights` the decoder (its checkpoint).
    """

    dataset: str
    fold: int
    protocol: str
    image_size: int
    backbone: str
    weights_digest: str
    cue: str
    shots: int
    ways: int
    episodes_sha: str
    seed: int
    steps: int
    samples: int
    weights: str


def predictions(
    predict: Predict, key: Array, batches: Iterable[EvaluationBatch]
) -> Iterator[tuple[EvaluationBatch, Episode, Array, dict[str, Array]]]:
    """Yield (batch, its episode on the device, prob, maps) of each batch with episodes.

    The key is folded with an episode's place in its list, so its noise depends neither
    on its batch nor on the others. Nothing waits for the device: a caller that reads
    one batch late keeps it busy. Raises DiffUpError where `predict` breaks the contract
    above.
    """
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    for batch in batches:
        if not len(batch.places):
            continue
        rows = len(batch.episode.query)
        places = np.resize(batch.places.astype(np.uint32), rows)
        episode = jax.device_put(batch.episode)
        prob, maps = predict(fold(key, places), episode)
        expected = episode.query_mask.shape
        for name in MAPS:
            if name not in maps:
                raise DiffUpError(
                    f"the method's maps are {sorted(maps)}; expected {name!r} among "
                    "them: add it to what predict returns"
                )
        for name, values in (("prob", prob), *((name, maps[name]) for name in MAPS)):
            if values.shape != expected:
                raise DiffUpError(
                    f"predict returned {name} of shape {values.shape}, expected "
                    f"{expected} [b n h w]: resize it to the query's size"
                )
        yield batch, episode, prob, maps


def evaluate(
    predict: Predict,
    key: Array,
    batches: Iterable[EvaluationBatch],
    *,
    classes: Sequence[int],
    episodes: int,
    frame: str,
    seed: int,
    resamples: int,
) -> Evaluation:
    """Score `episodes` episodes of the fold's `classes`, with a progress bar.

    `frame` is that of the protocol (see frames.py); `seed` and `resamples` are those of
    the bootstrap interval. Raises DiffUpError when the batches hold another number of
    episodes or nothing to score, and for whatever `metrics.update` and `predictions`
    refuse.
    """
    state = metrics.zero(classes)
    read: list[EvaluationBatch] = []
    with tqdm(total=episodes, unit="episode", desc="evaluate") as bar:

        def told(batches):
            for batch in batches:
                # The images are done with then; the bookkeeping is small.
                read.append(batch._replace(episode=None, truths=()))
                bar.update(batch.empty + len(batch.damaged))
                yield batch

        answers = predictions(predict, key, told(batches))
        for batch, counts in _one_late(_counted(answers)):
            count = len(batch.places)
            state = metrics.update(
                state,
                _on_host(batch, *counts, frame) if batch.truths else counts,
                numbers=batch.places.tolist(),
                class_id=batch.episode.class_id[:count],
            )
            bar.update(count)
        seconds = bar.format_dict["elapsed"]
    places = np.sort(np.concatenate([[], *(b.places for b in read)]).astype(np.int64))
    empty = sum(batch.empty for batch in read)
    damaged = tuple(message for batch in read for message in batch.damaged)
    if len(places) + empty + len(damaged) != episodes or not len(places):
        raise DiffUpError(
            f"{len(places)} episodes were scored, {empty} empty and {len(damaged)} "
            f"damaged ones left out, expected {episodes} and at least 1 scored: the "
            "batches do not belong to this evaluation list, or its data are unusable"
        )
    return Evaluation(
        state=state,
        scores=metrics.compute(state),
        interval=metrics.bootstrap_interval(state, seed=seed, resamples=resamples),
        ious=metrics.episode_ious(state),
        places=places,
        empty=empty,
        damaged=damaged,
        seconds=seconds,
    )


def gallery_choice(
    ious: Float[np.ndarray, " e"], count: int
) -> Int[np.ndarray, " chosen"]:
    """Distinct indices of `count` episodes to look at, from the best to the worst.

    A third the best, a third the worst, the rest evenly spaced between; fewer when
    there are fewer. Episodes with NaN (an empty mask) are never chosen: their IoU of 0
    says nothing about the method.
    """
    ranked = np.argsort(-ious, kind="stable")
    ranked = ranked[: np.count_nonzero(~np.isnan(ious))]
    if len(ranked) <= count:
        return ranked
    end = count // 3
    rest = count - 2 * end
    between = ranked[end : len(ranked) - end]
    # The centre of each of `rest` equal stretches.
    spaced = between[(2 * np.arange(rest) + 1) * len(between) // (2 * rest)]
    return np.concatenate([ranked[:end], spaced, ranked[len(ranked) - end :]])


def row(
    result: Evaluation, setting: Setting, *, names: Mapping[int, str]
) -> dict[str, Any]:
    """One row of the results file: the setting, the scores, and every class by name.

    `names`: class index -> name, for every class of the fold. IoU in percent, null
    where a score does not exist.
    """
    scores = result.scores
    per_class = [
        {
            "class_id": int(class_id),
            "name": names[int(class_id)],
            "iou": float(iou),
            "episodes": int(episodes),
        }
        for class_id, iou, episodes in zip(
            result.state.classes, scores.per_class, scores.episodes, strict=True
        )
    ]
    facts = {
        **setting._asdict(),
        "episodes": len(result.ious),
        "miou": scores.miou,
        "miou_ci95": list(result.interval),
        "fb_iou": scores.fb_iou,
        "prior_miou": scores.prior_miou,
        "prior_threshold": scores.prior_threshold,
        "per_class": per_class,
        "everything_foreground": scores.everything_foreground,
        "auroc_variance": scores.auroc_variance,
        "auroc_uncertainty": scores.auroc_uncertainty,
        "absent_classes": [names[class_id] for class_id in scores.absent],
        "skipped": {"empty": result.empty, "damaged": len(result.damaged)},
    }
    return {name: facts[name] for name in ROW_KEYS}


def write_results(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write {"rows": [...]} as JSON, whole or not at all; the folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"rows": list(rows)}, indent=2, allow_nan=False)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print one table per setting, cue by shots, with the setting as its caption.

    Rows measured under different settings never share a table. "prior" is the prior
    mean alone at the threshold that suits these very episodes best.
    """
    console = Console()
    varying = ("cue", "shots", "episodes", "episodes_sha")
    shared = [name for name in Setting._fields if name not in varying]
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for each in rows:
        groups.setdefault(tuple(each[name] for name in shared), []).append(each)
    for setting, members in groups.items():
        facts = dict(zip(shared, setting, strict=True))
        lines = [_caption(facts)]
        absent = sorted({name for each in members for name in each["absent_classes"]})
        if absent:
            lines.append(f"classes without an episode count as 0: {', '.join(absent)}")
        for name, why in (("empty", "empty queries"), ("damaged", "damaged episodes")):
            most = max(each["skipped"][name] for each in members)
            if most:
                lines.append(f"{why} left out: {most}")
        table = Table(
            caption=escape("\n".join(lines)),
            caption_justify="left",
            box=None,
            header_style="bold underline",
            padding=(0, 1, 0, 0),
        )
        for name in ("cue", "shots", "prior", "mIoU", "FB-IoU", "episodes", "list"):
            right = name not in ("cue", "list")
            table.add_column(name, justify="right" if right else "left", no_wrap=True)
        for each in members:
            low, high = each["miou_ci95"]
            table.add_row(
                escape(each["cue"]),
                str(each["shots"]),
                f"{each['prior_miou']:.1f} @ {each['prior_threshold']:.2f}",
                f"[bold]{each['miou']:.1f}[/] ({low:.1f}-{high:.1f})",
                f"{each['fb_iou']:.1f}",
                str(each["episodes"]),
                each["episodes_sha"],
            )
        # Numbers are never cut short: a narrower terminal wraps the lines itself.
        needed = Measurement.get(console, console.options.update(width=999), table)
        console.width = max(console.width, needed.maximum)
        console.print(table, end="\n\n")


def _counted(
    answers: Iterable[tuple[EvaluationBatch, Episode, Array, dict[str, Array]]],
) -> Iterator[tuple[EvaluationBatch, Any]]:
    """(batch, counts); for truths at their own size (batch, (prob, maps)) as they are.

    Reading them here would wait for the device.
    """
    for batch, episode, prob, maps in answers:
        maps = {name: maps[name] for name in MAPS}
        own_size = bool(batch.truths)
        yield batch, (prob, maps) if own_size else metrics.score(prob, maps, episode)


def _on_host(batch: EvaluationBatch, prob, maps, frame: str) -> metrics.Counts:
    """Counts of the real episodes, each at its query's own size."""
    prob = np.asarray(prob, np.float32)
    maps = {name: np.asarray(values, np.float32) for name, values in maps.items()}
    counts = []
    for row, truth in enumerate(batch.truths):

        def own(values, row=row, shape=truth.valid.shape):
            return np.stack([frames.leave(v, shape, frame=frame) for v in values[row]])

        mine = {name: own(values) for name, values in maps.items()}
        counts.append(metrics.score_on_host(own(prob), mine, *truth))
    return metrics.Counts(*(np.concatenate(p) for p in zip(*counts, strict=True)))


def _one_late(items: Iterable[Any]) -> Iterator[Any]:
    # Read the previous batch's counts while the device works on this one.
    waiting = []
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


def _caption(facts: Mapping[str, Any]) -> str:
    return (
        f"{facts['dataset']} fold {facts['fold']}, protocol {facts['protocol']}, "
        f"{facts['image_size']} px, {facts['ways']}-way; {facts['backbone']} "
        f"(weights {facts['weights_digest']}); decoder {facts['weights']}, "
        f"{facts['steps']} steps, {facts['samples']} samples, seed {facts['seed']}; "
        "interval: 95 % bootstrap"
    )
