"""Cues: what each kind and convention claims to know, on masks of every shape."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from hypothesis.extra import numpy as arrays
from PIL import Image
from scipy import ndimage

from demo import cue_pictures
from diffup_jax.data import cues, rasters
from diffup_jax.data.cues import Conventions
from diffup_jax.types import CUES, DiffUpError

SIZE = 40
STANDARD = Conventions("tight", "stroke", 20)
VARIANTS = {
    "mask": ("mask", STANDARD),
    "tight": ("box", STANDARD),
    "component": ("box", Conventions("component", "stroke", 20)),
    "instance": ("box", Conventions("instance", "stroke", 20)),
    "stroke": ("scribble", STANDARD),
    "skeleton": ("scribble", Conventions("tight", "skeleton", 20)),
    "point": ("point", STANDARD),
}


def shapes() -> dict[str, np.ndarray]:
    masks = {
        name: np.zeros((SIZE, SIZE), bool)
        for name in ("pixel", "corner", "full", "ring", "line", "parts", "diagonal")
    }
    masks["pixel"][17, 23] = True
    masks["corner"][SIZE - 1, SIZE - 1] = True
    masks["full"][:] = True
    masks["ring"][8:30, 8:30] = True
    masks["ring"][12:26, 12:26] = False
    masks["line"][:, 0] = True
    masks["parts"][2:5, 3:9] = masks["parts"][30:39, 20:22] = True
    np.fill_diagonal(masks["diagonal"], True)
    return masks


def make(name, mask, *, seed=0, ignore=None, instances=None):
    kind, conventions = VARIANTS[name]
    return cues.make_cue(
        kind,
        mask,
        generator=np.random.default_rng(seed),
        size=mask.shape[0],
        ignore=ignore,
        conventions=conventions,
        instances=instances,
    )


def check_laws(name, mask, fg, bg, ignore):
    """What holds for every cue of a mask, given its known pixels."""
    assert fg.dtype == bg.dtype == bool
    assert fg[mask & ~ignore].any(), "a cue is never empty"
    assert not (fg & bg).any(), "no pixel is both"
    assert not fg[ignore].any() and not bg[ignore].any(), "ignored pixels are unknown"
    assert not bg[mask].any(), "foreground is never called background"
    if name not in ("tight", "component", "instance"):
        assert not fg[~mask].any(), "only a box may claim more than the mask"
    if name in ("stroke", "skeleton", "point"):
        assert not bg.any(), "a scribble says nothing about the background"


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("shape", list(shapes()))
@pytest.mark.parametrize("seed", range(3))
def test_laws_of_every_cue(name, shape, seed):
    mask = shapes()[shape]
    ignore = np.zeros_like(mask)
    ignore[3:12, :] = ~mask[3:12, :]
    fg, bg = make(name, mask, seed=seed, ignore=ignore)
    check_laws(name, mask, fg, bg, ignore)


def pixels(side: int) -> strategies.SearchStrategy:
    """Masks of one side, from single pixels to noise to blocks."""
    noise = arrays.arrays(bool, (side, side))
    blocks = arrays.arrays(bool, (side // 4, side // 4)).map(
        lambda small: np.kron(small, np.ones((4, 4), bool))
    )
    return strategies.one_of(noise, blocks).filter(np.any)


@hypothesis.settings(deadline=None, max_examples=120)
@hypothesis.given(
    name=strategies.sampled_from(sorted(VARIANTS)),
    mask=pixels(16),
    ignore=pixels(16),
    known=strategies.booleans(),
    seed=strategies.integers(0, 99),
)
def test_laws_hold_for_any_mask(name, mask, ignore, known, seed):
    ignore = ignore & ~mask if known else ignore
    hypothesis.assume((mask & ~ignore).any())
    fg, bg = make(name, mask, seed=seed, ignore=ignore)
    check_laws(name, mask & ~ignore, fg, bg, ignore)
    again = make(name, mask, seed=seed, ignore=ignore)
    assert (fg == again[0]).all() and (bg == again[1]).all(), "the seed tells it all"


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(mask=pixels(16))
def test_a_tight_box_touches_the_mask_on_all_sides(mask):
    fg, bg = make("tight", mask)
    rows, columns = np.nonzero(mask)
    box = np.zeros_like(mask)
    box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    assert (fg == box).all() and (bg == ~box).all()


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(mask=pixels(16))
def test_component_boxes_cover_the_mask_inside_the_tight_box(mask):
    fg, bg = make("component", mask)
    tight = make("tight", mask)[0]
    assert (fg >= mask).all() and (fg <= tight).all() and (fg + bg == 1).all()
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    box = np.zeros_like(mask)
    for number in range(1, count + 1):
        rows, columns = np.nonzero(labels == number)
        box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    assert (fg == box).all()


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(mask=pixels(16), numbers=arrays.arrays(np.uint16, (16, 16)))
def test_an_instance_box_knows_the_largest_alone(mask, numbers):
    numbers = np.where(mask, numbers % 4, 0).astype(np.uint16)
    hypothesis.assume(numbers.any())
    fg, bg = make("instance", mask, instances=numbers)
    areas = [np.count_nonzero(numbers == n) for n in range(1, 4)]
    largest = numbers == 1 + int(np.argmax(areas))
    assert (fg == make("tight", largest)[0]).all()
    every = np.zeros_like(fg)
    for n in range(1, 4):
        if areas[n - 1]:
            every = np.maximum(every, make("tight", numbers == n)[0])
    assert (bg == (1 - every) * ~mask).all()
    assert not (fg + bg)[(every > 0) & (fg == 0)].any(), "the others are unknown"


def test_two_instances_that_touch_are_two_boxes_only_when_told():
    mask = np.zeros((SIZE, SIZE), bool)
    mask[10:20, 5:30] = True
    instances = mask.astype(np.uint16)
    instances[10:20, 20:30] = 2
    told = make("instance", mask, instances=instances * mask)[0]
    alone = make("instance", mask)[0]
    assert told.sum() == 150 and alone.sum() == 250


def test_ignored_instances_do_not_count():
    mask = shapes()["parts"]
    instances = rasters.components(mask)
    fg, bg = make("instance", mask, ignore=instances == 1, instances=instances)
    assert fg.sum() == (instances == 2).sum()
    assert not bg[instances > 0].any() and bg.any()


def test_instances_that_resizing_lost_leave_the_mask_to_tell():
    mask = shapes()["pixel"]
    nothing = np.zeros((SIZE, SIZE), np.uint16)
    fg, bg = make("instance", mask, instances=nothing)
    assert (fg == mask).all() and (bg == ~mask).all()


def test_a_mask_cue_knows_every_pixel():
    mask = shapes()["parts"]
    fg, bg = make("mask", mask)
    assert (fg == mask).all() and (bg == ~mask).all()


@pytest.mark.parametrize("points", [1, 20])
@pytest.mark.parametrize("pixels", [1, 5, 20, 300])
def test_points_are_as_many_as_the_convention_or_all(pixels, points):
    mask = np.zeros((SIZE, SIZE), bool)
    mask.flat[:pixels] = True
    fg, bg = cues.make_cue(
        "point",
        mask,
        generator=np.random.default_rng(0),
        size=SIZE,
        ignore=None,
        conventions=Conventions("tight", "stroke", points),
        instances=None,
    )
    assert fg.sum() == min(points, pixels) and not bg.any() and not (fg & ~mask).any()


def test_fewer_points_are_log_uniform_and_leave_the_rest_as_it_is():
    rule = Conventions("tight", "stroke", 20)
    random = np.random.default_rng(0)
    drawn = [rule.with_fewer_points(random, fewest=1) for _ in range(4000)]
    counts = np.bincount([each.points for each in drawn], minlength=21)
    assert counts[0] == 0 and len(counts) == 21 and (counts[1:] > 0).all()
    # 4.5 is the geometric middle of 1 and 20.
    assert abs(counts[:5].sum() / 4000 - np.log(4.5) / np.log(20)) < 0.03
    assert all((each.box, each.scribble) == ("tight", "stroke") for each in drawn)
    # All of them, where that is the fewest, or too many.
    for fewest in (20, 30):
        assert rule.with_fewer_points(random, fewest=fewest) == rule


def test_a_text_marks_nothing_and_needs_no_mask():
    fg, bg = cues.make_cue(
        "text",
        np.zeros((SIZE, SIZE), bool),
        generator=np.random.default_rng(0),
        size=SIZE,
        ignore=None,
        conventions=STANDARD,
        instances=None,
    )
    assert fg.shape == bg.shape == (SIZE, SIZE) and not fg.any() and not bg.any()


def test_generator_depends_on_its_three_facts_only():
    def first(*facts):
        return cues.cue_generator(*facts).random()

    facts = [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a1", 1)]
    assert len({first(*f) for f in facts}) == len(facts)
    assert first(0, "a", 1) == first(0, "a", 1)


def test_mixtures_name_their_kinds_in_order():
    assert cues.mixture("mask") == ("mask",)
    assert cues.mixture("scribble+mask+point") == ("scribble", "mask", "point")
    assert cues.mixture("text+mask") == ("text", "mask")
    assert cues.marking(("text", "mask", "box")) == ("mask", "box")
    assert cues.any_text(("box", "mask+text")) and not cues.any_text(("mask+box",))
    for wrong in ("", "mask+", "mask+word", "mask+mask", "boxes"):
        with pytest.raises(DiffUpError, match="is unknown"):
            cues.mixture(wrong)


def test_conventions_are_told_of_the_cues_that_have_them():
    rule = Conventions("instance", "skeleton", 3)
    assert rule.told(("mask", "text")) == ""
    assert rule.told(("point", "mask", "box")) == "point of 3 px, instance box"
    assert rule.told(("scribble",)) == "skeleton scribble"


def test_mistakes_are_told():
    mask = shapes()["ring"]
    with pytest.raises(DiffUpError, match="no foreground pixel"):
        make("mask", mask & False)
    with pytest.raises(DiffUpError, match="no foreground pixel"):
        make("tight", mask, ignore=mask)
    with pytest.raises(DiffUpError, match="unknown box convention 'loose'"):
        Conventions("loose", "stroke", 20)
    with pytest.raises(DiffUpError, match="unknown scribble convention"):
        Conventions("tight", "line", 20)
    with pytest.raises(DiffUpError, match="0 pixels; expected at least 1"):
        Conventions("tight", "stroke", 0)
    options = {"generator": np.random.default_rng(0), "ignore": None}
    options |= {"conventions": STANDARD, "instances": None}
    with pytest.raises(DiffUpError, match="no cue is called 'sketch'"):
        cues.make_cue("sketch", mask, size=SIZE, **options)
    with pytest.raises(DiffUpError, match=r"expected \(41, 41\)"):
        cues.make_cue("mask", mask, size=41, **options)
    assert {*cues.KINDS, "text"} == set(CUES)


def test_the_pictures_show_every_convention(tmp_path, capsys):
    out = tmp_path / "deep" / "cues.png"
    assert cue_pictures.main(["--out", str(out), "--scenes", "2"]) == 0
    with Image.open(out) as page:
        width, height = page.size
    assert width % len(cue_pictures.VARIANTS) == 0 and height > width / 2
    assert [path.name for path in out.parent.iterdir()] == ["cues.png"]
    told = capsys.readouterr().out
    assert all(f"| {name} |" in told for name, _, _ in cue_pictures.VARIANTS)
    shown = {
        (kind, getattr(conventions, kind, None))
        for _, kind, conventions in cue_pictures.VARIANTS
    }
    boxes = {("box", name) for name in cues.BOXES}
    lines = {("scribble", name) for name in cues.SCRIBBLES}
    assert shown == {("mask", None), ("point", None), ("text", None)} | boxes | lines


def test_what_is_measured_is_ordered_as_the_conventions_are():
    marked = cue_pictures.measure(scenes=3, seed=1)
    assert marked["mask"][:3] == (1, 1, 1)
    assert marked["box tight"].mask == marked["box component"].mask == 1
    assert marked["box tight"].inside <= marked["box component"].inside < 1
    assert marked["box instance"].mask <= 1
    for name in ("scribble stroke", "scribble skeleton", "point"):
        assert 0 < marked[name].mask < 1 and marked[name].inside == 1
        assert marked[name].background == 0
    assert marked["text"].mask == 0 and np.isnan(marked["text"].inside)


def test_the_pictures_refuse_another_format(tmp_path, capsys):
    assert cue_pictures.main(["--out", str(tmp_path / "cues.jpg")]) == 2
    assert ".png" in capsys.readouterr().err
