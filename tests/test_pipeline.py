"""The pipeline: the same batches however they are made, in shapes that never change."""

from __future__ import annotations

import json

import numpy as np
import pytest

from diffup_jax.data import batches as making
from diffup_jax.data import cues, episodes, pipeline, protocols, rasters, shared
from diffup_jax.data.augment import Augment
from diffup_jax.data.options import DataSettings
from diffup_jax.data.sources import fold_classes, open_source
from diffup_jax.types import CUES, DiffUpError
from tests import datasets

SIZE = 32


def opened(folder):
    root = datasets.write_label_maps(folder, train=32)
    return open_source(
        "label_map", root=str(root), split="train", min_area=0.0, crowd="hsnet"
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return opened(tmp_path_factory.mktemp("label_maps"))


def training(source, *, steps=6, process_index=0, process_count=1, **changes):
    """The batches of the base classes; a change is of the recipe or of its data."""
    recipe = {
        "classes": fold_classes(source, 0, role="base"),
        "seed": 0,
        "augment": Augment(),
        "batch_size": 4,
        "max_shots": 3,
        "ways": 1,
        "cues": ("mask", "box", "scribble", "point"),
        "fewest_points": 1,
    }
    data = {key: changes.pop(key) for key in changes.keys() - {*recipe, "texts"}}
    data = DataSettings(**{"image_size": SIZE} | data)
    return pipeline.training_dataset(
        making.Training(source=source, data=data, **recipe | changes),
        steps=steps,
        process_index=process_index,
        process_count=process_count,
    )


def leaves(episode):
    """Every array of an episode."""
    return [*episode.support, *episode.query]


def collected(iterator):
    batches = [[np.array(leaf) for leaf in leaves(batch)] for batch in iterator]
    iterator.close()
    return batches


def same(one, other):
    return len(one) == len(other) and all(
        (a == b).all() and a.dtype == b.dtype
        for left, right in zip(one, other, strict=True)
        for a, b in zip(left, right, strict=True)
    )


def test_training_batch_keeps_the_contract(source):
    batch = training(source, batch_size=8)[1].episode
    b, k = 8, 3
    shapes = [
        ((b, 1, k, SIZE, SIZE, 3), np.uint8),
        ((b, 1, k, SIZE, SIZE), bool),
        ((b, 1, k, SIZE, SIZE), bool),
        ((b, 1, k), np.int32),
        ((b, 1, k), bool),
        ((b, 1, 0), np.float32),
        ((b, 1), bool),
        ((b, SIZE, SIZE, 3), np.uint8),
        ((b, SIZE, SIZE), bool),
        ((b, 1, SIZE, SIZE), bool),
    ]
    assert [(leaf.shape, leaf.dtype) for leaf in leaves(batch)] == shapes
    support, query = batch
    shots = support.valid.sum(-1)
    assert shots.min() >= 1 and len(np.unique(shots)) > 1
    # Valid shots come first, have a cue; padding is blank.
    assert (np.diff(support.valid.astype(int), axis=-1) <= 0).all()
    assert (support.fg.any((-2, -1)) == support.valid).all()
    assert not support.images[~support.valid].any()
    assert not support.text_valid.any()
    assert (query.mask.sum((-2, -1)) > 0).all()
    assert not (query.mask[:, 0] * ~query.valid).any()
    kinds = support.kind[support.valid]
    full = (support.fg + support.bg).mean((-2, -1))[support.valid]
    sparse = kinds >= CUES.index("scribble")
    assert len(set(kinds)) == 4
    assert (full[~sparse] > 0.3).all() and (full[sparse] < full[~sparse].max()).all()
    assert not support.bg[support.valid][sparse].any()


def test_workers_change_nothing(source, monkeypatch):
    dataset = training(source)
    expected = collected(pipeline.iterate(dataset, workers=0))
    assert same(expected, [leaves(dataset[i].episode) for i in range(6)])
    assert same(expected, collected(pipeline.iterate(dataset, workers=2)))
    # Without shared memory the batches come through pipes.
    monkeypatch.setattr(shared, "free_bytes", lambda: 0)
    assert same(expected, collected(pipeline.iterate(dataset, workers=1)))


def test_resume_is_exact_with_another_number_of_workers(source):
    dataset = training(source)
    first = pipeline.iterate(dataset, workers=0)
    for _ in range(2):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    rest = collected(first)
    assert len(rest) == 4
    for workers in (0, 1):
        resumed = pipeline.iterate(dataset, workers=workers)
        resumed.set_state(state)
        assert resumed.get_state() == state
        assert same(rest, collected(resumed))
    # Going back in a running iterator works as well.
    again = pipeline.iterate(dataset, workers=0)
    next(again)
    again.set_state({"next": 0})
    assert same([leaves(next(again))], [leaves(dataset[0].episode)])
    again.close()
    with pytest.raises(DiffUpError, match="cannot resume"):
        again.set_state({"next": 7})


def test_processes_share_one_stream(source):
    whole = training(source)
    parts = [training(source, process_index=p, process_count=2) for p in range(2)]
    for step in range(len(whole)):
        joined = [
            np.concatenate(leaves)
            for leaves in zip(
                *(leaves(part[step].episode) for part in parts), strict=True
            )
        ]
        assert same([joined], [leaves(whole[step].episode)])
    first, second = (part[0].episode.query.image for part in parts)
    assert not (first == second).all()


def test_seed_changes_episodes(source):
    first, again, other = (
        leaves(training(source, seed=seed)[0].episode) for seed in (0, 0, 1)
    )
    assert same([first], [again]) and not same([first], [other])


def test_without_augmentation_images_are_only_resized(source):
    batch = training(source, augment=None, max_shots=1, cues=("mask",))[0].episode
    draw = episodes.training_draw(
        source, fold_classes(source, 0, role="base"), shots=1, seed=0, index=2
    )
    image = rasters.resize_image(source.image(draw.query), SIZE)
    assert (batch.query.image[2] == image).all()
    mask, ignore = source.mask(draw.supports[0][0], draw.class_ids[0])
    assert (batch.support.fg[2, 0, 0] == rasters.resize_mask(mask, SIZE)).all()
    known = ~rasters.resize_mask(ignore, SIZE)
    assert ((batch.support.fg + batch.support.bg)[2, 0, 0] == known).all()


def evaluation(source, draws, **changes):
    """The batches of some draws; a change is of the evaluation or of its data."""
    arguments = {
        "numbers": range(len(draws)),
        "cue": "scribble",
        "protocol": protocols.get("clean"),
        "batch_size": 4,
        "seed": 0,
        "texts": None,
        "workers": 0,
    }
    data = {key: changes.pop(key) for key in changes.keys() - arguments.keys()}
    data = DataSettings(**{"image_size": SIZE} | data)
    return pipeline.evaluation_batches(source, draws, data=data, **arguments | changes)


def test_evaluation_walks_the_draws_once_and_pads(source):
    draws = episodes.clean_draws(source, (1, 2, 5), shots=2, count=10, seed=0)
    batches = list(evaluation(source, draws))
    assert [batch.places.tolist() for batch in batches] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]
    ]  # fmt: skip
    assert all(len(batch.class_ids) == 4 for batch in batches)
    assert not any(batch.truths or batch.empty or batch.damaged for batch in batches)
    rows = [
        (batch.class_ids[r], *(leaf[r] for leaf in batch.episode.query))
        for batch in batches
        for r in range(len(batch.places))
    ]
    for draw, (class_ids, image, valid, masks) in zip(draws, rows, strict=True):
        mask, ignore = source.mask(draw.query, draw.class_ids[0])
        assert (image == rasters.resize_image(source.image(draw.query), SIZE)).all()
        assert (masks[0] == rasters.resize_mask(mask, SIZE)).all()
        assert (valid == ~rasters.resize_mask(ignore, SIZE)).all()
        assert tuple(class_ids) == draw.class_ids
    for leaf in (batches[-1].class_ids, *leaves(batches[-1].episode)):
        assert (leaf[2:] == leaf[1]).all()


def test_a_support_has_one_scribble_in_every_run(source):
    """It does not depend on the batch, the order, the query or the workers."""
    draws = episodes.clean_draws(source, (1, 2, 5), shots=2, count=9, seed=0)
    scribbles = {}
    for order, size, workers in ((1, 4, 0), (-1, 2, 1)):
        for batch in evaluation(
            source, draws[::order], batch_size=size, workers=workers
        ):
            for row, place in enumerate(batch.places):
                draw = draws[::order][place]
                for shot, name in enumerate(draw.supports[0]):
                    cue = batch.episode.support.fg[row, 0, shot].tobytes()
                    assert scribbles.setdefault((name, draw.class_ids), cue) == cue
    one, other = (
        next(evaluation(source, draws, seed=seed)).episode.support.fg for seed in (0, 1)
    )
    assert not (one == other).all()


def test_mistakes_are_told(source):
    draws = episodes.clean_draws(source, (1, 2), shots=1, count=4, seed=0)
    with pytest.raises(DiffUpError, match="4 episodes does not divide among 3"):
        training(source, process_count=3)
    with pytest.raises(DiffUpError, match=r"training cues are \('dot',\)"):
        training(source, cues=("dot",))
    with pytest.raises(DiffUpError, match=r"need 41"):
        training(source, max_shots=40)
    with pytest.raises(DiffUpError, match="cue 'word'"):
        evaluation(source, draws, cue="word")
    mixed = (*draws, *episodes.clean_draws(source, (1,), shots=2, count=1, seed=0))
    with pytest.raises(DiffUpError, match=r"\[1\] ways and \[1, 2\] supports"):
        evaluation(source, mixed)
    with pytest.raises(DiffUpError, match="7-way episodes over 6 classes"):
        training(source, ways=7)
    for make in (training, lambda s, **k: evaluation(s, draws, cue=k["cues"][0])):
        with pytest.raises(DiffUpError, match="hold.* text.*no embeddings"):
            make(source, cues=("text",))
    with pytest.raises(DiffUpError, match="-1 data workers"):
        pipeline.iterate(training(source), workers=-1)


def test_ways_of_a_training_episode(source):
    support, query = training(source, ways=3, max_shots=2, cues=("mask",))[0].episode
    assert query.mask.shape == (4, 3, SIZE, SIZE)
    assert support.images.shape == (4, 3, 2, SIZE, SIZE, 3)
    assert query.mask[:, 0].any((1, 2)).all()
    # All ways of an episode have equally many supports, each with its own class.
    assert (support.valid == support.valid[:, :1]).all()
    assert (support.fg.any((-2, -1)) == support.valid).all()
    # Without augmentation each mask is that of its way's class, or empty in the query.
    plain = training(source, ways=3, max_shots=1, cues=("mask",), augment=None)
    classes = fold_classes(source, 0, role="base")
    support, query = plain[0].episode
    absent = 0
    for row in range(4):
        draw, alone = (
            episodes.training_draw(
                source, classes, ways=ways, shots=1, seed=0, index=row
            )
            for ways in (3, 1)
        )
        # Way 0 does not depend on the number of ways.
        assert len(set(draw.class_ids)) == 3 and draw.class_ids[:1] == alone.class_ids
        ignore = rasters.resize_mask(source.mask(draw.query, 0)[1], SIZE)
        for way, class_id in enumerate(draw.class_ids):
            mask = rasters.resize_mask(source.mask(draw.query, class_id)[0], SIZE)
            assert (query.mask[row, way] == (mask & ~ignore)).all()
            absent += not mask.any()
            shown = source.mask(draw.supports[way][0], class_id)[0]
            assert (support.fg[row, way, 0] == rasters.resize_mask(shown, SIZE)).all()
    assert absent > 0


def test_ways_and_mixtures_of_an_evaluation(source):
    draws = episodes.clean_draws(source, (1, 2, 5), shots=2, count=6, seed=0, ways=2)
    for batch in evaluation(source, draws, cue="mask+scribble"):
        support, query = batch.episode
        kinds = support.kind
        assert kinds.shape == (4, 2, 2)
        assert (kinds == [CUES.index("mask"), CUES.index("scribble")]).all()
        full = (support.fg + support.bg).mean((-2, -1))
        assert (full[..., 0] > 0.9).all() and (full[..., 1] < 0.5).all()
        for row, place in enumerate(batch.places):
            draw = draws[place]
            assert tuple(batch.class_ids[row]) == draw.class_ids
            for way, class_id in enumerate(draw.class_ids):
                mask = source.mask(draw.query, class_id)[0]
                expected = rasters.resize_mask(mask, SIZE)
                assert (query.mask[row, way] == expected).all()


@pytest.mark.parametrize(
    ("name", "in_query", "in_support"),
    [("clean", 0, 0), ("hsnet", 0, 1), ("denet", 1, 1)],
)
def test_who_ignores_what_is_the_protocols(source, name, in_query, in_support):
    """The first column of every picture has the label 255."""
    draws = episodes.clean_draws(source, (1, 2), shots=1, count=4, seed=0)
    arguments = {"cue": "mask", "protocol": protocols.get(name)}
    support, query = next(evaluation(source, draws, **arguments)).episode
    assert (query.valid[:, :, 0] == in_query).all() and query.valid[:, :, 1:].all()
    assert (support.bg[:, 0, 0, :, 0] == in_support).all()


def test_scored_at_the_querys_own_size(source):
    draws = episodes.clean_draws(source, (1, 2), shots=1, count=6, seed=0)
    rule = protocols.get("original")
    for batch in evaluation(source, draws, protocol=rule):
        assert len(batch.truths) == len(batch.places)
        for place, truth in zip(batch.places, batch.truths, strict=True):
            mask, ignore = source.mask(draws[place].query, draws[place].class_ids[0])
            assert (truth.masks == (mask & ~ignore)).all() and truth.masks.ndim == 3
            assert (truth.valid == ~ignore).all()


def test_boxes_by_convention_reach_the_batches(source):
    draws = episodes.clean_draws(source, (1, 2), shots=1, count=4, seed=0)
    marked = [
        next(evaluation(source, draws, cue="box", box=box)).episode.support.fg
        for box in cues.BOXES
    ]
    # One rectangle per class and picture: all conventions agree.
    assert marked[0].any() and all((each == marked[0]).all() for each in marked)
    rules = {"box": "instance", "scribble": "skeleton"}
    support = training(source, cues=("box", "scribble"), **rules)[0].episode.support
    assert (support.fg.any((-2, -1)) == support.valid).all()


def test_a_point_in_training_has_fewer_pixels_and_in_evaluation_all(source):
    counts = {}
    for fewest in (1, 20):
        dataset = training(source, cues=("point",), fewest_points=fewest, augment=None)
        marked = [batch.episode.support.fg.sum((-2, -1)) for batch in dataset]
        counts[fewest] = np.concatenate([each[each > 0] for each in marked])
    assert (counts[20] == 20).all()
    assert counts[1].min() < 5 and len(set(counts[1])) > 5 and counts[1].max() <= 20
    draws = episodes.clean_draws(source, (1, 2), shots=1, count=4, seed=0)
    batch = next(evaluation(source, draws, cue="point")).episode
    assert (batch.support.fg.sum((-2, -1)) == 20).all()


def test_a_blank_batch_has_every_field_of_a_made_one(source):
    made = training(source, ways=2, max_shots=2)[0].episode
    empty = making.blank(4, 2, SIZE, ways=2)
    for one, other in zip(leaves(empty), leaves(made), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert not one.any()
