"""Scribbles: inside the mask, thin, in scale with the image, and where they lie."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from scipy import ndimage

from diffup_jax.data import rasters, scribbles

BOTH = (scribbles.stroke, scribbles.skeleton)


def rng(seed=0):
    return np.random.default_rng(seed)


def grid(side):
    return np.mgrid[:side, :side]


def test_strokes_are_thin_and_differ():
    mask = np.ones((256, 256), bool)
    drawn = [scribbles.stroke(mask, generator=rng(s)) for s in range(40)]
    cover = np.array([d.mean() for d in drawn])
    assert (cover > 0).all() and cover.mean() < 0.3
    assert len({d.tobytes() for d in drawn}) == 40
    assert len(set(np.round(cover, 3))) > 20  # one stroke or many, thin or thick


@pytest.mark.parametrize("draw", BOTH)
def test_scribble_scales_with_the_image(draw):
    cover = {}
    for size in (128, 512):
        mask = np.zeros((size, size), bool)
        mask[size // 8 : -size // 8, size // 4 : -size // 4] = True
        every = [draw(mask, generator=rng(s)).mean() for s in range(30)]
        cover[size] = np.mean(every)
    assert 0.5 < cover[128] / cover[512] < 2  # thinnest brushes round up to one pixel


@hypothesis.settings(deadline=None, max_examples=80)
@hypothesis.given(
    draw=strategies.sampled_from(BOTH),
    cells=strategies.sets(strategies.integers(0, 8 * 11 - 1), min_size=1),
    scale=strategies.sampled_from((1, 3, 25)),
    seed=strategies.integers(0, 99),
)
def test_any_mask_gives_a_scribble_inside_it(draw, cells, scale, seed):
    mask = np.zeros((8, 11), bool)
    mask.flat[list(cells)] = True
    mask = np.kron(mask, np.ones((scale, scale), bool))
    drawn = draw(mask, generator=rng(seed))
    assert drawn.any() and not drawn[~mask].any()
    if draw is scribbles.skeleton:
        assert not drawn[rasters.components(mask) != 1].any(), "the largest component"


def test_a_skeleton_is_a_function_of_the_mask_but_for_its_brush():
    y, x = grid(200)
    mask = (np.abs(y - 90 - 30 * np.sin(x / 30)) < 18) & (x > 10) & (x < 190)
    drawn = [scribbles.skeleton(mask, generator=rng(s)) for s in range(20)]
    drawn.sort(key=np.count_nonzero)
    thinnest, thickest = drawn[0], drawn[-1]
    assert thinnest.sum() < thickest.sum()
    assert (ndimage.binary_dilation(thinnest, np.ones((3, 3)), 3) | ~thickest).all()


def test_a_skeleton_runs_along_the_middle():
    y, x = grid(240)
    distance = np.hypot(y - 240, x - 120)
    arch = np.abs(distance - 100) < 15
    drawn = scribbles.skeleton(arch, generator=rng())
    assert np.abs(distance[drawn] - 100).mean() < 3
    assert np.ptp(np.nonzero(drawn)[1]) > 0.8 * 200, "it is nearly as long as the arch"
    assert ndimage.label(drawn, np.ones((3, 3)))[1] == 1


def test_a_skeleton_takes_the_longest_of_three_arms():
    mask = np.zeros((200, 200), bool)
    mask[95:105, 10:190] = True  # long
    mask[70:105, 60:70] = True  # a short arm
    drawn = scribbles.skeleton(mask, generator=rng())
    rows, columns = np.nonzero(drawn)
    assert np.ptp(columns) > 150 and rows.min() > 85


@pytest.mark.parametrize("radius", [4, 30, 90])
def test_a_disc_gets_a_line_through_its_middle(radius):
    y, x = grid(200)
    disc = (y - 100) ** 2 + (x - 100) ** 2 <= radius**2
    rows, columns = np.nonzero(scribbles.skeleton(disc, generator=rng()))
    length = np.hypot(np.ptp(rows), np.ptp(columns))
    assert 0.8 * radius < length < 2 * radius
    middle = np.hypot(rows.mean() - 100, columns.mean() - 100)
    assert middle < 0.2 * radius + 1


def test_a_skeleton_is_found_in_rings_and_threads():
    y, x = grid(180)
    distance = np.hypot(y - 90, x - 90)
    ring = np.abs(distance - 60) < 8
    drawn = scribbles.skeleton(ring, generator=rng())
    assert np.abs(distance[drawn] - 60).mean() < 4 and drawn.sum() > 100
    thread = np.zeros((180, 180), bool)
    np.fill_diagonal(thread, True)
    assert scribbles.skeleton(thread, generator=rng()).sum() > 90
