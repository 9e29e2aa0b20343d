"""Augmentation: image, mask and ignore move together and nothing is lost."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from msgspec import structs

from diffup_jax.data import resize
from diffup_jax.data.augment import Augment
from diffup_jax.data.augment import augment as make_view

STILL = Augment(
    flip=0.0, scale=(1.0, 1.0), aspect=1.0, brightness=0.0, contrast=0.0,
    saturation=0.0, hue=0.0, grey=0.0,
)  # fmt: skip
GEOMETRY = Augment(
    flip=0.5, scale=(0.4, 1.6), aspect=1.5, brightness=0.0, contrast=0.0,
    saturation=0.0, hue=0.0, grey=0.0,
)  # fmt: skip
SIZE = 96


def augment(image, mask, ignore, **arguments):
    """One way, no instances: (image, mask, ignore)."""
    view = make_view(image, mask[None], ignore, None, **arguments)
    assert view.instances is None and len(view.masks) == 1
    return view.image, view.masks[0], view.ignore


def plain(image, mask, ignore, *, size):
    view = resize.enter_support(
        image, mask[None], ignore, None, frame="square", size=size
    )
    return view.image, view.masks[0], view.ignore


def scene(height=150, width=210):
    """Red tells the mask, green the ignored pixels, blue neither."""
    mask = np.zeros((height, width), bool)
    mask[40:100, 60:150] = True
    mask[60:80, 90:110] = False
    ignore = np.zeros_like(mask)
    ignore[20:40, 10:200] = True
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 2] = 255
    image[mask] = (255, 0, 0)
    image[ignore] = (0, 255, 0)
    return image, mask, ignore


@pytest.mark.parametrize("seed", range(30))
def test_the_three_maps_move_together(seed):
    image, mask, ignore = augment(
        *scene(), generator=np.random.default_rng(seed), settings=GEOMETRY, size=SIZE
    )
    assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
    assert not (mask & ignore).any()
    pure = image.max(-1) > 250  # pixels mixed by the bilinear filter tell nothing
    padded = ignore & (image[..., 1] < 250)
    sure = pure & ~padded
    assert sure.mean() > 0.2
    assert (mask[sure] == (image[sure][:, 0] > 250)).all()
    assert (ignore[sure] == (image[sure][:, 1] > 250)).all()


@pytest.mark.parametrize("seed", range(6))
def test_ways_and_instances_move_with_the_image(seed):
    """Other ways and instances change nothing, and go where the pixels go."""
    image, mask, ignore = scene()
    other = np.zeros_like(mask)
    other[70:130, 100:190] = True  # overlaps the first
    instances = np.zeros(mask.shape, np.uint16)
    instances[mask] = 2
    instances[40:60][mask[40:60]] = 1

    def run(masks, instances):
        return make_view(
            image, np.stack(masks), ignore, instances,
            generator=np.random.default_rng(seed), settings=GEOMETRY, size=SIZE,
        )  # fmt: skip

    alone = run([mask], None)
    view = run([mask, other & ~ignore, ~mask & ~ignore], instances)
    assert (view.image == alone.image).all() and (view.ignore == alone.ignore).all()
    assert (view.masks[0] == alone.masks[0]).all()
    assert (view.masks[1] & view.masks[0]).any()
    # The third way is the first's complement among the valid pixels.
    assert (view.masks[2] == ~view.masks[0] & ~view.ignore).all()
    assert view.instances.dtype == np.uint16
    assert ((view.instances > 0) == view.masks[0]).all()
    assert set(np.unique(view.instances)) <= {0, 1, 2}


def test_still_settings_only_resize():
    image, mask, ignore = augment(
        *scene(), generator=np.random.default_rng(0), settings=STILL, size=SIZE
    )
    expected = plain(*scene(), size=SIZE)
    assert np.abs(image.astype(int) - expected[0]).max() <= 1
    # The scoring rule reads a corner, the resample the centre: borders may differ.
    assert (mask != expected[1]).mean() < 0.05
    assert (ignore != expected[2]).mean() < 0.05


def test_flip_mirrors_everything():
    still = augment(
        *scene(), generator=np.random.default_rng(0), settings=STILL, size=SIZE
    )
    always = structs.replace(STILL, flip=1.0)
    flipped = augment(
        *scene(), generator=np.random.default_rng(0), settings=always, size=SIZE
    )
    for one, other in zip(still, flipped, strict=True):
        assert (one[:, ::-1] == other).all()


def test_zoom_out_pads_with_ignored_pixels():
    wide = structs.replace(STILL, scale=(2.0, 2.0))
    image, mask, ignore = augment(
        *scene(), generator=np.random.default_rng(1), settings=wide, size=SIZE
    )
    seen = (~ignore).mean()
    expected = 0.25 * (~scene()[2]).mean()
    assert abs(seen - expected) < 0.02
    assert abs(mask.mean() - 0.25 * scene()[1].mean()) < 0.01
    assert image.shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("seed", range(40))
def test_a_small_object_is_never_lost(seed):
    mask = np.zeros((300, 400), bool)
    mask[seed * 7 % 300, seed * 31 % 400] = True
    image = np.full((300, 400, 3), 90, np.uint8)
    out = augment(
        image, mask, np.zeros_like(mask),
        generator=np.random.default_rng(seed), settings=GEOMETRY, size=32,
    )  # fmt: skip
    assert out[1].any() and not (out[1] & out[2]).any()
    numbered = make_view(
        image, mask[None], np.zeros_like(mask), 7 * mask.astype(np.uint16),
        generator=np.random.default_rng(seed), settings=GEOMETRY, size=32,
    )  # fmt: skip
    assert ((numbered.instances > 0) == numbered.masks[0]).all()
    assert plain(image, mask, np.zeros_like(mask), size=32)[1].sum() == 1


def test_crops_keep_a_part_of_the_class():
    """A crop that is kept shows at least 30 % of the mask, measured in source area."""
    crop = structs.replace(STILL, scale=(0.3, 0.6))
    _, mask, _ = scene()
    for seed in range(40):
        out = augment(
            *scene(), generator=np.random.default_rng(seed), settings=crop, size=SIZE
        )[1]
        # The window's area is unknown here, but at most 0.36 of the image.
        assert out.mean() * 0.36 > 0.3 * mask.mean() * 0.9 or np.isclose(
            out.mean(), mask.mean(), atol=0.02
        )


def test_colour_jitter_keeps_geometry_and_stays_close():
    jitter = Augment(flip=0.0, scale=(1.0, 1.0), aspect=1.0, grey=0.0)
    still = augment(
        *scene(), generator=np.random.default_rng(3), settings=STILL, size=SIZE
    )
    seen = set()
    for seed in range(10):
        out = augment(
            *scene(), generator=np.random.default_rng(seed), settings=jitter, size=SIZE
        )
        assert (out[1] == still[1]).all() and (out[2] == still[2]).all()
        seen.add(out[0].tobytes())
    assert len(seen) == 10


def test_grey_removes_colour_and_keeps_luma():
    grey = structs.replace(STILL, grey=1.0)
    image = np.zeros((20, 20, 3), np.uint8)
    image[:] = (200, 100, 50)
    mask = np.ones((20, 20), bool)
    out = augment(
        image, mask, ~mask, generator=np.random.default_rng(0), settings=grey, size=20
    )[0]
    luma = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    assert np.abs(out.astype(float) - luma).max() <= 1


def test_hue_turns_and_keeps_luma():
    turned = structs.replace(STILL, hue=0.2)
    image = np.zeros((20, 20, 3), np.uint8)
    image[:] = (150, 110, 100)
    mask = np.ones((20, 20), bool)
    hues = []
    for seed in range(12):
        out = augment(
            image, mask, ~mask,
            generator=np.random.default_rng(seed), settings=turned, size=20,
        )[0][0, 0].astype(float)  # fmt: skip
        assert abs(out @ (0.299, 0.587, 0.114) - 120.8) < 2
        hues.append(colorsys.rgb_to_hsv(*(out / 255))[0])
    assert np.ptp(hues) > 0.1


def test_equal_generators_give_equal_images():
    one, other = (
        augment(
            *scene(), generator=np.random.default_rng(5), settings=Augment(), size=SIZE
        )
        for _ in range(2)
    )
    for a, b in zip(one, other, strict=True):
        assert (a == b).all()
