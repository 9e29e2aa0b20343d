"""Draws: the laws of every rule, and lists that cannot be altered unseen."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffup_jax.data import episodes, lists
from diffup_jax.data.episodes import Draw
from diffup_jax.types import DiffUpError


class Names:
    """A source without pixels: class c has `images` names of its own."""

    name, root = "names", "nowhere"

    def __init__(self, images: int, classes: int = 6):
        self.class_names = tuple(f"class {c}" for c in range(classes))
        self.class_folds = tuple(c % 4 for c in range(classes))
        self._ids = tuple(
            tuple(f"c{c}i{i}" for i in range(images)) for c in range(classes)
        )

    def image_ids(self, class_id):
        return self._ids[class_id]

    def image(self, image_id):
        raise AssertionError("draws read no pixel")

    def mask(self, image_id, class_id):
        raise AssertionError("draws read no pixel")

    def instances(self, image_id, class_id):
        raise AssertionError("draws read no pixel")


CLASSES = (1, 3, 5)
COMPACT = settings(max_examples=40, deadline=None)


def lists_of(source, classes=CLASSES):
    return {c: source.image_ids(c) for c in classes}


def lawful(draw, *, ways, shots, distinct):
    """What holds for every draw of every rule over `Names`."""
    assert len(set(draw.class_ids)) == len(draw.class_ids) == len(draw.supports) == ways
    assert draw.query.startswith(f"c{draw.class_ids[0]}i")
    for class_id, images in zip(draw.class_ids, draw.supports, strict=True):
        assert len(images) == shots and draw.query not in images
        assert all(image.startswith(f"c{class_id}i") for image in images)
        assert not distinct or len(set(images)) == shots


@pytest.mark.parametrize("order", episodes.ORDERS)
@pytest.mark.parametrize("distinct", [False, True])
def test_hsnet_is_the_legacy_stream(order, distinct):
    """An independent loop over numpy's RandomState, as the published code has it."""
    lists = {c: tuple(f"c{c}i{i}" for i in (7, 10, 2, 31, 9)) for c in (5, 1, 3)}
    classes = [5, 1, 3]
    draws = episodes.hsnet_stream(
        lists, classes, shots=2, count=30, order=order, distinct=distinct
    )
    legacy = np.random.RandomState(0)
    listed = {
        "listed": sorted((name, c) for c in classes for name in lists[c]),
        "folders": [(name, c) for c in classes for name in sorted(lists[c])],
    }
    for index, draw in enumerate(draws):
        if order in listed:
            query, class_id = listed[order][index % 15]
        else:
            class_id = classes[index % 3]
            if order == "class":
                class_id = legacy.choice(classes, 1, replace=False)[0]
            query = legacy.choice(list(lists[class_id]), 1, replace=False)[0]
        names = list(lists[class_id])
        if order == "folders":
            names = [f"c{class_id}i{i}" for i in (2, 7, 9, 10, 31)]
        supports = []
        while len(supports) < 2:
            name = str(legacy.choice(names, 1, replace=False)[0])
            if name != query and (not distinct or name not in supports):
                supports.append(name)
        assert draw == ((class_id,), query, (tuple(supports),))
    with pytest.raises(DiffUpError, match="unknown order"):
        episodes.hsnet_stream(lists, classes, shots=1, count=1, order="sorted")


def test_hsnet_supports_may_repeat_but_never_are_the_query():
    lists = lists_of(Names(3))
    draws = episodes.hsnet_stream(lists, CLASSES, shots=5, count=50)
    for draw in draws:
        lawful(draw, ways=1, shots=5, distinct=False)
    assert any(len(set(d.supports[0])) < 5 for d in draws)
    with pytest.raises(DiffUpError, match="class 1 has 1 image"):
        episodes.hsnet_stream(lists_of(Names(1)), CLASSES, shots=1, count=1)
    # A list that names one image twice has one image: this must not run forever.
    with pytest.raises(DiffUpError, match="class 3 has 1 image"):
        episodes.hsnet_stream({3: ("a", "a")}, (3,), shots=1, count=1)
    with pytest.raises(DiffUpError, match="needs 4"):
        episodes.hsnet_stream(lists, CLASSES, shots=3, count=1, distinct=True)


def test_one_shot_lists_of_hsnet_and_original_are_the_same():
    lists = lists_of(Names(6))
    one, other = (
        episodes.hsnet_stream(lists, CLASSES, shots=1, count=60, distinct=distinct)
        for distinct in (False, True)
    )
    assert one == other


@COMPACT
@given(
    images=st.integers(2, 9),
    shots=st.integers(1, 8),
    ways=st.integers(1, 5),
    classes=st.integers(5, 8),
    seed=st.integers(0, 2**32),
    count=st.integers(1, 30),
)
def test_clean_is_balanced_distinct_and_repeatable(
    images, shots, ways, classes, seed, count
):
    source, novel = Names(images, classes), tuple(range(classes))
    options = {"shots": shots, "seed": seed, "ways": ways}
    if images <= shots:
        with pytest.raises(DiffUpError, match=f"need {shots + 1}"):
            episodes.clean_draws(source, novel, count=count, **options)
        return
    draws = episodes.clean_draws(source, novel, count=count, **options)
    for draw in draws:
        lawful(draw, ways=ways, shots=shots, distinct=True)
    often = Counter(d.class_ids[0] for d in draws)
    assert max(often.values()) - min(often[c] for c in novel) <= 1
    # An episode depends on (seed, index): a shorter list begins a longer one.
    short = episodes.clean_draws(source, novel, count=count // 2 + 1, **options)
    assert draws[: len(short)] == short
    # More ways leave way 0 as it was.
    alone = episodes.clean_draws(
        source, novel, shots=shots, seed=seed, count=count, ways=1
    )
    for draw, one in zip(draws, alone, strict=True):
        assert draw.class_ids[:1] == one.class_ids and draw.query == one.query
        assert draw.supports[:1] == one.supports


def test_another_seed_is_another_list():
    one, other = (
        episodes.clean_draws(Names(8), CLASSES, shots=2, count=40, seed=seed)
        for seed in (3, 4)
    )
    assert one != other


def test_ways_are_limited_by_the_classes():
    for ways in (0, 4, 6):
        with pytest.raises(DiffUpError, match="expected 1 to 3"):
            episodes.clean_draws(Names(4), CLASSES, shots=1, count=1, seed=0, ways=ways)


@COMPACT
@given(
    index=st.integers(0, 10**6),
    seed=st.integers(0, 2**32),
    ways=st.integers(1, 3),
    shots=st.integers(1, 4),
)
def test_training_draws_are_pure(index, seed, ways, shots):
    def draw(ways):
        return episodes.training_draw(
            Names(5), CLASSES, shots=shots, seed=seed, index=index, ways=ways
        )

    lawful(draw(ways), ways=ways, shots=shots, distinct=True)
    assert draw(ways) == draw(ways)
    assert draw(ways).supports[0] == draw(1).supports[0]


def test_training_draws_reach_everything():
    source = Names(5)

    def draw(index, seed=0):
        return episodes.training_draw(
            source, CLASSES, shots=3, seed=seed, index=index, ways=2
        )

    draws = [draw(i) for i in range(400)]
    assert len(set(draws)) > 300
    assert draws[:50] != [draw(i, seed=1) for i in range(50)]
    assert {d.query for d in draws} == {i for c in CLASSES for i in source.image_ids(c)}
    for way in (0, 1):  # uniform over classes: 133 expected each
        assert min(Counter(d.class_ids[way] for d in draws).values()) > 90


def test_an_object_of_the_query_photograph_is_no_support():
    images = ("p#1", "q#1", "r#4")
    for seed in range(20):
        chosen = episodes.other_supports(images, "p#2", 2, np.random.default_rng(seed))
        assert sorted(chosen) == ["q#1", "r#4"]


def test_sha_of_one_way_is_the_published_form_and_sees_every_field():
    draw = Draw((2,), "a", (("b", "c"),))
    form = json.dumps([(2, "a", ["b", "c"])])
    published = hashlib.sha256(form.encode()).hexdigest()[:16]
    assert lists.draws_sha([draw]) == published
    others = [
        draw._replace(class_ids=(3,)),
        draw._replace(query="b"),
        draw._replace(supports=(("c", "b"),)),
        Draw((2, 3), "a", (("b",), ("c",))),
        Draw((2, 3), "a", (("b",), ("d",))),
    ]
    names = {lists.draws_sha([d]) for d in (draw, *others)}
    assert len(names) == 6


@pytest.mark.parametrize("ways", [1, 3])
def test_lists_round_trip_and_leave_nothing_behind(tmp_path, ways):
    draws = episodes.clean_draws(
        Names(6), CLASSES, shots=2, count=20, seed=0, ways=ways
    )
    meta = {"protocol": "clean", "seed": 0, "benchmark": "é", "fold": 1, "shots": 2}
    path = tmp_path / "new" / "list.jsonl"
    lists.write_draws(path, draws, meta)
    again, found = lists.read_draws(path)
    assert again == draws
    assert found == {**meta, "count": 20, "sha": lists.draws_sha(draws)}
    assert [p.name for p in path.parent.iterdir()] == ["list.jsonl"]


def test_a_failed_write_keeps_the_old_list(tmp_path, monkeypatch):
    path = tmp_path / "list.jsonl"
    lists.write_draws(path, [Draw((0,), "a", (("b",),))], {})
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(lists.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        lists.write_draws(path, [Draw((1,), "c", (("d",),))], {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["list.jsonl"]


def test_changed_lists_are_refused(tmp_path):
    path = tmp_path / "list.jsonl"
    draws = [Draw((0,), "a", (("b",),)), Draw((1,), "c", (("d",),))]
    lists.write_draws(path, draws, {})
    whole = path.read_text()
    path.write_text(whole.replace('"c"', '"e"'))
    with pytest.raises(DiffUpError, match="changed or cut short"):
        lists.read_draws(path)
    path.write_text("\n".join(whole.splitlines()[:-1]))
    with pytest.raises(DiffUpError, match="its 1 episodes"):
        lists.read_draws(path)
    more = ("[1]", '["a", "b", ["c"]]', '[[1, 2], "b", [["c"]]]', '[1, "b", [3]]')
    for text in ("", json.dumps([1, 2]), *(f"{whole}{line}" for line in more)):
        path.write_text(text)
        with pytest.raises(DiffUpError, match="not an episode list"):
            lists.read_draws(path)
    with pytest.raises(DiffUpError, match="none.jsonl is missing.*freeze_episodes"):
        lists.read_draws(tmp_path / "none.jsonl")


@pytest.mark.parametrize("ways", [1, 2])
def test_a_list_that_fits_is_answered_as_it_is(ways):
    source = Names(6)
    draws = episodes.clean_draws(source, CLASSES, shots=2, count=9, seed=0, ways=ways)
    assert draws == lists.check_draws(draws, source, classes=CLASSES, name="the list")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (Draw((1,), "c1i9", (("c1i1",),)), ["list, episode 1", "'c1i9'", "class 1"]),
        (Draw((1,), "c1i1", (("c3i1",),)), ["'c3i1' with class 1 (class 1)", "names"]),
        (Draw((2,), "c2i1", (("c2i2",),)), ["class 2", "expected one of [1, 3, 5]"]),
        (Draw((1,), "c1i1", (("c1i2", "c1i3"),)), ["[2] supports", "[1]"]),
        (Draw((1, 3), "c1i1", (("c1i2",), ("c3i2",))), ["[1, 1] supports"]),
    ],
)
def test_a_list_that_does_not_fit_is_refused(changed, words):
    draws = [Draw((1,), "c1i0", (("c1i1",),)), changed]
    with pytest.raises(DiffUpError) as error:
        lists.check_draws(draws, Names(6), classes=CLASSES, name="list")
    assert all(word in str(error.value) for word in words)


def test_an_empty_list_is_refused():
    with pytest.raises(DiffUpError, match="no episodes"):
        lists.check_draws([], Names(6), classes=CLASSES, name="list")


@pytest.mark.parametrize("old", [True, False])
def test_published_names_find_the_images_of_2014_and_of_2017(old):
    names = ("COCO_val2014_000000000042", "COCO_val2014_000000000073")
    own = names if old else tuple(name[-12:] for name in names)

    class Coco(Names):
        def image_ids(self, class_id):
            return own

    published = [Draw((1,), f"val2014/{names[0]}.jpg", ((f"val2014/{names[1]}.jpg",),))]
    fitted = lists.check_draws(published, Coco(1), classes=(1,), name="list")
    assert fitted == (Draw((1,), own[0], ((own[1],),)),)
