"""Cues: what each kind claims to know, on masks of every awkward shape."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from diffup_jax.data import cues
from diffup_jax.types import CUES, DiffUpError

SIZE = 40


def shapes() -> dict[str, np.ndarray]:
    masks = {
        name: np.zeros((SIZE, SIZE), bool)
        for name in ("pixel", "corner", "full", "ring", "line", "parts")
    }
    masks["pixel"][17, 23] = True
    masks["corner"][SIZE - 1, SIZE - 1] = True
    masks["full"][:] = True
    masks["ring"][8:30, 8:30] = True
    masks["ring"][12:26, 12:26] = False
    masks["line"][:, 0] = True
    masks["parts"][2:5, 3:9] = masks["parts"][30:39, 20:22] = True
    return masks


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("kind", cues.KINDS)
@pytest.mark.parametrize("shape", list(shapes()))
@pytest.mark.parametrize("seed", range(4))
def test_laws_of_every_cue(kind, shape, seed):
    mask = shapes()[shape]
    ignore = np.zeros_like(mask)
    ignore[3:12, :] = ~mask[3:12, :]
    fg, bg = cues.make_cue(
        kind, mask, generator=generator(seed), size=SIZE, ignore=ignore
    )
    assert fg.dtype == bg.dtype == np.float32
    assert set(np.unique(fg)) | set(np.unique(bg)) <= {0.0, 1.0}
    assert (fg[mask] > 0).any(), "a cue is never empty"
    assert not (fg * bg).any(), "no pixel is both"
    assert not fg[ignore].any() and not bg[ignore].any(), "ignored pixels are unknown"
    assert not bg[mask].any(), "foreground is never called background"
    if kind != "box":
        assert not fg[~mask].any(), "only a box may claim more than the mask"


def test_mask_and_box_know_every_pixel():
    mask = shapes()["parts"]
    fg, bg = cues.make_cue("mask", mask, generator=generator(), size=SIZE)
    assert (fg == mask).all() and (bg == ~mask).all()
    fg, bg = cues.make_cue("box", mask, generator=generator(), size=SIZE)
    box = np.zeros_like(mask)
    box[2:39, 3:22] = True
    assert (fg == box).all() and (bg == ~box).all()


@pytest.mark.parametrize("pixels", [1, 5, 20, 300])
def test_points_are_twenty_or_all(pixels):
    mask = np.zeros((SIZE, SIZE), bool)
    mask.flat[:pixels] = True
    fg, bg = cues.make_cue("point", mask, generator=generator(), size=SIZE)
    assert fg.sum() == min(20, pixels) and not bg.any()


def test_scribbles_are_thin_and_differ():
    mask = np.ones((256, 256), bool)
    drawn = [
        cues.make_cue("scribble", mask, generator=generator(s), size=256)[0]
        for s in range(40)
    ]
    cover = np.array([d.mean() for d in drawn])
    assert (cover > 0).all() and cover.mean() < 0.3
    assert len({d.tobytes() for d in drawn}) == 40
    assert len(set(np.round(cover, 3))) > 20  # one stroke or many, thin or thick


def test_scribble_scales_with_the_image():
    cover = {}
    for size in (128, 512):
        mask = np.ones((size, size), bool)
        cover[size] = np.mean(
            [
                cues.make_cue("scribble", mask, generator=generator(s), size=size)[0]
                for s in range(30)
            ]
        )
    assert 0.5 < cover[128] / cover[512] < 2  # thinnest brushes round up to one pixel


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    cells=strategies.sets(strategies.integers(0, 8 * 8 - 1), min_size=1),
    seed=strategies.integers(0, 99),
)
def test_any_mask_gives_a_scribble_inside_it(cells, seed):
    mask = np.zeros((8, 8), bool)
    mask.flat[list(cells)] = True
    fg, _ = cues.make_cue("scribble", mask, generator=generator(seed), size=8)
    assert fg.any() and not fg[~mask].any()


def test_generator_depends_on_its_three_facts_only():
    def first(*facts):
        return cues.cue_generator(*facts).random()

    facts = [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a1", 1)]
    assert len({first(*f) for f in facts}) == len(facts)
    assert first(0, "a", 1) == first(0, "a", 1)


def test_mistakes_are_told():
    mask = shapes()["ring"]
    with pytest.raises(DiffUpError, match="no foreground pixel"):
        cues.make_cue("mask", mask & False, generator=generator(), size=SIZE)
    with pytest.raises(DiffUpError, match="no foreground pixel"):
        cues.make_cue("box", mask, generator=generator(), size=SIZE, ignore=mask)
    with pytest.raises(DiffUpError, match="no cue 'text'"):
        cues.make_cue("text", mask, generator=generator(), size=SIZE)
    with pytest.raises(DiffUpError, match=r"expected \(41, 41\)"):
        cues.make_cue("mask", mask, generator=generator(), size=41)
    assert set(cues.KINDS) < set(CUES)
