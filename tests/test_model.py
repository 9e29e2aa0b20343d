"""One's own pictures: the laws of `diffup_jax.load`, `fit`, `predict` and `correct`."""

import dataclasses
import threading

import jax
import numpy as np
import pytest

import diffup_jax
from diffup_jax import config as configs
from diffup_jax import methods
from diffup_jax.data import episode, pipeline, protocols, resize
from diffup_jax.data.episode import Example
from diffup_jax.data.episodes import Draw
from diffup_jax.data.pictures import _opened
from diffup_jax.data.sources import open_split
from diffup_jax.model import Model
from diffup_jax.types import DiffUpError
from tests import datasets, runs

SIZE = 64


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return datasets.write_label_maps(tmp_path_factory.mktemp("data"), ignore=None)


@pytest.fixture(scope="module")
def settings(root):
    config = runs.get_config(str(root))
    config.backbone.weights = ""
    config.diffup.process.diffusion = False
    config.diffup.sampler.steps = 1
    config.diffup.sampler.threshold = "iou"
    return configs.from_config(config)


@pytest.fixture(scope="module")
def model(settings):
    """A decoder away from its zero-initialised start."""
    method, backbone = configs.open_method(settings)
    one = pipeline.making.blank(1, 1, SIZE)
    params = method.init(jax.random.key(0), one)
    rng = np.random.default_rng(0)
    params["decoder"] = jax.tree.map(
        lambda x: x + rng.normal(0, 0.05, x.shape).astype(np.float32),
        params["decoder"],
    )
    run = configs.run_facts(settings, {"backbone": backbone.digest})
    return Model(method, params, settings, run, "a test")


@pytest.fixture(scope="module")
def source(settings):
    return open_split(settings.data, "train", shots=1)


def example(source, image, class_id, **more):
    return Example(source.image(image), mask=source.mask(image, class_id)[0], **more)


@pytest.fixture(scope="module")
def drawn(source):
    """Five examples of class 2 and three further pictures of it."""
    images = source.image_ids(2)
    return [example(source, x, 2) for x in images[:3]], images[3:6]


@pytest.fixture(scope="module")
def task(model, drawn):
    return model.fit(drawn[0], label="it")


def test_it_answers_as_the_evaluator_does(model, settings, source, drawn):
    """The same episode through the pipeline of an evaluation, resized."""
    images = source.image_ids(2)
    draw = Draw((2,), images[3], (tuple(images[:1]),))
    batch = next(
        pipeline.evaluation_batches(
            source,
            [draw],
            numbers=[0],
            cue="mask",
            protocol=protocols.get("clean"),
            data=settings.data,
            batch_size=1,
            seed=0,
            texts=None,
            workers=0,
        )
    )
    keys = jax.random.key(settings.eval.seed)[None]
    expected = jax.jit(methods.asked, static_argnums=0)(
        model.method, model.params, keys, batch.episode
    )
    image = source.image(images[3])
    result = model.fit(drawn[0][:1]).predict(image)
    prob = resize.leave(
        np.asarray(expected.probability[0, 0]), image.shape[:2], frame="square"
    )
    np.testing.assert_allclose(result.probability, prob, atol=2e-5)
    threshold = float(expected.threshold[0, 0])
    clear = np.abs(prob - threshold) > 1e-3
    np.testing.assert_array_equal(result.mask[clear], (prob > threshold)[clear])
    assert result.probability.std() > 0.01
    assert result.mask.shape == result.uncertainty.shape == image.shape[:2]


def test_order_and_company_change_nothing(task, source, drawn):
    images = [source.image(x) for x in drawn[1]]
    images[1] = images[1][:30, :50]  # of any size
    alone = [task.predict(image) for image in images]
    together = list(task.predict(images, batch_size=2))
    turned = list(task.predict(iter(images[::-1]), batch_size=2))[::-1]
    for one, two, three in zip(alone, together, turned, strict=True):
        np.testing.assert_allclose(two.probability, one.probability, atol=2e-5)
        np.testing.assert_allclose(three.probability, one.probability, atol=2e-5)
        assert one.image.shape[:2] == one.mask.shape


def test_examples_are_encoded_once_and_compiled_for_few_numbers(model, source):
    images = source.image_ids(2)
    before = model._encode._cache_size(), model._predict._cache_size()
    for count in (3, 4, 5):
        task = model.fit([example(source, x, 2) for x in images[:count]])
        for image in images[3:6]:
            task.predict(source.image(image))
    after = model._encode._cache_size(), model._predict._cache_size()
    assert after[0] - before[0] <= 1 and after[1] - before[1] <= 1


def test_shots_may_come_in_any_order(model, task, source, drawn):
    image = source.image(drawn[1][0])
    again = model.fit(drawn[0][::-1]).predict(image)
    expected = task.predict(image)
    np.testing.assert_allclose(again.probability, expected.probability, atol=2e-4)


def test_a_negative_example_only_takes_away(model, source, drawn):
    prior = dataclasses.replace(model, method=model.method.prior)
    image = source.image(drawn[1][0])
    plain = prior.fit(drawn[0]).predict(image)
    other = source.mask(drawn[1][0], 3)[0]
    against = Example(image, mask=other, negative=True)
    less = prior.fit([*drawn[0], against]).predict(image)
    query = episode.query(image, size=prior.size)
    means = [
        np.asarray(prior._observe(prior.params, query, task.memory).fused.mean)
        for task in (prior.fit(drawn[0]), prior.fit([*drawn[0], against]))
    ]
    assert (means[1] <= means[0] + 1e-6).all() and (means[1] < means[0] - 0.01).any()
    assert less.mask[other].mean() <= plain.mask[other].mean()


def test_several_labels_share_the_pixels(model, source, drawn):
    examples = [dataclasses.replace(each, label="two") for each in drawn[0]]
    examples += [example(source, source.image_ids(5)[0], 5, label="five")]
    image = source.image(drawn[1][0])
    result = model.fit(examples).predict(image)
    assert result.labels == ("two", "five")
    assert not result.masks.all(axis=0).any()
    np.testing.assert_array_equal(result.index == 1, result["two"].mask)
    np.testing.assert_array_equal(result.index == 2, result["five"].mask)
    alone = model.fit(drawn[0]).predict(image)
    np.testing.assert_allclose(result["two"].probability, alone.probability, atol=2e-5)
    with pytest.raises(DiffUpError, match=r"\['two', 'five'\]"):
        _ = result.mask


def test_corrections_are_honoured_and_add_up(task, source, drawn):
    result = task.predict(source.image(drawn[1][0]))
    height, width = result.mask.shape
    first = task.correct(result, points=[(10, 12)])
    assert first.mask[12, 10]
    second = task.correct(
        first, points=[(width - 5, 8)], point_labels=[0], scribble=[[(5, 40), (20, 40)]]
    )
    assert second.mask[12, 10] and second.mask[40, 5:20].all()
    assert not second.mask[8, width - 5]
    assert first.observed is result.observed is second.observed  # looked at once
    moved = np.abs(second.probability - result.probability)
    assert moved[~second.strokes.any(axis=(0, 1))].max() > 0.01  # not only the strokes
    back = task.correct(second, points=[(10, 12)], point_labels=[0])
    assert not back.mask[12, 10]


def test_another_task_corrects_by_its_own_examples(model, task, source, drawn):
    image = source.image(drawn[1][0])
    result = task.predict(image)
    task.correct(result, points=[(10, 12)])  # what was kept is of the first task
    other = model.fit([example(source, source.image_ids(5)[0], 5)], label="it")
    found = other.correct(result, points=[(10, 12)])
    alone = other.correct(other.predict(image), points=[(10, 12)])
    np.testing.assert_allclose(found.probability, alone.probability, atol=2e-5)


def test_bad_corrections_are_refused(model, task, source, drawn):
    result = task.predict(source.image(drawn[1][0]))
    with pytest.raises(DiffUpError, match="says nothing"):
        task.correct(result)
    with pytest.raises(DiffUpError, match="lies outside"):
        task.correct(result, points=[(999, 0)])
    with pytest.raises(DiffUpError, match="label 'x'"):
        task.correct(result, points=[(1, 1)], label="x")
    other = model.fit(drawn[0], label="another")
    with pytest.raises(DiffUpError, match="the task that answered it"):
        other.correct(result, points=[(1, 1)])


def test_threads_get_the_same_answers(model, source, drawn):
    images = [source.image(x) for x in drawn[1]] * 2
    fresh = dataclasses.replace(model)
    expected = [model.fit(drawn[0]).predict(image) for image in images]
    found = [None] * len(images)

    def work(place):
        found[place] = fresh.fit(drawn[0]).predict(images[place])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.probability, other.probability, atol=2e-5)


def test_a_saved_model_is_the_same_model(model, task, source, drawn, tmp_path):
    model.save(tmp_path / "kept")
    image = source.image(drawn[1][0])
    again = diffup_jax.load(tmp_path / "kept").fit(drawn[0]).predict(image)
    np.testing.assert_array_equal(again.probability, task.predict(image).probability)
    free = {"diffup.sampler.threshold": "half"}
    half = diffup_jax.load(tmp_path / "kept", settings=free)
    assert half.fit(drawn[0]).predict(image).thresholds == 0.5
    with pytest.raises(DiffUpError, match="was trained otherwise"):
        diffup_jax.load(tmp_path / "kept", settings={"diffup.decoder.size": "B"})


def test_saving_never_replaces_anything_else(model, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"mine")
    with pytest.raises(DiffUpError, match="name a new folder"):
        model.save(tmp_path / "photos")
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == b"mine"
    model.save(tmp_path / "kept")
    model.save(tmp_path / "kept")  # a model may be saved again
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_the_folder_of_a_backbone_is_no_model(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(DiffUpError, match="If it is a backbone"):
        diffup_jax.load(tmp_path)


def test_another_backbone_needs_no_training(model, source, drawn, tmp_path):
    model.save(tmp_path / "kept")
    swapped = diffup_jax.load(tmp_path / "kept", backbone="tiny", weights="random")
    found = swapped.fit(drawn[0]).predict(source.image(drawn[1][0]))
    assert np.isfinite(found.probability).all()


def test_the_prior_needs_no_file(source, drawn):
    free = diffup_jax.load("prior", backbone="tiny", settings={"data.image_size": SIZE})
    result = free.fit(drawn[0]).predict(source.image(drawn[1][0]))
    truth = source.mask(drawn[1][0], 2)[0]
    inside, outside = result.probability[truth], result.probability[~truth]
    assert inside.mean() > outside.mean()
    assert 0 <= result.score <= 1
    with pytest.raises(DiffUpError, match="no trained part"):
        free.save("nowhere")


@pytest.mark.parametrize(
    ("source", "word"),
    [("nowhere", "no model at 'nowhere'"), ("diffup", "is trained")],
)
def test_what_is_no_model_is_refused(source, word):
    with pytest.raises(DiffUpError, match=word):
        diffup_jax.load(source)


def test_text_wants_a_text_tower(model):
    with pytest.raises(DiffUpError, match="no text tower"):
        model.fit([Example(text="a red star")])


def test_a_phrase_is_asked_of_any_picture(source, drawn):
    reads = diffup_jax.load(
        "prior", backbone="tiny_clip_s", settings={"data.image_size": SIZE}
    )
    task = reads.fit([Example(text="a red star")])
    assert task.labels == ("a red star",)
    image = source.image(drawn[1][0])
    other = reads.fit([Example(text="a blue disc")]).predict(image)
    found = task.predict(image)
    assert found.probability.std() > 0
    assert np.abs(found.probability - other.probability).max() > 0.01


def test_files_are_written_whole(task, source, drawn, tmp_path):
    result = task.predict(source.image(drawn[1][0]))
    paths = result.save(tmp_path / "out" / "q")
    mask, probability, overlay = (np.asarray(_opened(path)) for path in paths)
    np.testing.assert_array_equal(mask, result.mask * 255)
    np.testing.assert_allclose(probability / 65535, result.probability, atol=1e-5)
    assert overlay.shape[:2] == result.mask.shape
    assert result._repr_png_().startswith(b"\x89PNG")
