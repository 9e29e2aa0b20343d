"""Pictures and cues without a data set: examples become `Support`, images `Query`.

An example is a picture with what is known of it: a mask, a box, points, scribbles, or
nothing but a phrase. Coordinates are pixels (x, y) of the picture as it is seen
(upright), boxes (x0, y0, x1, y1) with the end exclusive. Pictures of every size enter a
network as evaluation's do (resize.py, "square"), and answers return the same way.

What the cues mean is what they mean in training (cues.py): a mask and a box say of
every pixel what it is; scribbles and points only of those they touch. Negative points
and `background` are known background. A `negative` example shows what is *not* meant:
the marked region, or the whole picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from diffup_jax.data import marks, pictures, resize
from diffup_jax.data.pictures import Picture
from diffup_jax.types import CUES, DiffUpError, Query, Support

# Numbers of shots that programs are compiled for; beyond, multiples of the last.
SHOTS = (1, 2, 5, 10, 20)

# A click, in image sides: of an example a pixel or a few at 384, as in training; of a
# correction what a finger means.
_POINT, _CLICK = 1.5 / 384, 5 / 384


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """One picture with what is known of it, or a phrase (`text`) alone.

    image: a file, an array [h w 3] (uint8, or float in [0, 1]), or PIL's.
    mask: a file or array [h w] of the object; mask_label: its value there.
    box: (x0, y0, x1, y1), or several. points: (x, y) of pixels, and point_labels: 1 on
      the object, 0 beside it; all 1 when not given.
    scribble: lines [(x, y), ...] drawn on the object, or an array [h w] or file of
      drawn pixels; background: the same of what is not the object.
    text: a phrase, instead of an image.
    label: what the example is of, when a task has several labels.
    negative: True shows what is not meant.
    """

    image: Picture | None = None
    _: dataclasses.KW_ONLY
    mask: Picture | None = None
    mask_label: int | None = None
    box: Sequence[Any] | np.ndarray | None = None
    points: Sequence[Any] | np.ndarray | None = None
    point_labels: Sequence[int] | np.ndarray | None = None
    scribble: Picture | Sequence[Any] | None = None
    background: Picture | Sequence[Any] | None = None
    text: str | None = None
    label: str | None = None
    negative: bool = False


class Shot(NamedTuple):
    """An example as a method sees it, [size size]; kind: index into CUES."""

    image: UInt8[np.ndarray, "s s 3"]
    fg: Bool[np.ndarray, "s s"]
    bg: Bool[np.ndarray, "s s"]
    kind: int


def shot(example: Example, *, size: int) -> Shot:
    """An example with a picture, at the network's size.

    Raises DiffUpError for a cue that is missing, does not fit the picture, or marks
    nothing.
    """
    image = pictures.read_picture(example.image)
    shape, canvas, name = image.shape[:2], (size, size), _name(example)
    fg, bg, kinds = _surfaces(example, shape, name)
    view = resize.enter_support(
        image,
        np.stack([fg, bg]),
        np.zeros(shape, bool),
        None,
        frame="square",
        size=size,
    )
    fg, bg = view.masks
    # Points and lines are drawn where the network sees them: none of them can vanish.
    on, beside = (
        marks.drawn(each, shape=shape, canvas=canvas, name=f"the {word} of {name}")
        for each, word in (
            (example.scribble, "scribble"),
            (example.background, "background"),
        )
    )
    marks.put_points(
        *(on, beside, example.points, example.point_labels),
        shape=shape,
        radius=_POINT,
        name=name,
    )
    kinds += ["scribble"] * (example.scribble is not None)
    kinds += ["point"] * (example.points is not None)
    fg, bg = (fg | on) & ~beside, (bg & ~on) | beside
    if example.negative:
        region = fg if fg.any() else beside
        fg, bg = np.zeros_like(fg), region if region.any() else ~fg
    elif not fg.any():
        raise DiffUpError(
            f"{name} marks nothing of the object; give it a mask, box, point (with "
            "point_labels 1) or scribble, or negative=True."
        )
    return Shot(view.image, fg, bg & ~fg, CUES.index(kinds[0] if kinds else "mask"))


def support(
    shots: Sequence[Sequence[Shot]],
    texts: Float[np.ndarray, "n d"] | None,
    has_text: Sequence[bool],
    *,
    size: int,
) -> Support:
    """Shots by way as one batch [1 n k ...], k the next of SHOTS.

    texts: embedding of each way, None where no way has one.
    """
    ways, most = len(shots), padded(max((len(each) for each in shots), default=0))
    found = Support(
        images=np.zeros((1, ways, most, size, size, 3), np.uint8),
        fg=np.zeros((1, ways, most, size, size), bool),
        bg=np.zeros((1, ways, most, size, size), bool),
        kind=np.zeros((1, ways, most), np.int32),
        valid=np.zeros((1, ways, most), bool),
        text=np.zeros((1, ways, 0), np.float32) if texts is None else texts[None],
        text_valid=np.asarray([has_text], bool),
    )
    for way, each in enumerate(shots):
        for place, one in enumerate(each):
            at = (0, way, place)
            found.images[at], found.fg[at], found.bg[at] = one[:3]
            found.kind[at], found.valid[at] = one.kind, True
    return found


def query(image: UInt8[np.ndarray, "h w 3"], *, size: int) -> Query:
    """One image as a batch [1 size size 3]."""
    nothing = np.zeros(image.shape[:2], bool)
    view = resize.enter(image, nothing[None], nothing, None, frame="square", size=size)
    return Query(view.image[None], np.ones((1, size, size), bool))


def at_own_size(
    values: Float[np.ndarray, "n s s"], shape: tuple[int, int]
) -> Float[np.ndarray, "n h w"]:
    """Maps of a network at the size of the image they are of."""
    return np.stack([resize.leave(each, shape, frame="square") for each in values])


def strokes(
    shape: tuple[int, int],
    *,
    points: Sequence[Any] | np.ndarray | None,
    point_labels: Sequence[int] | None,
    scribble: Any,
    background: Any,
) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """What a user says of an image itself: (on the object, beside it).

    Raises DiffUpError when nothing is said, and for what does not fit the image.
    """
    fg, bg = (
        marks.drawn(each, shape=shape, canvas=shape, name=f"the correction's {word}")
        for each, word in ((scribble, "scribble"), (background, "background"))
    )
    marks.put_points(
        *(fg, bg, points, point_labels),
        shape=shape,
        radius=_CLICK,
        name="the correction",
    )
    if not (fg.any() or bg.any()):
        raise DiffUpError(
            "the correction says nothing; give points (with point_labels 1 on the "
            "object, 0 beside it), scribble or background."
        )
    return fg & ~bg, bg & ~fg


def padded(count: int) -> int:
    """The number of shots that a program is compiled for; at least one."""
    for most in SHOTS:
        if count <= most:
            return most
    return -(-count // SHOTS[-1]) * SHOTS[-1]


def by_label(
    examples: Sequence[Example], label: str | None
) -> dict[str, list[Example]]:
    """Examples of each label, in the order in which labels first come.

    label: of the examples that name none. Without any label there is one, called as
    the phrase among the examples, or "object". A negative example without a label is
    one of every label.

    Raises DiffUpError for no example, one with neither picture nor phrase or with both,
    one without a label beside some with, and a label of which nothing is shown.
    """
    for example in examples:
        _require_one(example)
    if label is None and not any(example.label for example in examples):
        phrases = [example.text for example in examples if example.text]
        label = phrases[0] if phrases else "object"
    found: dict[str, list[Example]] = {}
    for example in examples:
        name = example.label or label
        if name is not None:
            found.setdefault(name, []).append(example)
        elif not example.negative:
            raise DiffUpError(
                f"{_name(example)} has no label, but others have: give it one, or give "
                "all of them one with label=NAME."
            )
    for example in examples:
        if example.negative and not (example.label or label):
            for each in found.values():
                each.append(example)
    if not found:
        raise DiffUpError("there is no example; give at least one of what is meant.")
    for name, each in found.items():
        if all(example.negative for example in each):
            raise DiffUpError(
                f"label {name!r} has negative examples only; give at least one of "
                "what is meant."
            )
        phrases = sorted({example.text for example in each if example.text})
        if len(phrases) > 1:
            raise DiffUpError(
                f"label {name!r} has the texts {phrases}; expected one phrase a label."
            )
    return found


def from_mapping(values: Mapping[str, Any]) -> Example:
    """An example from JSON values. Raises DiffUpError for a key it has not."""
    known = [field.name for field in dataclasses.fields(Example)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise DiffUpError(
            f"an example has the keys {unknown}; known: {', '.join(known)}."
        )
    return Example(**values)


def _surfaces(
    example: Example, shape: tuple[int, int], name: str
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """What mask and box say at the picture's own size, and their kinds."""
    fg, bg, kinds = np.zeros(shape, bool), np.zeros(shape, bool), []
    if example.mask is not None:
        found = pictures.read_mask(example.mask, label=example.mask_label)
        marks.check_size(found.mask.shape, shape, f"the mask of {name}")
        fg, bg = found.mask & found.known, ~found.mask & found.known
        kinds.append("mask")
    if example.box is not None:
        inside = marks.boxes(example.box, shape, name)
        fg, bg = (fg, bg | ~inside) if kinds else (inside, ~inside)
        kinds.append("box")
    return fg, bg, kinds


def _require_one(example: Example) -> None:
    """Raises DiffUpError unless it is a picture or a phrase that can be meant."""
    if (example.image is None) == (example.text is None):
        told = "neither an image nor a text"
        if example.text is not None:
            told = "both an image and a text"
        raise DiffUpError(
            f"{_name(example)} has {told}; an example is a picture with a cue, or a "
            "phrase."
        )
    if example.text is not None and (example.negative or not example.text.strip()):
        raise DiffUpError(
            f"the text {example.text!r} cannot be an example: expected a phrase of "
            "what is meant; show a picture of what is not."
        )


def _name(example: Example) -> str:
    image = example.image
    if image is not None and not isinstance(image, np.ndarray | Image.Image):
        return f"the example {str(image)!r}"
    return "an example"
