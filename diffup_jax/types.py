"""F0: the contracts every room shares. No jax import: data workers read this file.

Alphabet, stated once and used in every shape of the project:

    b batch          n ways           k shots          h w pixels (rows, columns)
    p q grid rows and columns          c channels       d embedding
    l level          m prior maps     t text length or, in diffusion, time in [0, 1]

Arrays are NHWC. Masks are bool, or float {0, 1}; "valid" is a separate boolean map.
Boxes are pixels (x0, y0, x1, y1) at every public face, end exclusive; time 1 is pure
noise, time 0 the clean mask.
"""

from __future__ import annotations

from typing import Any, NamedTuple

# Cue kinds in order of how much they tell: `Support.kind` holds the index into it.
CUES = ("mask", "box", "scribble", "point", "text")


class Level(NamedTuple):
    """One named output of a backbone, known before the backbone runs.

    `stride` is in input pixels per grid cell, `channels` the size of the last axis.
    """

    name: str
    stride: int
    channels: int


class Features(NamedTuple):
    """What a backbone answers.

    `levels`: name -> [b p q c]; `last`: the reference's last hidden state [b p q c]
    (spatial tokens only); `joint`: [b p q d] in a joint image-text space, or None when
    the backbone has no text tower.
    """

    levels: dict[str, Any]
    last: Any
    joint: Any = None


class Support(NamedTuple):
    """The examples of each way, in one compiled shape for 0..K shots and 1..N ways.

    images       [b n k h w 3]  uint8, or float in [0, 1]
    fg           [b n k h w]    bool, or float in [0, 1]: known foreground
    bg           [b n k h w]    bool, or float in [0, 1]: known background; where
                                nothing is known both are 0
    kind         [b n k]        int32 index into CUES
    valid        [b n k]        bool, False = padding
    text         [b n d]        float, what a way's text means in the method's own space
                                (`embed_text`); d = 0 where no text is asked
    text_valid   [b n]          bool

    A shot with background and no foreground is a negative example: it is not the class.
    """

    images: Any
    fg: Any
    bg: Any
    kind: Any
    valid: Any
    text: Any
    text_valid: Any


class Query(NamedTuple):
    """The images to segment, and for training and scoring the truth.

    image   [b h w 3]  uint8, or float in [0, 1]
    valid   [b h w]    bool, False = pixel ignored by loss and metrics
    mask    [b n h w]  bool, or float {0, 1}: truth of each way; None when asked
    """

    image: Any
    valid: Any
    mask: Any = None


class Episode(NamedTuple):
    """One batch of few-shot tasks.

    The pipeline makes images of uint8 and maps of bool: a quarter of the bytes of
    floats on the way from the disk to the device, where they become floats.
    """

    support: Support
    query: Query


class Prediction(NamedTuple):
    """What a method answers.

    probability  [b n h w]  in [0, 1], at the query's size
    threshold    [b n]      the probability from which on a pixel is in the mask
    maps         name -> [b n h w]: what else the method tells. "prior_mean", in [0, 1],
                 is a rival answer and scored as one; every other map says where the
                 method is unsure (0 = sure) and is scored by how well it finds errors
    """

    probability: Any
    threshold: Any
    maps: dict[str, Any]


class Strokes(NamedTuple):
    """What a user says of a query itself: bool, or float in [0, 1], at its size.

    fg, bg [b n h w]: known foreground and known background of each way, all strokes so
    far; both 0 where nothing is said. mask [b n h w]: the probability a chain restarts
    from, None = none; a method without a chain does not read it.
    """

    fg: Any
    bg: Any
    mask: Any = None


class DiffUpError(Exception):
    """A user's mistake or a fact of their machine, told in one clear message.

    The message names the value, what was expected and the fix. The commands print it
    without a traceback and exit with status 2.
    """
