"""The evaluation protocols of the field as rows of data.

Numbers of two protocols must not stand in one table: the image size, the pixels that
are scored, the objects that count and the episodes all differ. This room only states
the rules; what they ask of a benchmark stands in its row of benchmarks.py. `draws`
makes the episodes, `resize` the images, the evaluation the score.

Sources: the published code of HSNet, PFENet and DENet; "original" and "clean" are
this project's. What a protocol leaves open, or fixes for Pascal and COCO only, is our
choice and marked (ours).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from diffup_jax.types import DiffUpError

DEFAULT = "hsnet"


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The rules of one protocol.

    used_by: methods whose papers report it.
    frame: how an image enters the network. "square": resized to a square, both sides
        freely; "pad": the longer side is resized, the rest is zeros, which are
        ignored.
    image_sizes: the published pixels per side by family of images ("coco", "pascal");
        empty: the method's own choice.
    scored_at: "network": label nearest-resized to the network's size; "original": the
        answer resized to the query's own size.
    min_pixels: a class counts in an image with at least so many pixels of its own.
    min_area: the same as a share of the image, by family ("coco", "pascal", "other");
        empty: no such rule.
    query_ignore: ignored pixels (255 in Pascal) are left out of the score; False: they
        are background. support_ignore: they are unknown in supports; False: they are
        background.
    distinct: no support repeats. (The query is never a support.)
    balanced: every class is equally often way 0.
    most_ways: ways that are defined.
    episodes: per fold, where the benchmark has no number of its own (`draws`).
    seed: the published one; None: any, it is part of the setting.
    skip_empty: queries whose resized mask is empty are left out of the score.
    """

    name: str
    used_by: str
    frame: str
    image_sizes: Mapping[str, int]
    scored_at: str
    min_pixels: int
    min_area: Mapping[str, float]
    query_ignore: bool
    support_ignore: bool
    distinct: bool
    balanced: bool
    most_ways: int
    episodes: int
    seed: int | None
    skip_empty: bool


_HSNET = Protocol(
    name="hsnet",
    used_by="HSNet, DCAMA, Matcher, GF-SAM, FoundationFSS, PGMA-Net, DiffewS",
    frame="square",
    image_sizes={},
    scored_at="network",
    # The published lists were filtered when they were made (see docs/protocols.md);
    # nothing is filtered again.
    min_pixels=0,
    min_area={},
    query_ignore=True,
    support_ignore=False,
    distinct=False,
    balanced=False,
    most_ways=1,
    episodes=1000,
    seed=0,
    skip_empty=False,
)

PROTOCOLS: dict[str, Protocol] = {
    row.name: row
    for row in (
        _HSNET,
        dataclasses.replace(
            _HSNET,
            name="original",
            used_by="this project",
            scored_at="original",
            distinct=True,
        ),
        Protocol(
            name="pfenet",
            used_by="PFENet, BAM, HDMNet",
            frame="pad",
            image_sizes={"pascal": 473, "coco": 641},
            scored_at="original",
            min_pixels=2 * 32 * 32,
            min_area={},
            query_ignore=True,
            support_ignore=True,
            distinct=True,
            balanced=False,
            most_ways=1,
            episodes=1000,
            seed=None,
            skip_empty=False,
        ),
        Protocol(
            name="denet",
            used_by="DENet",
            frame="square",
            image_sizes={"pascal": 321, "coco": 321},
            scored_at="network",
            min_pixels=0,
            min_area={"pascal": 0.02, "coco": 0.01, "other": 0.01},
            query_ignore=False,
            support_ignore=False,
            distinct=True,
            balanced=True,
            most_ways=5,
            episodes=1000,
            seed=None,
            skip_empty=True,
        ),
        Protocol(
            name="clean",
            used_by="this project",
            frame="square",
            image_sizes={},
            scored_at="network",
            min_pixels=0,
            min_area={},
            query_ignore=True,
            support_ignore=True,
            distinct=True,
            balanced=True,
            most_ways=5,
            episodes=1000,
            seed=None,
            skip_empty=False,
        ),
    )
}


def get(name: str) -> Protocol:
    """The protocol of that name. Raises DiffUpError listing them all."""
    if name not in PROTOCOLS:
        raise DiffUpError(
            f"unknown protocol {name!r}; expected one of:\n  " + "\n  ".join(lines())
        )
    return PROTOCOLS[name]


def lines() -> list[str]:
    """One line per protocol, for help texts and docs."""
    return [f"{row.name}: {_line(row)}" for row in PROTOCOLS.values()]


def _line(row: Protocol) -> str:
    frame = "square resize" if row.frame == "square" else "longer side, zero pad"
    sizes = sorted(set(row.image_sizes.values()))
    size = f" to {' or '.join(map(str, sizes))}" if sizes else ", any size"
    own = row.scored_at == "original"
    small = f"class >= {row.min_pixels} px" if row.min_pixels else "nothing filtered"
    if row.min_area:
        shares = {f: f"{v:.0%}" for f, v in row.min_area.items() if f != "other"}
        small = "class >= " + ", ".join(f"{v} ({f})" for f, v in shares.items())
    parts = [
        frame + size,
        f"scored at {'own' if own else 'network'} size",
        small,
        "supports distinct" if row.distinct else "supports may repeat",
        *(["classes balanced"] if row.balanced else []),
        *(["empty queries skipped"] if row.skip_empty else []),
        f"up to {row.most_ways} ways" if row.most_ways > 1 else "1 way",
        f"{row.episodes} episodes",
        "any seed" if row.seed is None else f"seed {row.seed}",
    ]
    return f"{'; '.join(parts)}. Used by {row.used_by}."
