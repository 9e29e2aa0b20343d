"""F5: scores a trained run, or the training-free method, on novel classes.

For every cue and number of shots: the frozen list of episodes, the evaluation, a row of
the results; at the end the table, results.json and gallery.html. Evaluating with
another backbone than the one trained with needs only another `config.backbone`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from diffup_jax import checkpoint, evaluation, visualize
from diffup_jax import settings as setup
from diffup_jax.backbones import Backbone
from diffup_jax.data import episodes, pipeline, sources
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
    source = setup.open_split(settings, "test")
    classes = sources.fold_classes(source, settings.data.fold, role="novel")
    if settings.data.skip_small_classes:
        most = max(settings.eval.shots)
        classes = sources.classes_with_images(source, classes, shots=most)
    lists = {
        shots: draw_list(settings, source, classes, shots=shots)
        for shots in settings.eval.shots
    }
    backbone = setup.make_backbone(settings)
    method = setup.make_method(settings, backbone)
    params, decoder = load(settings, method, backbone, workdir)
    predict = jax.jit(method.predict)
    answer = lambda keys, episode: predict(params, keys, episode)  # noqa: E731
    folder = Path(output).parent
    rows, shown = [], None
    for shots, draws in lists.items():
        name = f"{source.name}_fold{settings.data.fold}_{settings.eval.protocol}"
        meta = {
            "benchmark": source.name,
            "fold": settings.data.fold,
            "protocol": settings.eval.protocol,
            # The hsnet stream has one seed, whatever the sampler is given.
            "seed": 0 if settings.eval.protocol == "hsnet" else settings.eval.seed,
            "shots": shots,
        }
        path = folder / "episodes" / f"{name}_{shots}shot.jsonl"
        episodes.write_draws(path, draws, meta)
        for cue in settings.eval.cues:
            print(f"{cue}, {shots}-shot", flush=True)
            result = evaluation.evaluate(
                answer,
                jax.random.key(settings.eval.seed),
                _batches(settings, source, draws, cue),
                classes=classes,
                episodes=len(draws),
                seed=settings.eval.seed,
                resamples=_RESAMPLES,
            )
            setting = _setting(settings, source, backbone, cue, shots, draws, decoder)
            names = {c: source.class_names[c] for c in classes}
            rows.append(evaluation.row(result, setting, names=names))
            shown = shown or (draws, cue, result)
            # Each row is safe as soon as it is there.
            evaluation.write_results(Path(output), rows)
    evaluation.print_table(rows)
    print(f"results: {output}")
    if settings.eval.gallery:
        path = folder / "gallery.html"
        _gallery(path, settings, source, answer, *shown, row=rows[0])
        print(f"gallery: {path}")
    return rows


def draw_list(
    settings: Settings, source: sources.Source, classes: tuple[int, ...], *, shots: int
) -> tuple[episodes.Draw, ...]:
    """The evaluation list of the run's protocol.

    Raises:
      DiffUpError: if a class has too few images for the shots asked.
    """
    options = settings.eval
    if options.protocol == "hsnet":
        return episodes.hsnet_draws(
            source, classes, shots=shots, count=options.episodes
        )
    return episodes.clean_draws(
        source, classes, shots=shots, count=options.episodes, seed=options.seed
    )


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
    if not settings.data.test_root and settings.data.root == saved["data"]["root"]:
        keys.append(("data", "fold"))
    changed = [
        f"config.{part}.{key}: was {saved[part].get(key)!r}, now {now[part][key]!r}"
        for part, key in keys
        if saved[part].get(key) != now[part][key]
    ]
    if changed:
        raise DiffUpError(
            f"the decoder in {workdir!r} was trained with another config:\n  "
            + "\n  ".join(changed)
            + "\nScore it with these values of its own, or choose another --workdir."
        )


def _batches(settings: Settings, source, draws, cue: str):
    return pipeline.evaluation_batches(
        source,
        draws,
        cue=cue,
        image_size=settings.data.image_size,
        batch_size=settings.eval.batch_size,
        seed=settings.eval.seed,
        workers=settings.data.workers,
    )


def _setting(
    settings: Settings, source, backbone: Backbone, cue, shots, draws, decoder
) -> evaluation.Setting:
    untrained = "random " if backbone.weights == "random" else ""
    free = settings.method == "prior"
    return evaluation.Setting(
        dataset=source.name,
        fold=settings.data.fold,
        protocol=settings.eval.protocol,
        image_size=settings.data.image_size,
        backbone=backbone.name,
        weights_digest=untrained + backbone.digest,
        cue=cue,
        shots=shots,
        ways=1,
        episodes_sha=episodes.draws_sha(draws),
        seed=settings.eval.seed,
        steps=0 if free else settings.sampler.steps,
        samples=0 if free else settings.sampler.samples,
        weights=decoder,
    )


def _gallery(path, settings, source, answer, draws, cue, result, *, row) -> None:
    """Runs the chosen episodes once more, each with its own noise, and shows them."""
    chosen = evaluation.gallery_choice(result.ious, settings.eval.gallery).tolist()
    picked = [draws[i] for i in chosen]
    items = []
    batches = evaluation.predictions(
        answer,
        jax.random.key(settings.eval.seed),
        _batches(settings, source, picked, cue),
        numbers=chosen,
    )
    names = dict(enumerate(source.class_names))
    for episode, count, prob, maps in batches:
        items += visualize.gallery_items(
            episode, count, prob=prob, maps=maps, names=names
        )
    facts = {
        "data": f"{row['dataset']} fold {row['fold']}, protocol {row['protocol']}",
        "backbone": f"{row['backbone']} ({row['weights_digest']})",
        "decoder": row["weights"],
        "cue": f"{row['cue']}, {row['shots']}-shot",
        "mIoU": f"{row['miou']:.1f} over {row['episodes']} episodes",
        "prior at best threshold": f"{row['prior_miou']:.1f}",
        "sampler": f"{row['steps']} steps, {row['samples']} samples",
    }
    visualize.write_gallery(path, items, title="Novel classes", facts=facts)
