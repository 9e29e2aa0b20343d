"""Examples without a data set: what is drawn is what a method sees."""

import numpy as np
import pytest

from diffup_jax.data import episode, resize
from diffup_jax.data.episode import Example
from diffup_jax.types import CUES, DiffUpError

SIZE = 32
PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
OBJECT = np.zeros((48, 64), bool)
OBJECT[10:30, 20:50] = True


def shot(**cues):
    return episode.shot(Example(PICTURE, **cues), size=SIZE)


def entered(mask):
    """A mask at the network's size, as evaluation brings it there."""
    nothing = np.zeros(mask.shape, bool)
    view = resize.enter(PICTURE, mask[None], nothing, None, frame="square", size=SIZE)
    return view.masks[0]


def test_a_mask_says_of_every_pixel_what_it_is():
    found = shot(mask=OBJECT)
    np.testing.assert_array_equal(found.fg, entered(OBJECT))
    np.testing.assert_array_equal(found.bg, ~found.fg)
    assert found.image.shape == (SIZE, SIZE, 3) and CUES[found.kind] == "mask"


def test_ignored_pixels_are_unknown():
    values = OBJECT.astype(np.uint8)
    values[:, :8] = 255
    found = shot(mask=values)
    assert not (found.fg | found.bg)[:, :4].any()
    np.testing.assert_array_equal(found.fg, entered(OBJECT))


def test_a_box_is_in_pixels_and_its_end_is_exclusive():
    found = shot(box=(20, 10, 50, 30))
    np.testing.assert_array_equal(found.fg, entered(OBJECT))
    np.testing.assert_array_equal(found.bg, ~found.fg)
    assert CUES[found.kind] == "box"
    two = shot(box=[(0, 0, 10, 10), (54, 38, 64, 48)])
    assert two.fg[0, 0] and two.fg[-1, -1] and not two.fg[16, 16]


def test_points_know_only_what_they_touch():
    found = shot(points=[(30, 20), (5, 5)], point_labels=[1, 0])
    assert found.fg[13, 15] and found.bg[3, 2] and CUES[found.kind] == "point"
    assert found.fg.sum() < 6 and found.bg.sum() < 6


def test_a_click_on_a_huge_picture_is_not_lost():
    huge = np.zeros((3000, 4000, 3), np.uint8)
    found = episode.shot(Example(huge, points=[(2001, 1501)]), size=SIZE)
    assert found.fg[16, 16] and found.fg.sum() == 1


def test_scribbles_are_lines_or_drawn_pictures():
    line = shot(scribble=[[(22, 12), (48, 12)]])
    assert CUES[line.kind] == "scribble"
    assert line.fg[8, 12:24].all() and not line.fg[20:].any() and not line.bg.any()
    drawn = np.zeros(OBJECT.shape, bool)
    drawn[20, 24:40] = True
    both = shot(scribble=drawn, background=[[(2, 2), (2, 40)]])
    assert both.fg.any() and both.bg[2:26, 1].all() and not (both.fg & both.bg).any()


def test_cues_add_up():
    """A box with a point beside the object inside of it; the surest kind counts."""
    found = shot(box=(20, 10, 50, 30), points=[(40, 20)], point_labels=[0])
    inside = entered(OBJECT)
    assert not found.fg[13, 20] and found.bg[13, 20]
    assert (found.fg <= inside).all() and CUES[found.kind] == "box"


def test_a_negative_example_has_background_only():
    whole = shot(negative=True)
    assert not whole.fg.any() and whole.bg.all()
    region = shot(box=(20, 10, 50, 30), negative=True)
    assert not region.fg.any()
    np.testing.assert_array_equal(region.bg, entered(OBJECT))


@pytest.mark.parametrize(
    ("cues", "word"),
    [
        ({}, "marks nothing"),
        ({"points": [(3, 3)], "point_labels": [0]}, "marks nothing"),
        ({"points": [(64, 3)]}, r"lies outside of the 64 x 48"),
        ({"points": [(3, 3)], "point_labels": [1, 0]}, "1 points with"),
        ({"points": [3, 3]}, r"expected \[\(x, y\)"),
        ({"point_labels": [1]}, "without points"),
        ({"box": (20, 10, 20, 30)}, "holds no pixel"),
        ({"box": (70, 10, 90, 30)}, "holds no pixel"),
        ({"box": (1, 2, 3)}, r"expected \(x0, y0, x1, y1\)"),
        ({"mask": OBJECT[:40]}, "64 x 40 pixels, its picture 64 x 48"),
        ({"scribble": [[(2, 2), (70, 3)]]}, "leaves the 64 x 48 picture"),
    ],
)
def test_a_cue_that_does_not_fit_is_refused(cues, word):
    with pytest.raises(DiffUpError, match=word):
        shot(**cues)


def test_shots_are_padded_to_few_numbers():
    assert [episode.padded(k) for k in (0, 1, 2, 3, 5, 6, 20, 21, 41)] == [
        *(1, 1, 2, 5, 5, 10, 20, 40, 60)
    ]
    one = shot(mask=OBJECT)
    found = episode.support([[one] * 3, [one]], None, [False, False], size=SIZE)
    assert found.images.shape == (1, 2, 5, SIZE, SIZE, 3)
    assert found.valid.tolist() == [[[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]]
    assert not found.fg[0, 0, 3:].any() and found.text.shape == (1, 2, 0)


def groups(*examples, label=None):
    found = episode.by_label(examples, label)
    return {name: len(each) for name, each in found.items()}


def test_labels():
    cat, dog = (Example(PICTURE, mask=OBJECT, label=x) for x in ("cat", "dog"))
    plain, no = Example(PICTURE, mask=OBJECT), Example(PICTURE, negative=True)
    words = Example(text="a red star")
    assert groups(plain, no) == {"object": 2}
    assert groups(plain, words) == {"a red star": 2}
    assert groups(plain, words, label="star") == {"star": 2}
    assert groups(cat, dog, no) == {"cat": 2, "dog": 2}
    assert groups(dog, cat, cat) == {"dog": 1, "cat": 2}


@pytest.mark.parametrize(
    ("examples", "word"),
    [
        ([], "no example"),
        ([Example()], "neither"),
        ([Example(PICTURE, text="a cat")], "both"),
        ([Example(text="  ")], "cannot be an example"),
        ([Example(PICTURE, negative=True)], "negative examples only"),
        ([Example(text="a"), Example(text="b")], "one phrase a label"),
        (
            [Example(PICTURE, label="a", mask=OBJECT), Example(PICTURE, mask=OBJECT)],
            "has no label",
        ),
    ],
)
def test_examples_that_mean_nothing_are_refused(examples, word):
    with pytest.raises(DiffUpError, match=word):
        episode.by_label(examples, None)


def test_answers_return_to_the_pictures_size():
    values = np.linspace(0, 1, SIZE)[None, None] * np.ones((1, SIZE, 1))
    found = episode.at_own_size(values.astype(np.float32), (48, 64))
    assert found.shape == (1, 48, 64)
    np.testing.assert_allclose(found[0, 7], np.linspace(0, 1, 64), atol=1e-6)
