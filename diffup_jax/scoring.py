"""F8: scores a trained run, or the training-free method, on novel classes.

For every cue and number of shots: the frozen list of episodes, the evaluation, a row of
the results; at the end the table, results.json and gallery.html. Evaluating with
another backbone than the one trained with needs only another `config.backbone`.

Text alone is scored once, with 0 shots, whatever shots are asked; every other cue with
each number of shots from 1.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any

import jax

from diffup_jax import (
    checkpoint,
    evaluation,
    evaluation_data,
    gallery,
    methods,
    report,
    sections,
    training_data,
)
from diffup_jax import config as configs
from diffup_jax.backbones import Backbone
from diffup_jax.config import Settings
from diffup_jax.data import cues, lists
from diffup_jax.data.batches import Texts
from diffup_jax.data.benchmarks import BENCHMARKS
from diffup_jax.methods import Method
from diffup_jax.types import DiffUpError

_RESAMPLES = 1000  # of the bootstrap interval


def score_run(config: Any, *, workdir: str | None, output: str) -> list[dict[str, Any]]:
    """Evaluates, prints the table and writes `output`, its lists and its gallery.

    Args:
      config: as for training; what training depends on acts only where no trained part
        is bound to it (backbone, prior, data.test_*, eval and what is free to change).
      workdir: folder of the trained run; None for a training-free method.
      output: results.json; `episodes/` and `gallery.html` are written beside it.

    Returns:
      The rows of results.json.

    Raises:
      DiffUpError: for a config, data, weights or checkpoint that cannot be used.
    """
    settings = configs.from_config(config)
    asked = settings.eval.cues
    configs.require_text(settings, asked)
    plan = _plan(settings)
    tests = [evaluation_data.open_test(settings, shots=shots) for shots in plan]
    method, backbone = configs.open_method(settings)
    # Every list is of the same source, so of the same classes.
    texts = training_data.class_texts(method, tests[0].source, asked)
    if texts is not None:
        print(f"text: {method.text_in_words()}", flush=True)
    params, weights = load(settings, method, backbone, workdir)
    compiled = jax.jit(functools.partial(methods.asked, method))
    ask = lambda keys, episode: compiled(params, keys, episode)  # noqa: E731
    folder = Path(output).parent
    rows, shown = [], None
    for test in tests:
        if not settings.eval.episodes_file:
            path = folder / "episodes" / test.file_name
            lists.write_draws(path, test.draws, test.facts)
        for cue in plan[test.shots]:
            print(f"{cue}, {test.shots}-shot, sha={test.sha}", flush=True)
            places = range(len(test.draws))
            batches = evaluation_data.batches(settings, test, places, cue, texts=texts)
            with contextlib.closing(batches):
                result = evaluation.evaluate(
                    ask,
                    jax.random.key(settings.eval.seed),
                    batches,
                    classes=test.classes,
                    episodes=len(test.draws),
                    frame=test.protocol.frame,
                    seed=settings.eval.seed,
                    resamples=_RESAMPLES,
                )
            for message in result.damaged:
                print(f"left out: {message}", flush=True)
            setting = _setting(settings, test, method, backbone, cue, weights)
            names = {c: test.source.class_names[c] for c in test.classes}
            rows.append(report.row(result, setting, names=names))
            shown = shown or (test, cue, result)
            # Each row is safe as soon as it is there.
            report.write_results(Path(output), rows)
    report.print_table(rows)
    print(f"results: {output}")
    if settings.eval.gallery:
        path = folder / "gallery.html"
        _gallery(path, settings, method, ask, *shown, row=rows[0], texts=texts)
        print(f"gallery: {path}")
    return rows


def _plan(settings: Settings) -> dict[int, tuple[str, ...]]:
    """Number of shots -> the cues scored with it; text alone comes last."""
    options = settings.eval
    others = tuple(cue for cue in options.cues if cue != "text")
    plan = {shots: others for shots in options.shots if shots and others}
    if others and 0 in options.shots:
        print(f"0-shot: only text is scored, not {', '.join(others)}", flush=True)
    if "text" in options.cues:
        plan[0] = ("text",)
        if 0 not in options.shots:
            print("text alone has no shots: scored once, 0-shot", flush=True)
    return plan


def load(
    settings: Settings, method: Method, backbone: Backbone | None, workdir: str | None
) -> tuple[dict[str, Any], str]:
    """Parameters with the averaged trained parts of the newest checkpoint, and a name.

    Raises:
      DiffUpError: if a checkpoint is needed and there is none, it holds another model
        than the config, or was trained on classes that are novel here.
    """
    params = {} if backbone is None else {"backbone": backbone.params}
    if not method.trainable:
        return params, "none (training-free)"
    if not workdir:
        raise DiffUpError(
            f"method {method.name!r} is scored as it was trained: name the folder of "
            "its run with --workdir, or use the training-free method with "
            "--config.method=prior."
        )
    step = checkpoint.latest_step(workdir)
    if step is not None:
        _check_fits(settings, checkpoint.saved_run(workdir, step), workdir)
    one = training_data.example(settings)
    trained, step = checkpoint.trained_params(workdir, method, one)
    return {**params, **trained}, f"{Path(workdir).name} step {step}"


def _check_fits(settings: Settings, run: dict[str, Any], workdir: str) -> None:
    """A model is used as it was trained, and never on classes it has seen."""
    changed = configs.model_changes(settings, run["config"])
    then = sections.flat(run["config"])
    data = settings.data
    same = not data.test_root and data.root == then["data.root"]
    # Its folds are those of the other data, so a network trained there has them too.
    across = BENCHMARKS[data.source].folds_of == then["data.source"]
    if (same or across) and data.fold != then["data.fold"]:
        changed.append(
            f"config.data.fold: was {then['data.fold']!r}, now {data.fold!r}"
        )
    most, shots = then["train.max_shots"], settings.eval.shots
    drawn = {each for each in shots if each} or {1}
    if "shots" in BENCHMARKS[data.source].options and {most} != drawn:
        changed.append(
            f"config.eval.shots: the folds of {data.source} depend on the shots; "
            f"trained with {most}, now {list(shots)}"
        )
    if changed:
        raise DiffUpError(
            f"the model in {workdir!r} was trained with another config:\n  "
            + "\n  ".join(changed)
            + "\nScore it with these values of its own, or choose another --workdir."
        )


def _setting(
    settings: Settings,
    test: evaluation_data.Test,
    method: Method,
    backbone: Backbone | None,
    cue: str,
    weights: str,
) -> report.Setting:
    name = digest = ""
    if backbone is not None:
        name, digest = backbone.name, backbone.digest
        if backbone.weights == "random":
            digest = f"random {digest}"
    return report.Setting(
        dataset=test.source.name,
        fold=settings.data.fold,
        protocol=test.protocol.name,
        image_size=settings.data.image_size,
        backbone=name,
        weights_digest=digest,
        cue=cue,
        convention=settings.data.conventions.told(cues.mixture(cue)),
        shots=test.shots,
        ways=settings.eval.ways,
        episodes_sha=test.sha,
        seed=settings.eval.seed,
        method=method.name,
        settings=methods.in_words(method),
        weights=weights,
    )


def _gallery(
    path: Path,
    settings: Settings,
    method: Method,
    ask: evaluation.Ask,
    test: evaluation_data.Test,
    cue: str,
    result: evaluation.Evaluation,
    *,
    row: dict[str, Any],
    texts: Texts | None,
) -> None:
    """Runs the chosen episodes once more, each with its own noise, and shows them."""
    chosen = evaluation.gallery_choice(result.ious, settings.eval.gallery)
    items = []
    places = result.places[chosen].tolist()
    answers = evaluation.predictions(
        ask,
        jax.random.key(settings.eval.seed),
        evaluation_data.batches(settings, test, places, cue, texts=texts),
    )
    names = dict(enumerate(test.source.class_names))
    for batch, episode, prediction in answers:
        items += gallery.gallery_items(
            episode,
            batch.class_ids,
            len(batch.places),
            prediction=prediction,
            names=names,
        )
    facts = {
        "data": f"{row['dataset']} fold {row['fold']}, protocol {row['protocol']}",
        "method": report.method(row),
        "weights": row["weights"],
        "cue": f"{row['cue']}, {row['shots']}-shot, {row['ways']}-way",
        "mIoU": f"{row['miou']:.1f} over {row['episodes']} episodes",
    }
    if row["backbone"]:
        facts["backbone"] = f"{row['backbone']} ({row['weights_digest']})"
    if row["prior_miou"] is not None:
        facts["prior at best threshold"] = f"{row['prior_miou']:.1f}"
    if texts is not None and cues.any_text([cue]):
        facts["text"] = method.text_in_words()
    gallery.write_gallery(path, items, title="Novel classes", facts=facts)
