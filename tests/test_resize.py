"""Frames: what the network sees of an image, and how its answer returns."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffup_jax.data import rasters, resize
from diffup_jax.types import DiffUpError


def picture(height, width, seed=0):
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
    masks = random.random((2, height, width)) < 0.3
    ignore = random.random((height, width)) < 0.1
    return image, masks & ~ignore, ignore


def test_square_is_the_hsnet_rule():
    image, masks, ignore = picture(50, 70)
    numbers = masks[0].astype(np.uint16) * 3
    view = resize.enter(image, masks, ignore, numbers, frame="square", size=32)
    assert (view.image == rasters.resize_image(image, 32)).all()
    for mask, small in zip(masks, view.masks, strict=True):
        assert (small == rasters.resize_mask(mask, 32)).all()
    assert (view.ignore == rasters.resize_mask(ignore, 32)).all()
    assert (view.instances == 3 * view.masks[0]).all()


@pytest.mark.parametrize(
    ("shape", "size", "rows", "columns"),
    [
        ((375, 500), 473, 352, 472),  # int(375 473 / 500) = 354, cut to 352
        ((500, 375), 473, 472, 352),
        ((480, 640), 641, 480, 640),
        ((64, 64), 48, 48, 48),
        ((4, 400), 64, 8, 64),  # never less than 8
    ],
)
def test_pad_keeps_the_aspect_and_ignores_the_rest(shape, size, rows, columns):
    image, masks, ignore = picture(*shape)
    view = resize.enter(image, masks, ignore, None, frame="pad", size=size)
    assert view.image.shape == (size, size, 3) and view.image.dtype == np.uint8
    assert view.masks.shape == (2, size, size) and view.instances is None
    inside = np.zeros((size, size), bool)
    inside[:rows, :columns] = True
    # Zero before any normalisation: black.
    assert not view.image[~inside].any() and not view.masks[:, ~inside].any()
    assert view.ignore[~inside].all() and not view.ignore[inside].all()
    bilinear = Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR)
    assert (view.image[:rows, :columns] == np.asarray(bilinear)).all()
    # Nearest: target row i reads source row floor(i h / rows).
    ys = [i * shape[0] // rows for i in range(rows)]
    xs = [j * shape[1] // columns for j in range(columns)]
    assert (view.masks[:, :rows, :columns] == masks[:, ys][:, :, xs]).all()
    assert (view.ignore[:rows, :columns] == ignore[ys][:, xs]).all()


@pytest.mark.parametrize("frame", resize.FRAMES)
@pytest.mark.parametrize("place", [(0, 0), (299, 399), (131, 57)])
def test_a_support_keeps_a_pixel_where_a_query_may_lose_all(frame, place):
    mask = np.zeros((1, 300, 400), bool)
    mask[0][place] = True
    image = np.zeros((300, 400, 3), np.uint8)
    maps = image, mask, ~mask[0], mask[0].astype(np.uint16)
    lost = [
        not resize.enter(*maps, frame=frame, size=size).masks.any()
        for size in range(24, 56, 8)
    ]
    assert any(lost) == (place != (0, 0))  # the nearest rule reads upper left corners
    for size in range(24, 56, 8):
        view = resize.enter_support(*maps, frame=frame, size=size)
        assert view.masks.sum() == 1 and not (view.masks[0] & view.ignore).any()
        assert (view.instances == view.masks[0]).all()
        at = np.argwhere(view.masks[0])[0]
        rows = size if frame == "square" else 3 * size // 4 // 8 * 8
        expected = np.array(place) * (rows, size) / (300, 400)
        assert (np.abs(at - expected) < 1.5).all()
    nothing = resize.enter_support(image, mask & False, ~mask[0], None,
                                   frame=frame, size=32)  # fmt: skip
    assert not nothing.masks.any()


@pytest.mark.parametrize("shape", [(7, 11), (40, 25), (1, 9), (64, 64)])
def test_an_answer_returns_by_aligned_corners(shape):
    """A bilinear function is its own interpolation: every pixel's value is known."""
    s = 16
    y, x = np.mgrid[:s, :s] / (s - 1)
    values = (0.2 + 0.3 * y + 0.4 * x + 0.1 * x * y).astype(np.float32)

    def at(height, width):
        v, u = np.meshgrid(
            *(np.linspace(0, 1, n) if n > 1 else [0.0] for n in (height, width)),
            indexing="ij",
        )
        return 0.2 + 0.3 * v + 0.4 * u + 0.1 * u * v

    square = resize.leave(values, shape, frame="square")
    assert square.shape == shape and square.dtype == np.float32
    np.testing.assert_allclose(square, at(*shape), atol=1e-6)
    # "pad": the whole square of the longer side, of which the image is a corner.
    longer = max(shape)
    padded = resize.leave(values, shape, frame="pad")
    np.testing.assert_allclose(
        padded, at(longer, longer)[: shape[0], : shape[1]], atol=1e-6
    )


def test_leaving_at_the_same_size_changes_nothing():
    values = np.random.default_rng(0).random((24, 24), np.float32)
    for frame in resize.FRAMES:
        assert (resize.leave(values, (24, 24), frame=frame) == values).all()


def test_entering_and_leaving_is_nearly_the_mask():
    """A large smooth object comes back where it was, in both frames."""
    y, x = np.mgrid[:180, :240]
    mask = (y - 80) ** 2 + (x - 130) ** 2 < 55**2
    image = np.zeros((180, 240, 3), np.uint8)
    for frame in resize.FRAMES:
        view = resize.enter(
            image, mask[None], np.zeros_like(mask), None, frame=frame, size=120
        )
        back = resize.leave(view.masks[0].astype(np.float32), (180, 240), frame=frame)
        back = back > 0.5
        assert (back & mask).sum() / (back | mask).sum() > 0.96


def test_an_unknown_frame_is_told():
    image, masks, ignore = picture(8, 8)
    with pytest.raises(DiffUpError, match="unknown frame 'round'"):
        resize.enter(image, masks, ignore, None, frame="round", size=8)
    with pytest.raises(DiffUpError, match="unknown frame 'round'"):
        resize.leave(np.zeros((8, 8), np.float32), (9, 9), frame="round")
