"""F0: the contracts every room shares. No jax import: data workers read this file.

Alphabet, stated once and used in every shape of the project:

    b batch          n ways           k shots          h w pixels (rows, columns)
    p q grid rows and columns          c channels       d embedding
    l level          m prior maps     t text length or, in diffusion, time in [0, 1]

Arrays are NHWC. Masks are bool, or float {0, 1}; "ignore" is a separate boolean map;
boxes are pixels (y0, x0, y1, x1), end exclusive; time 1 is pure noise, time 0 the clean
mask.
"""

from __future__ import annotations

from typing import Any, NamedTuple

# Cue kinds in order of how much they tell: `cue_kind` holds the index into this tuple.
CUES = ("mask", "box", "scribble", "point", "text")

# Length of `text_ids`, the context length of CLIP's text towers (arXiv 2103.00020).
TEXT_LENGTH = 77


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


class Episode(NamedTuple):
    """One batch of few-shot tasks in one compiled shape for 0..K shots and 1..N ways.

    The pipeline makes images of uint8 and maps of bool: a quarter of the bytes of
    floats on the way from the disk to the device, where they become floats.

    query        [b h w 3]      uint8, or float in [0, 1]
    query_mask   [b n h w]      bool, or float {0, 1}: truth of each way's class
    query_valid  [b h w]        bool, False = pixel ignored by loss and metrics
    support      [b n k h w 3]  uint8, or float in [0, 1]
    cue_fg       [b n k h w]    bool, or float [0, 1]: known foreground (a box: "maybe")
    cue_bg       [b n k h w]    bool, or float [0, 1]: known background; unknown: both 0
    cue_kind     [b n k]        int32 index into CUES
    text_ids     [b n t]        int32 token ids, zeros without text
    shot_valid   [b n k]        bool, False = padding
    text_valid   [b n]          bool
    class_id     [b n]          int32, class index of the source
    """

    query: Any
    query_mask: Any
    query_valid: Any
    support: Any
    cue_fg: Any
    cue_bg: Any
    cue_kind: Any
    text_ids: Any
    shot_valid: Any
    text_valid: Any
    class_id: Any


class DiffUpError(Exception):
    """A user's mistake or a fact of their machine, told in one clear message.

    The message names the value, what was expected and the fix. The doors print it
    without a traceback and exit with status 2.
    """
