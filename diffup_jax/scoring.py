"""F5: scores a trained run, or the training-free method, on novel classes.

For every cue and number of shots: the frozen list of episodes, the evaluation, a row of
the results; at the end the table, results.json and gallery.html. Evaluating with
another backbone than the one trained with needs only another `config.backbone`.

Text alone is scored once, with 0 shots, whatever shots are asked; every other cue with
each number of shots from 1.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import jax

from diffup_jax import checkpoint, evaluation, evaluation_data, report, visualize
from diffup_jax import settings as setup
from diffup_jax.backbones import Backbone
from diffup_jax.data import cues, lists
from diffup_jax.data.benchmarks import BENCHMARKS
from diffup_jax.methods import Method
from diffup_jax.settings import Settings
from diffup_jax.types import DiffUpError

_RESAMPLES = 1000  # of the bootstrap interval


def score_run(config: Any, *, workdir: str | None, output: str) -> list[dict[str, Any]]:
    """Evaluates, prints the table and writes `output`, its lists and its gallery.

    Args:
      config: as for training; sections eval, sampler, backbone and data.test_* act.
      workdir: folder of the trained run; None for the training-free method.
      output: results.json; `episodes/` and `gallery.html` are written beside it.

    Returns:
      The rows of results.json.

    Raises:
      DiffUpError: for a config, data, weights or checkpoint that cannot be used.
    """
    settings = setup.from_config(config)
    asked = settings.eval.cues
    setup.require_text(settings, asked)
    plan = _plan(settings)
    tests = [evaluation_data.open_test(settings, shots=shots) for shots in plan]
    backbone = setup.make_backbone(settings)
    # Every list is of the same source, so of the same classes.
    text = setup.make_text(
        settings, backbone, tests[0].source.class_names, cues_asked=asked
    )
    if text is not None:
        print(f"text: {text.told(settings.text.templates)}", flush=True)
    method = setup.make_method(settings, backbone, text=text)
    params, decoder = load(settings, method, backbone, workdir)
    predict = jax.jit(method.predict)
    answer = lambda keys, episode: predict(params, keys, episode)  # noqa: E731
    folder = Path(output).parent
    rows, shown = [], None
    for test in tests:
        if not settings.eval.episodes_file:
            path = folder / "episodes" / test.file_name
            lists.write_draws(path, test.draws, test.facts)
        for cue in plan[test.shots]:
            print(f"{cue}, {test.shots}-shot, sha={test.sha}", flush=True)
            batches = evaluation_data.batches(
                settings, test, range(len(test.draws)), cue
            )
            with contextlib.closing(batches):
                result = evaluation.evaluate(
                    answer,
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
            setting = _setting(settings, test, backbone, cue, decoder)
            names = {c: test.source.class_names[c] for c in test.classes}
            rows.append(report.row(result, setting, names=names))
            shown = shown or (test, cue, result)
            # Each row is safe as soon as it is there.
            report.write_results(Path(output), rows)
    report.print_table(rows)
    print(f"results: {output}")
    if settings.eval.gallery:
        path = folder / "gallery.html"
        _gallery(path, settings, answer, *shown, row=rows[0], text=text)
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
    settings: Settings, method: Method, backbone: Backbone, workdir: str | None
) -> tuple[dict[str, Any], str]:
    """Parameters with the averaged decoder of the newest checkpoint, and its name.

    Raises:
      DiffUpError: if a checkpoint is needed and there is none, it holds another
        decoder than the config, or was trained on classes that are novel here.
    """
    example = setup.example_episode(settings)
    if not method.trainable:
        return {"backbone": backbone.params}, "none (training-free)"
    step = checkpoint.latest_step(workdir) if workdir else None
    if step is None:
        raise DiffUpError(
            f"no checkpoint in {workdir!r}; expected a folder that train.py wrote with "
            "--workdir. Train first, or score the training-free prior with "
            "--config.method=prior."
        )
    _check_fits(settings, checkpoint.saved_config(workdir, step), workdir)
    # Shapes only: the checkpoint holds the values.
    shapes = jax.eval_shape(method.init, jax.random.key(0), example)
    template = {"average": {name: shapes[name] for name in method.trainable}}
    average = checkpoint.restore_part(workdir, step, template=template)["average"]
    return {"backbone": backbone.params, **average}, f"{Path(workdir).name} step {step}"


def _check_fits(settings: Settings, saved: dict[str, Any], workdir: str) -> None:
    """A decoder is used as it was trained, and never on classes it has seen."""
    now = setup.plain(settings)
    keys = [(part, key) for part in ("decoder", "process") for key in now[part]]
    data, then = settings.data, saved["data"]
    same = not data.test_root and data.root == then["root"]
    # Its folds are those of the other data, so a network trained there has them too.
    across = BENCHMARKS[data.source].folds_of == then["source"]
    if same or across:
        keys.append(("data", "fold"))
    changed = [
        f"config.{part}.{key}: was {saved[part].get(key)!r}, now {now[part][key]!r}"
        for part, key in keys
        if saved[part].get(key) != now[part][key]
    ]
    most, shots = saved["train"]["max_shots"], now["eval"]["shots"]
    drawn = {each for each in shots if each} or {1}
    if "shots" in BENCHMARKS[data.source].options and {most} != drawn:
        changed.append(
            f"config.eval.shots: the folds of {data.source} depend on the shots; "
            f"trained with {most}, now {shots}"
        )
    if changed:
        raise DiffUpError(
            f"the decoder in {workdir!r} was trained with another config:\n  "
            + "\n  ".join(changed)
            + "\nScore it with these values of its own, or choose another --workdir."
        )


def _setting(
    settings: Settings,
    test: evaluation_data.Test,
    backbone: Backbone,
    cue: str,
    decoder: str,
) -> report.Setting:
    untrained = "random " if backbone.weights == "random" else ""
    free = settings.method == "prior"
    drawn = "diffusion" if settings.process.diffusion else "one forward"
    return report.Setting(
        dataset=test.source.name,
        fold=settings.data.fold,
        protocol=test.protocol.name,
        image_size=settings.data.image_size,
        backbone=backbone.name,
        weights_digest=untrained + backbone.digest,
        cue=cue,
        convention=setup.conventions(settings).told(cues.mixture(cue)),
        shots=test.shots,
        ways=settings.eval.ways,
        episodes_sha=test.sha,
        seed=settings.eval.seed,
        method="prior" if free else drawn,
        steps=0 if free else settings.sampler.steps,
        samples=0 if free else settings.sampler.samples,
        threshold="otsu" if free else settings.sampler.threshold,
        weights=decoder,
    )


def _gallery(
    path, settings, answer, test: evaluation_data.Test, cue, result, *, row, text
) -> None:
    """Runs the chosen episodes once more, each with its own noise, and shows them."""
    chosen = evaluation.gallery_choice(result.ious, settings.eval.gallery)
    items = []
    batches = evaluation.predictions(
        answer,
        jax.random.key(settings.eval.seed),
        evaluation_data.batches(settings, test, result.places[chosen].tolist(), cue),
    )
    names = dict(enumerate(test.source.class_names))
    for batch, episode, prob, maps in batches:
        items += visualize.gallery_items(
            episode, len(batch.places), prob=prob, maps=maps, names=names
        )
    facts = {
        "data": f"{row['dataset']} fold {row['fold']}, protocol {row['protocol']}",
        "backbone": f"{row['backbone']} ({row['weights_digest']})",
        "decoder": row["weights"],
        "cue": f"{row['cue']}, {row['shots']}-shot, {row['ways']}-way",
        "mIoU": f"{row['miou']:.1f} over {row['episodes']} episodes",
        "prior at best threshold": f"{row['prior_miou']:.1f}",
        "masks": report.sampler(row),
    }
    if text is not None and cues.any_text([cue]):
        facts["text"] = text.told(settings.text.templates)
    visualize.write_gallery(path, items, title="Novel classes", facts=facts)
