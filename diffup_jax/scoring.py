"""F5: scores a trained run, or the training-free method, on novel classes.

For every cue and number of shots: the frozen list of episodes, the evaluation, a row of
the results; at the end the table, results.json and gallery.html. Evaluating with
another backbone than the one trained with needs only another `config.backbone`.

Text alone is scored once, with 0 shots, whatever shots are asked; every other cue with
each number of shots from 1. A 0-shot list is that of the fewest shots (1 if there are
none) without its supports: both are asked the same of the same queries.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from diffup_jax import checkpoint, evaluation, report, visualize
from diffup_jax import settings as setup
from diffup_jax.backbones import Backbone
from diffup_jax.data import cues, episodes, pipeline, protocols, sources
from diffup_jax.data import draws as drawing
from diffup_jax.data.benchmarks import BENCHMARKS
from diffup_jax.data.protocols import Protocol
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
    tests = [open_test(settings, shots=shots) for shots in plan]
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
            episodes.write_draws(path, test.draws, test.facts)
        for cue in plan[test.shots]:
            print(f"{cue}, {test.shots}-shot, sha={test.sha}", flush=True)
            batches = _batches(settings, test, range(len(test.draws)), cue)
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


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Test:
    """One evaluation list and the data it is about.

    `sha` is the hash of the list as published or drawn (for 0 shots: of it without
    supports), `facts` its first line, which `draws` may name by the source's own image
    ids (see `episodes.check_draws`).
    """

    source: sources.Source
    classes: tuple[int, ...]
    protocol: Protocol
    shots: int
    draws: tuple[episodes.Draw, ...]
    sha: str
    facts: dict[str, Any]

    @property
    def file_name(self) -> str:
        """Where the list is written, relative to the folder of lists."""
        facts = self.facts
        name = f"{facts['benchmark']}_fold{facts['fold']}_{facts['protocol']}"
        ways = f"{facts['ways']}way_" if facts["ways"] > 1 else ""
        return f"{name}_{ways}{self.shots}shot.jsonl"


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


def open_test(settings: Settings, *, shots: int) -> Test:
    """The novel classes' data with the list of config.eval, drawn or read.

    For 0 shots it is the list of the fewest shots asked, without supports.

    Raises:
      DiffUpError: for data that cannot be opened, a class with too few images, and a
        list that does not fit the data, the protocol, the shots or the ways asked.
    """
    options, data = settings.eval, settings.data
    protocol = protocols.get(options.protocol)
    drawn = shots or min((each for each in options.shots if each), default=1)
    source = setup.open_split(settings, "test", shots=drawn)
    classes = sources.fold_classes(source, data.fold, role="novel")
    if options.episodes_file:
        listed, facts = episodes.read_draws(options.episodes_file)
        _check_list(settings, facts, listed, shots=shots)
        if not shots:
            listed = _without_supports(listed)
        draws = episodes.check_draws(
            listed, source, classes=classes, name=options.episodes_file
        )
        return Test(
            source=source, classes=classes, protocol=protocol, shots=shots,
            draws=draws, sha=episodes.draws_sha(listed), facts=facts,
        )  # fmt: skip
    kind = sources.drawn_as(source, data.source)
    pool = drawing.pool_of(source, classes, protocol=protocol, kind=kind)
    if data.skip_small_classes:
        classes = _large_enough(source, pool, classes, shots=drawn)
    seed = options.seed if protocol.seed is None else protocol.seed
    draws = drawing.evaluation_draws(
        pool,
        classes,
        protocol=protocol,
        kind=kind,
        shots=drawn,
        ways=options.ways,
        count=options.episodes
        or protocols.episode_count(protocol, kind, images_by_class=pool.large),
        seed=seed,
    )
    if not shots:
        draws = _without_supports(draws)
    facts = {
        "benchmark": source.name,
        "fold": data.fold,
        "protocol": protocol.name,
        "seed": seed,
        "shots": shots,
        "ways": options.ways,
    }
    return Test(
        source=source, classes=classes, protocol=protocol, shots=shots,
        draws=draws, sha=episodes.draws_sha(draws), facts=facts,
    )  # fmt: skip


def _without_supports(draws) -> tuple[episodes.Draw, ...]:
    return tuple(draw._replace(supports=((),) * len(draw.supports)) for draw in draws)


def _large_enough(source, pool, classes, *, shots: int) -> tuple[int, ...]:
    """The classes that have a query and `shots` other images in the protocol's pool."""
    kept = tuple(c for c in classes if len(pool.large[c]) > shots)
    left = [source.class_names[c] for c in classes if c not in kept]
    if left:
        print(
            f"{len(left)} of {len(classes)} novel classes of {source.name} have fewer "
            f"than {shots + 1} images for {shots}-shot episodes and are left out: "
            + ", ".join(left),
            flush=True,
        )
    if not kept:
        raise DiffUpError(
            f"no novel class of {source.name} has the {shots + 1} images that {shots}-"
            "shot episodes need. Use fewer shots or add images."
        )
    return kept


def _check_list(settings: Settings, facts, draws, *, shots: int) -> None:
    """A list is scored as what it is; `check_draws` compares it with the data."""
    asked = {
        "protocol": (facts.get("protocol"), settings.eval.protocol, "eval.protocol"),
        "fold": (facts.get("fold"), settings.data.fold, "data.fold"),
    }
    if draws:
        found = len(draws[0].supports), len(draws[0].supports[0])
        asked["ways"] = (found[0], settings.eval.ways, "eval.ways")
        if shots:  # a 0-shot episode is a query, and every list has those
            asked["shots"] = (found[1], shots, "eval.shots")
    wrong = [
        f"its {name} is {found}, config.{key} is {wanted}"
        for name, (found, wanted, key) in asked.items()
        if found is not None and found != wanted
    ]
    if wrong:
        raise DiffUpError(
            f"the episode list {settings.eval.episodes_file!r} does not fit: "
            + "; ".join(wrong)
            + ". Set these values to those of the list, or give another list."
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
    data, then = settings.data, saved["data"]
    same = not data.test_root and data.root == then["root"]
    # Its folds are those of COCO, so a network trained there has them too.
    across = data.source == "coco_to_pascal" and then["source"] == "coco"
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


def _batches(settings: Settings, test: Test, places: Iterable[int], cue: str):
    """Batches of the episodes at `places` of the list."""
    numbers = tuple(places)
    return pipeline.evaluation_batches(
        test.source,
        [test.draws[number] for number in numbers],
        numbers=numbers,
        cue=cue,
        conventions=setup.conventions(settings),
        protocol=test.protocol,
        image_size=settings.data.image_size,
        batch_size=settings.eval.batch_size,
        seed=settings.eval.seed,
        workers=settings.data.workers,
        on_error=settings.data.on_error,
    )


def _setting(
    settings: Settings, test: Test, backbone: Backbone, cue: str, decoder: str
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


def _gallery(path, settings, answer, test: Test, cue, result, *, row, text) -> None:
    """Runs the chosen episodes once more, each with its own noise, and shows them."""
    chosen = evaluation.gallery_choice(result.ious, settings.eval.gallery)
    items = []
    batches = evaluation.predictions(
        answer,
        jax.random.key(settings.eval.seed),
        _batches(settings, test, result.places[chosen].tolist(), cue),
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
