"""Draws: the protocols' laws, and lists that cannot be altered unseen."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from diffup_jax.data import episodes
from diffup_jax.data.episodes import Draw
from diffup_jax.types import DiffUpError


class Lists:
    """A source without pixels: class c has `images` names of its own."""

    name, root = "lists", "nowhere"

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


CLASSES = (1, 3, 5)


def test_hsnet_is_the_legacy_stream():
    source = Lists(7)
    draws = episodes.hsnet_draws(source, CLASSES, shots=2, count=30)
    legacy = np.random.RandomState(0)
    for draw in draws:
        class_id = legacy.choice(list(CLASSES), 1, replace=False)[0]
        names = list(source.image_ids(class_id))
        query = legacy.choice(names, 1, replace=False)[0]
        supports = []
        while len(supports) < 2:
            name = legacy.choice(names, 1, replace=False)[0]
            if name != query:
                supports.append(str(name))
        assert draw == (class_id, query, tuple(supports))


def test_hsnet_supports_may_repeat_but_never_are_the_query():
    draws = episodes.hsnet_draws(Lists(3), CLASSES, shots=5, count=50)
    assert all(d.query not in d.supports for d in draws)
    assert any(len(set(d.supports)) < 5 for d in draws)
    with pytest.raises(DiffUpError, match=r"1 image\(s\)"):
        episodes.hsnet_draws(Lists(1), CLASSES, shots=1, count=1)


def test_clean_is_balanced_distinct_and_stable():
    source = Lists(8)
    draws = episodes.clean_draws(source, CLASSES, shots=5, count=100, seed=3)
    counts = Counter(d.class_id for d in draws)
    assert (
        set(counts) == set(CLASSES) and max(counts.values()) - min(counts.values()) <= 1
    )
    for d in draws:
        assert len({d.query, *d.supports}) == 6
        assert {d.query, *d.supports} <= set(source.image_ids(d.class_id))
    # An episode depends on (seed, index): a shorter list is a prefix of a longer one.
    assert draws[:40] == episodes.clean_draws(
        source, CLASSES, shots=5, count=40, seed=3
    )
    assert draws != episodes.clean_draws(source, CLASSES, shots=5, count=100, seed=4)
    with pytest.raises(DiffUpError, match="need 9"):
        episodes.clean_draws(source, CLASSES, shots=8, count=1, seed=0)


def test_training_draws_are_pure_and_reach_everything():
    source = Lists(5)

    def draw(index, seed=0):
        return episodes.training_draw(source, CLASSES, shots=3, seed=seed, index=index)

    draws = [draw(i) for i in range(400)]
    assert draws[17] == draw(17) and len(set(draws)) > 200
    assert draws[:50] != [draw(i, seed=1) for i in range(50)]
    assert all(len({d.query, *d.supports}) == 4 for d in draws)
    assert {d.query for d in draws} == {i for c in CLASSES for i in source.image_ids(c)}
    counts = Counter(d.class_id for d in draws)
    assert min(counts.values()) > 90  # uniform over classes: 133 expected each


def test_sha_sees_every_field():
    draw = Draw(2, "a", ("b", "c"))
    others = [
        draw._replace(class_id=3),
        draw._replace(query="b"),
        draw._replace(supports=("c", "b")),
    ]
    names = {episodes.draws_sha([d]) for d in (draw, *others)}
    assert len(names) == 4 and all(len(name) == 16 for name in names)


def test_lists_round_trip_and_leave_nothing_behind(tmp_path):
    draws = episodes.clean_draws(Lists(6), CLASSES, shots=2, count=20, seed=0)
    meta = {"protocol": "clean", "seed": 0, "benchmark": "é", "fold": 1, "shots": 2}
    path = tmp_path / "new" / "list.jsonl"
    episodes.write_draws(path, draws, meta)
    again, found = episodes.read_draws(path)
    assert again == draws
    assert found == {**meta, "count": 20, "sha": episodes.draws_sha(draws)}
    assert [p.name for p in path.parent.iterdir()] == ["list.jsonl"]


def test_a_failed_write_keeps_the_old_list(tmp_path, monkeypatch):
    path = tmp_path / "list.jsonl"
    episodes.write_draws(path, [Draw(0, "a", ("b",))], {})
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(episodes.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        episodes.write_draws(path, [Draw(1, "c", ("d",))], {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["list.jsonl"]


def test_changed_lists_are_refused(tmp_path):
    path = tmp_path / "list.jsonl"
    episodes.write_draws(path, [Draw(0, "a", ("b",)), Draw(1, "c", ("d",))], {})
    whole = path.read_text()
    path.write_text(whole.replace('"c"', '"e"'))
    with pytest.raises(DiffUpError, match="changed or cut short"):
        episodes.read_draws(path)
    path.write_text("\n".join(whole.splitlines()[:-1]))
    with pytest.raises(DiffUpError, match="its 1 episodes"):
        episodes.read_draws(path)
    for text in ("", json.dumps([1, 2]), whole + "[1]"):
        path.write_text(text)
        with pytest.raises(DiffUpError, match="not an episode list"):
            episodes.read_draws(path)
    with pytest.raises(DiffUpError, match="cannot read the episode list"):
        episodes.read_draws(tmp_path / "none.jsonl")
