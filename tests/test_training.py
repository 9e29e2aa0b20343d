"""The update on one device and on two, and the loop around it."""

from __future__ import annotations

import json
import multiprocessing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from diffup_jax import checkpoint, sections, training, training_data
from diffup_jax import config as configs
from diffup_jax.data import batches, episodes, pipeline, sources
from diffup_jax.types import DiffUpError
from tests import datasets, runs


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return datasets.write_label_maps(tmp_path_factory.mktemp("training"), train=40)


@pytest.fixture
def config(root):
    return runs.get_config(str(root))


def flat(tree) -> np.ndarray:
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
    return np.concatenate(leaves)


def relative(one, other) -> float:
    one, other = flat(one), flat(other)
    return np.linalg.norm(one - other) / np.linalg.norm(one)


def test_one_device_and_two_give_the_same_update(config):
    """Gradient and parameters agree to 1e-6 of their norm.

    The gradient is read from Adam's first moment after one step. Adam's quotient itself
    is not compared: where a gradient is nothing but rounding, it makes 1 of 1e-8.
    """
    config.diffup.process.diffusion = True  # more is drawn than without a chain
    config.diffup.sampler.steps = 2
    settings = configs.from_config(config)
    method, _ = configs.open_method(settings)
    source = sources.open_split(settings.data, "train", shots=1)
    base = sources.fold_classes(source, settings.data.fold, role="base")
    recipe = training_data.recipe_of(settings, source, base)
    dataset = training_data.batches(recipe, steps=4)
    tx = training.optimiser(settings.train)
    decay, seed = settings.train.ema_decay, settings.seed

    seen = []
    for devices in (1, 2):
        mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
        state, frozen = training.init_state(method, tx, settings, mesh)
        start = jax.tree.map(np.asarray, state.params)
        step = training.make_step(method.loss, tx, mesh, ema_decay=decay, seed=seed)
        history = []
        for index in range(4):
            episode = training_data.place(dataset[index].episode, mesh)
            assert len(episode.query.image.sharding.device_set) == devices
            state, metrics = step(state, frozen, episode)
            history.append(jax.tree.map(np.asarray, (state, metrics)))
        assert step._cache_size() == 1  # compiled once, not again for its own results
        seen.append(history)

    for (one, _), (two, _) in zip(*seen, strict=True):
        assert relative(one.params, two.params) < 1e-6
        assert relative(one.average, two.average) < 1e-6
    (one, metrics_one), (two, metrics_two) = (history[0] for history in seen)
    gradients = [state.optimiser[1][0].mu for state in (one, two)]
    assert np.count_nonzero(flat(gradients[0])) > 100
    assert relative(*gradients) < 1e-6
    for name, value in metrics_one.items():
        assert float(metrics_two[name]) == pytest.approx(float(value), rel=2e-6), name
    assert relative(start, seen[0][-1][0].params) > 1e-4  # and they did move


def blank_step(loss, tx, mesh, *, ema_decay, seed):
    """In place of `make_step`: counts, and compiles nothing."""

    def step(state, frozen, episode):
        number = state.step + 1
        metrics = {"loss": np.float32(number), "grad_norm": np.float32(1)}
        return state._replace(step=number), metrics

    return step


def blank_state(method, tx, settings, mesh):
    """In place of `init_state`: a model of two numbers."""
    params = {"decoder": {"x": np.ones(2, np.float32)}}
    return training.TrainState(np.zeros((), np.int32), params, params, ()), {}


@pytest.fixture
def blank(monkeypatch):
    """Only the loop: data, records, checkpoints."""
    monkeypatch.setattr(training, "make_step", blank_step)
    monkeypatch.setattr(training, "init_state", blank_state)


def test_a_non_finite_loss_stops_and_keeps_the_last_good_state(
    config, tmp_path, blank, monkeypatch
):
    def spoilt(*args, **kwargs):
        step = blank_step(*args, **kwargs)

        def spoilt_step(state, frozen, episode):
            state, metrics = step(state, frozen, episode)
            if state.step == 16:  # a step at which a checkpoint is due
                state = state._replace(params={"decoder": {"x": np.full(2, np.nan)}})
                metrics["grad_norm"] = np.float32("nan")
            return state, metrics

        return spoilt_step

    monkeypatch.setattr(training, "make_step", spoilt)
    with pytest.raises(DiffUpError, match=r"step 16 gave a non-finite.*grad_norm nan"):
        training.train(config, str(tmp_path))
    assert checkpoint.latest_step(str(tmp_path)) == 8
    saved = runs.saved_state(tmp_path, 8)
    assert all(np.isfinite(array).all() for array in saved.values())
    assert [line["step"] for line in runs.metrics(tmp_path)] == list(range(1, 16))


def test_parameters_that_overflow_are_seen(config):
    """Finite gradients may still spoil the parameters: their norm is in the metrics."""
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))

    class Steep:
        trainable = ("x",)
        init = predict = lambda self, *arguments: None

        def loss(self, params, keys, episode):
            return (params["x"] * 3e38).sum(), {}

    tx = training.optax.sgd(10.0)
    params = {"x": jnp.ones(())}
    state = training.TrainState(jnp.zeros((), int), params, params, tx.init(params))
    state = jax.tree.map(jnp.copy, state)
    step = training.make_step(Steep().loss, tx, mesh, ema_decay=0.9, seed=0)
    episode = training_data.place(batches.blank(1, 1, 8), mesh)
    _, metrics = step(state, {}, episode)
    assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["param_norm"])


def test_the_files_of_a_run_and_what_a_continued_one_may_change(
    config, tmp_path, blank, capsys
):
    config.train.val_episodes = 2
    config.data.val_fraction = 0.001
    training.train(config, str(tmp_path))
    assert "No base class has two held-out images" in capsys.readouterr().out
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved == sections.plain(configs.from_config(config))
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert events.stat().st_size > 500
    lines = runs.metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, runs.STEPS + 1))
    assert {"loss", "grad_norm", "episodes_per_s"} < set(lines[0])

    # Killed after step 20: an unfinished line, and steps that will be done again.
    (tmp_path / "checkpoints" / "24").rename(tmp_path / "away")
    (tmp_path / "checkpoints" / "24").mkdir()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 25, "lo')

    config.train.learning_rate = 1.0
    config.seed = 1
    config.train.log_every = 3
    with pytest.raises(DiffUpError) as caught:
        training.train(config, str(tmp_path))
    told = str(caught.value)
    assert "config.seed: was 0, now 1" in told
    assert "config.train.learning_rate: was 0.0005, now 1.0" in told
    assert "log_every" not in told and "another --workdir" in told

    config.train.learning_rate = 5e-4
    config.seed = 0
    config.train.checkpoint_every = 3
    config.eval.shots = (5,)
    config.diffup.sampler.steps = 1
    training.train(config, str(tmp_path))
    assert "continuing after step 16" in capsys.readouterr().out
    steps = [line["step"] for line in runs.metrics(tmp_path)]
    assert steps == [*range(1, 17), 18, 21, 24]
    assert checkpoint.latest_step(str(tmp_path)) == runs.STEPS


def test_a_finished_run_is_left_as_it_is(config, tmp_path, blank, capsys):
    config.data.val_fraction = 0.001
    training.train(config, str(tmp_path))
    files = lambda: {x: x.stat().st_mtime_ns for x in tmp_path.rglob("*")}  # noqa: E731
    before = files()
    capsys.readouterr()
    state = training.train(config, str(tmp_path))
    assert f"is finished: step {runs.STEPS}" in capsys.readouterr().out
    assert int(state.step) == runs.STEPS
    assert files() == before


def test_other_weights_are_refused(config, tmp_path):
    run = configs.run_facts(configs.from_config(config), {"backbone": "abc"})
    writer = checkpoint.manager(str(tmp_path), keep=1)
    state = {"x": np.zeros(2)}
    checkpoint.save(writer, 8, state=state, position={"next": 8}, run=run)
    writer.wait_until_finished()
    writer.close()
    with pytest.raises(DiffUpError, match=r"of backbone: was 'abc', now '\w{16}'"):
        training.train(config, str(tmp_path))


def test_held_out_images_never_train(config, tmp_path, blank, monkeypatch):
    """Validation sees base classes of images that no training episode can hold."""
    seen = {}

    def training_dataset(recipe, **arguments):
        seen["train"] = recipe.source, recipe.classes
        return original(recipe, **arguments)

    def validate(ask, params, source, draws, settings, texts):
        seen["validate"] = source, draws
        return {"val_miou": 1.0}

    original = pipeline.training_dataset
    monkeypatch.setattr(pipeline, "training_dataset", training_dataset)
    monkeypatch.setattr(training, "_validate", validate)
    training.train(config, str(tmp_path))

    source, classes = seen["train"]
    held_out, draws = seen["validate"]
    images = lambda draw: {draw.query, *draw.supports[0]}  # noqa: E731
    trained = set.union(
        *(
            images(episodes.training_draw(source, classes, shots=1, seed=0, index=i))
            for i in range(400)
        )
    )
    validated = set.union(*map(images, draws))
    every = {i for c in range(8) for i in held_out.image_ids(c)}
    assert len(trained) > 15 and len(validated) > 5
    assert validated <= every and not trained & every
    novel = {c for c, fold in enumerate(source.class_folds) if fold == 0}
    assert not novel & set(classes) and not novel & {
        draw.class_ids[0] for draw in draws
    }


def test_left_out_classes_are_validated_on_and_never_train(
    config, tmp_path, blank, monkeypatch, capsys
):
    seen = {}

    def training_dataset(recipe, **arguments):
        seen["train"] = set(recipe.classes)
        return original(recipe, **arguments)

    def validate(ask, params, source, draws, settings, texts):
        seen["validate"] = {draw.class_ids[0] for draw in draws}
        return {"val_miou": 1.0}

    original = pipeline.training_dataset
    monkeypatch.setattr(pipeline, "training_dataset", training_dataset)
    monkeypatch.setattr(training, "_validate", validate)
    config.train.val_episodes = 20
    config.train.val_classes = 2
    training.train(config, str(tmp_path / "two"))
    captured = capsys.readouterr()
    told = captured.out + captured.err
    left = seen["validate"]
    assert len(left) == 2 and len(seen["train"]) == 4 and not left & seen["train"]
    source = sources.open_split(configs.from_config(config).data, "train", shots=1)
    names = ", ".join(source.class_names[c] for c in sorted(left))
    assert f"left out of the training, for validation: {names}\n" in told
    assert "4 base classes of fold 0" in told
    assert "validation on left-out base classes, held-out images: mIoU" in told
    # Another seed, the same classes: their scores can be compared.
    config.seed = 5
    training.train(config, str(tmp_path / "other"))
    assert seen["validate"] == left
    config.train.val_classes = 6
    with pytest.raises(
        DiffUpError, match=r"6 classes cannot be left out of the 6 base"
    ):
        training.train(config, str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_in_the_middle_ends_the_run_by_its_name(
    tmp_path, blank, workers, capsys, monkeypatch
):
    root = datasets.write_label_maps(tmp_path / "data", train=40)
    config = runs.get_config(str(root))
    config.data.workers = workers
    config.train.checkpoint_every = 1
    settings = configs.from_config(config)
    source = sources.open_split(settings.data, "train", shots=1)
    kept, _ = sources.hold_out(source, settings.data.val_fraction)
    base = sources.fold_classes(source, settings.data.fold, role="base")
    shown = [
        episodes.training_draw(kept, base, shots=1, seed=0, index=i)
        for i in range(2 * runs.STEPS)
    ]
    early = {i for draw in shown[:8] for i in (draw.query, *draw.supports[0])}
    broken = next(draw.query for draw in shown[8:] if draw.query not in early)
    (path,) = (root / "images").glob(f"{broken}.*")
    path.write_bytes(path.read_bytes()[:-300])

    work = tmp_path / "work"
    with pytest.raises(DiffUpError, match=rf"cannot read .*{broken}.*truncated"):
        training.train(config, str(work))
    assert checkpoint.latest_step(str(work)) >= 4
    assert not multiprocessing.active_children()

    # The very run may go on without the image, aloud.
    config.data.on_error = "skip"
    monkeypatch.setattr(training, "_validate", lambda *arguments: {"val_miou": 1.0})
    capsys.readouterr()
    state = training.train(config, str(work))
    told = capsys.readouterr()
    assert state.step == runs.STEPS and not multiprocessing.active_children()
    assert (told.out + told.err).count("another episode takes its place") == 1
    assert broken in told.out + told.err
    assert "training episodes replaced, damaged: 1" in told.out


def test_what_cannot_be_trained_is_told(config, tmp_path):
    config.train.batch_size = 3
    with pytest.raises(DiffUpError, match=r"batch_size=3 does not divide.*2 devices"):
        training.train(config, str(tmp_path))
    config.train.batch_size = 2
    config.train.max_shots = 30
    with pytest.raises(DiffUpError, match=r"30-shot episodes need 31"):
        training.train(config, str(tmp_path))
    config.method = "prior"
    with pytest.raises(DiffUpError, match=r"nothing to train.*eval\.py"):
        training.train(config, str(tmp_path))
    assert not list(tmp_path.iterdir())
