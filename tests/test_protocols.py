"""Protocols: the rules as stated, and the laws of the lists they make."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffup_jax.data import draws as rules
from diffup_jax.data import episodes, protocols
from diffup_jax.data.benchmarks import BENCHMARKS
from diffup_jax.data.protocols import PROTOCOLS
from diffup_jax.types import DiffUpError

COMPACT = settings(max_examples=30, deadline=None)
CLASSES = tuple(range(5))


class Squares:
    """A source of 100 x 100 pixels: `pixels[image][class]` of each class."""

    name, root = "squares", "nowhere"

    def __init__(self, pixels: dict[str, dict[int, int]]):
        self.pixels = pixels
        self.class_names = tuple(f"class {c}" for c in CLASSES)
        self.class_folds = (0,) * len(CLASSES)

    def image_ids(self, class_id):
        return tuple(i for i, held in self.pixels.items() if class_id in held)

    def image(self, image_id):
        raise AssertionError("draws read no photograph")

    def mask(self, image_id, class_id):
        mask = np.zeros((100, 100), bool)
        mask.flat[: self.pixels[image_id].get(class_id, 0)] = True
        return mask, np.zeros_like(mask)

    def instances(self, image_id, class_id):
        raise AssertionError("draws need no instances")


def crowded(seed: int, images: int = 120) -> Squares:
    """Images with one to three classes, of 50 to 4000 pixels."""
    generator = np.random.default_rng(seed)
    pixels = {}
    for number in range(images):
        several = 1 + int(generator.integers(3)) * (number % 2)
        classes = generator.choice(len(CLASSES), several, replace=False)
        held = {int(c): int(generator.integers(50, 4000)) for c in classes}
        pixels[f"image{number:03d}"] = held
    return Squares(pixels)


def make(source, name, *, kind="voc", shots=2, ways=1, count=40, seed=0):
    protocol = PROTOCOLS[name]
    pool = rules.pool_of(source, CLASSES, protocol=protocol, benchmark=BENCHMARKS[kind])
    drawn = rules.evaluation_draws(
        pool, CLASSES, protocol=protocol, benchmark=BENCHMARKS[kind],
        shots=shots, ways=ways, count=count, seed=seed,
    )  # fmt: skip
    return pool, drawn


def test_the_rows_say_what_the_papers_say():
    hsnet, pfenet, denet = (PROTOCOLS[name] for name in ("hsnet", "pfenet", "denet"))
    assert (hsnet.frame, hsnet.scored_at, hsnet.seed) == ("square", "network", 0)
    assert hsnet.query_ignore and not hsnet.support_ignore and not hsnet.distinct
    assert hsnet.image_sizes == {} == hsnet.min_area
    assert (pfenet.frame, pfenet.scored_at) == ("pad", "original")
    assert pfenet.min_pixels == 2048
    assert pfenet.image_sizes == {"pascal": 473, "coco": 641}
    assert set(denet.image_sizes.values()) == {321} and denet.skip_empty
    assert (denet.min_area["pascal"], denet.min_area["coco"]) == (0.02, 0.01)
    changed = {"name", "used_by", "scored_at", "distinct"}
    original = PROTOCOLS["original"]
    assert {
        key for key in vars(hsnet) if getattr(hsnet, key) != getattr(original, key)
    } == changed


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("hsnet", "coco", 1000),
        ("hsnet", "fss1000", 2400),
        ("original", "lvis92i", 2300),
        ("hsnet", "paco_part", 2500),
        ("hsnet", "pascal_part", 12),
        ("clean", "pascal_part", 1000),
        ("denet", "voc", 1000),
    ],
)
def test_numbers_of_episodes(name, kind, count):
    lists = dict.fromkeys(range(3), ("a", "b", "c", "d"))
    assert count == rules.episode_count(
        rules.Pool(lists, lists), protocol=PROTOCOLS[name], benchmark=BENCHMARKS[kind]
    )


def test_one_line_for_each_protocol():
    lines = protocols.lines()
    assert [line.split(":")[0] for line in lines] == list(PROTOCOLS)
    assert all("\n" not in line for line in lines)
    assert "2048 px" in lines[2] and "473 or 641" in lines[2]
    with pytest.raises(DiffUpError, match="unknown protocol 'coco'"):
        protocols.get("coco")
    assert protocols.get(protocols.DEFAULT).name == "hsnet"


@pytest.mark.parametrize(
    ("name", "kind", "least"),
    [("pfenet", "voc", 2048), ("denet", "voc", 200), ("denet", "coco", 100)],
)
def test_a_class_counts_from_its_smallest_allowed_area_on(name, kind, least):
    source = Squares({f"i{n}": {0: n} for n in (least - 1, least, least + 1)})
    pool = rules.pool_of(
        source, (0,), protocol=PROTOCOLS[name], benchmark=BENCHMARKS[kind]
    )
    assert pool.large[0] == [f"i{least}", f"i{least + 1}"]
    assert len(pool.anywhere[0]) == 3


@pytest.mark.parametrize("name", list(PROTOCOLS))
@COMPACT
@given(world=st.integers(0, 5), seed=st.integers(0, 2**32), shots=st.integers(1, 4))
def test_laws_of_one_way_lists(name, world, seed, shots):
    row = PROTOCOLS[name]
    pool, drawn = make(crowded(world), name, seed=seed, shots=shots)
    for draw in drawn:
        (class_id,), (images,) = draw.class_ids, draw.supports
        assert draw.query in pool.anywhere[class_id] and draw.query not in images
        assert set(images) <= set(pool.large[class_id]) and len(images) == shots
        assert not row.distinct or len(set(images)) == shots
    if row.balanced:
        often = Counter(d.class_ids[0] for d in drawn)
        assert [often[c] for c in CLASSES] == [8] * 5
    _, again = make(crowded(world), name, seed=seed, shots=shots)
    _, short = make(crowded(world), name, seed=seed, shots=shots, count=7)
    assert drawn == again and short == drawn[:7]


@pytest.mark.parametrize("name", ["clean", "denet"])
@COMPACT
@given(world=st.integers(0, 5), seed=st.integers(0, 2**32), ways=st.integers(2, 5))
def test_laws_of_several_ways(name, world, seed, ways):
    pool, drawn = make(crowded(world), name, seed=seed, ways=ways)
    often = Counter(d.class_ids[0] for d in drawn)
    assert [often[c] for c in CLASSES] == [8] * 5
    for draw in drawn:
        assert len(set(draw.class_ids)) == ways == len(draw.supports)
        assert draw.query in pool.large[draw.class_ids[0]]
        for class_id, images in zip(draw.class_ids, draw.supports, strict=True):
            assert len(set(images)) == 2 and draw.query not in images
            assert set(images) <= set(pool.large[class_id])
        if name == "denet":  # no pixel of a novel class that has no way
            outside = set(CLASSES) - set(draw.class_ids)
            assert not any(draw.query in pool.anywhere[c] for c in outside)
    assert make(crowded(world), name, seed=seed, ways=ways, count=5)[1] == drawn[:5]


def test_denet_takes_images_with_one_large_novel_class():
    source = crowded(1)
    pool, drawn = make(source, "denet")
    for draw in drawn:
        for image in (draw.query, *draw.supports[0]):
            large = [c for c in CLASSES if image in pool.large[c]]
            assert large == list(draw.class_ids)


def test_denet_leaves_out_what_it_cannot_draw():
    """A class that never stands alone has no 1-way episode, and still bars others."""
    alone = {f"a{n}": {0: 900, 2: 199} for n in range(3)}  # 2 is below the limit
    both = {f"b{n}": {0: 900, 1: 900} for n in range(9)}
    denet = PROTOCOLS["denet"]
    options = {"protocol": denet, "shots": 2}
    voc = BENCHMARKS["voc"]
    pool = rules.pool_of(Squares(alone | both), (0, 1), protocol=denet, benchmark=voc)
    with pytest.raises(DiffUpError, match="class 1 has 0 image"):
        rules.evaluation_draws(
            pool, (0, 1), benchmark=voc, ways=1, count=4, seed=0, **options
        )
    kept = rules.usable_classes(pool, (0, 1), ways=1, **options)
    assert kept == (0,)
    drawn = rules.evaluation_draws(
        pool, kept, benchmark=voc, ways=1, count=30, seed=0, **options
    )
    assert {d.query for d in drawn} == set(alone)
    assert rules.usable_classes(pool, (0, 1), ways=2, **options) == (0, 1)
    with pytest.raises(DiffUpError, match="no class is left"):
        rules.evaluation_draws(
            pool, (), benchmark=voc, ways=1, count=1, seed=0, **options
        )


def test_denet_says_when_no_query_is_left():
    source = Squares({f"i{n}": dict.fromkeys(CLASSES, 900) for n in range(5)})
    with pytest.raises(DiffUpError, match="outside any 2 ways"):
        make(source, "denet", ways=2)
    assert len(make(source, "denet", ways=5)[1]) == 40


def test_pfenet_walks_the_images_and_may_score_a_small_object():
    source = Squares(
        {f"a{n}": {0: 3000, 1: 10} for n in range(4)}
        | {f"b{n}": {1: 3000} for n in range(3)}
        | {f"c{n}": {2: 3000} for n in range(3)}
        | {f"d{n}": {c: 3000} for c in (3, 4) for n in range(3 * c, 3 * c + 3)}
        | {"tiny": {2: 10}}
    )
    _, drawn = make(source, "pfenet", count=64)
    queries = sorted(set(source.pixels) - {"tiny"})
    assert [d.query for d in drawn] == (queries * 4)
    seen = {d.class_ids[0] for d in drawn if d.query.startswith("a")}
    assert seen == {0, 1}
    # Supports are never small, and the seed moves them but not the queries.
    assert not any(s.startswith("a") for d in drawn if d.class_ids == (1,)
                   for s in d.supports[0])  # fmt: skip
    _, other = make(source, "pfenet", count=64, seed=1)
    assert [d.query for d in other] == [d.query for d in drawn] and other != drawn


def test_hsnet_reads_no_mask_and_knows_the_order_of_a_benchmark():
    source = crowded(2)

    def mask(*_):
        raise AssertionError("hsnet measures nothing")

    source.mask = mask
    _, listed = make(source, "hsnet", kind="voc", count=20)
    pairs = sorted((i, c) for i, held in source.pixels.items() for c in held)
    assert [(d.query, d.class_ids[0]) for d in listed] == pairs[:20]
    _, turns = make(source, "hsnet", kind="lvis92i", count=20)
    assert [d.class_ids[0] for d in turns] == list(CLASSES) * 4
    lists = {c: source.image_ids(c) for c in CLASSES}
    _, drawn = make(source, "hsnet", kind="coco", count=20)
    assert drawn == episodes.hsnet_stream(lists, CLASSES, shots=2, count=20)
    # Pascal-Part's supports never repeat, whatever the protocol.
    few = Squares({f"i{c}{n}": {c: 900} for c in CLASSES for n in range(4)})
    for draw in make(few, "hsnet", kind="pascal_part", shots=3, count=60)[1]:
        assert len(set(draw.supports[0])) == 3


@pytest.mark.parametrize("name", ["hsnet", "original", "pfenet"])
def test_one_way_protocols_refuse_two_ways(name):
    with pytest.raises(DiffUpError, match=r"1 to 1 ways, not 2.*denet, clean"):
        make(crowded(0), name, ways=2)


def test_impossible_lists_are_refused():
    with pytest.raises(DiffUpError, match="at least 1"):
        make(crowded(0), "clean", shots=0)
    with pytest.raises(DiffUpError, match="at least 1"):
        make(crowded(0), "clean", count=0)
    with pytest.raises(DiffUpError, match="not 6"):
        make(crowded(0), "clean", ways=6)
    with pytest.raises(DiffUpError, match="class 1 has 0 image"):
        make(Squares({f"i{n}": {0: 3000} for n in range(9)}), "pfenet")
