"""Pictures and masks of people's own files mean what they mean, to the pixel."""

import numpy as np
import pytest
from PIL import Image

from diffup_jax.data.pictures import overlay, read_mask, read_picture
from diffup_jax.types import DiffUpError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
OBJECT = np.zeros((5, 7), bool)
OBJECT[1:3, 2:5] = True


def saved(tmp_path, picture, name="x.png", **options):
    path = tmp_path / name
    picture.save(path, **options)
    return path


@pytest.mark.parametrize(
    "given",
    [
        RGB,
        RGB / 255,
        RGB.astype(np.uint16) * 257,
        Image.fromarray(RGB),
    ],
)
def test_the_same_picture_in_every_form(given):
    np.testing.assert_array_equal(read_picture(given), RGB)


def test_a_turned_photograph_is_upright(tmp_path):
    turned = Image.fromarray(np.rot90(RGB))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    path = saved(tmp_path, turned, exif=exif)
    np.testing.assert_array_equal(read_picture(path), RGB)
    mask = saved(
        tmp_path, Image.fromarray(np.rot90(OBJECT).astype(np.uint8)), "m.png", exif=exif
    )
    np.testing.assert_array_equal(read_mask(mask).mask, OBJECT)


def test_sixteen_bits_and_floats_keep_their_grey(tmp_path):
    grey = RGB[..., 0]
    deep = saved(tmp_path, Image.fromarray(grey.astype(np.uint16) * 257))
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_picture(deep), expected)
    floats = saved(tmp_path, Image.fromarray((grey / 255).astype(np.float32)), "x.tif")
    np.testing.assert_array_equal(read_picture(floats), expected)
    wild = saved(tmp_path, Image.fromarray(grey.astype(np.float32)), "y.tif")
    with pytest.raises(DiffUpError, match=r"expected \[0, 1\]"):
        read_picture(wild)


def test_alpha_shows_white(tmp_path):
    seen = np.dstack([RGB, np.where(OBJECT, 255, 0).astype(np.uint8)])
    path = saved(tmp_path, Image.fromarray(seen))
    expected = np.where(OBJECT[..., None], RGB, 255)
    np.testing.assert_array_equal(read_picture(path), expected)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (RGB.astype(np.float32), "float in"),
        (np.moveaxis(RGB, 2, 0), "channels last"),
        (RGB[..., :2], "channels last"),
        (np.full((2, 2, 3), np.nan), "float in"),
        ("absent.png", "no file 'absent.png'"),
    ],
)
def test_what_is_no_picture_is_refused(given, word):
    with pytest.raises(DiffUpError, match=word):
        read_picture(given)


def test_a_cut_file_is_refused_by_name(tmp_path):
    path = saved(tmp_path, Image.fromarray(RNG.integers(0, 256, (64, 64), np.uint8)))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DiffUpError, match=r"x\.png"):
        read_picture(path)


def coloured(background, colour):
    picture = np.empty((*OBJECT.shape, 3), np.uint8)
    picture[:] = background
    picture[OBJECT] = colour
    return Image.fromarray(picture)


def palette(values):
    picture = Image.fromarray(values.astype(np.uint8), "P")
    picture.putpalette([0, 0, 0, 9, 9, 9, 20, 20, 20])  # dark: brightness would fail
    return picture


@pytest.mark.parametrize(
    "picture",
    [
        Image.fromarray(OBJECT),
        Image.fromarray(OBJECT.astype(np.uint8)),
        Image.fromarray(OBJECT.astype(np.uint8) * 255),
        Image.fromarray(OBJECT.astype(np.uint8) * 7),
        Image.fromarray(OBJECT.astype(np.uint16) * 300),
        palette(OBJECT),
        coloured((0, 0, 0), (90, 0, 0)),
        coloured((0, 0, 0), (255, 255, 255)),
        Image.fromarray(
            np.dstack([np.full_like(RGB, 255), OBJECT.astype(np.uint8) * 255])
        ),
    ],
    ids=[
        "bool",
        "0-1",
        "0-255",
        "0-7",
        "16-bit",
        "palette",
        "colour",
        "white",
        "alpha",
    ],
)
def test_the_object_of_a_mask(tmp_path, picture):
    found = read_mask(saved(tmp_path, picture))
    np.testing.assert_array_equal(found.mask, OBJECT)
    assert found.known.all()


def test_255_beside_1_is_ignored(tmp_path):
    values = OBJECT.astype(np.uint8)
    values[0, 0] = 255
    found = read_mask(saved(tmp_path, Image.fromarray(values)))
    np.testing.assert_array_equal(found.mask, OBJECT)
    np.testing.assert_array_equal(found.known, values != 255)
    assert found.meaning == "1 is the object, 255 is ignored"


def test_soft_grey_is_cut_at_half():
    soft = np.tile(np.arange(0, 256, 5, dtype=np.uint8), (4, 1))
    np.testing.assert_array_equal(read_mask(soft / 255).mask, soft >= 127.5)
    found = read_mask(Image.fromarray(soft))
    np.testing.assert_array_equal(found.mask, soft >= 128)


def test_several_values_want_a_choice(tmp_path):
    values = OBJECT.astype(np.uint8) * 3
    values[4, 4] = 9
    path = saved(tmp_path, Image.fromarray(values))
    with pytest.raises(DiffUpError, match=r"values 0, 3, 9.*mask_label"):
        read_mask(path)
    np.testing.assert_array_equal(read_mask(path, label=3).mask, OBJECT)
    with pytest.raises(DiffUpError, match="no pixel of value 4"):
        read_mask(path, label=4)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (np.zeros((3, 3), bool), "marks no pixel"),
        (np.zeros((3, 3, 3)), r"expected \[h w\]"),
        (np.full((3, 3), 2.0), "float mask in"),
        (coloured((0, 0, 0), RGB[OBJECT]), "colours"),
    ],
)
def test_what_is_no_mask_is_refused(given, word):
    with pytest.raises(DiffUpError, match=word):
        read_mask(given)


def test_an_overlay_tints_the_mask_alone():
    shown = overlay(RGB, OBJECT, colour=(255, 0, 0), strength=1.0)
    np.testing.assert_array_equal(shown[~OBJECT], RGB[~OBJECT])
    np.testing.assert_array_equal(shown[OBJECT], np.array([[255, 0, 0]] * 6))
