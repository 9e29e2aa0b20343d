"""F2: the weight files of residual networks.

One list of (our convolution, our norm, source names of both) per layout, generated from
the blocks of a variant; every layout then differs in names only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from diffup_jax.backbones.recipe import batch_norm
from diffup_jax.weights import Row, Table, oihw


class Place(NamedTuple):
    """A block: its stage from 1, its number in it from 0, our module's name, and
    whether its shortcut projects.
    """

    stage: int
    block: int
    module: str
    project: bool


def tables(places: Sequence[Place], *, convolutions: int) -> tuple[Table, ...]:
    """The layouts of a network with these blocks of so many `convolutions`, each with
    what it leaves unused.

    `torchvision`: `layer3.5.conv2.weight`, head `fc.*`. `hugging face`: the keys of a
    saved ResNetModel, or of a ResNetForImageClassification with its `resnet.` prefix
    and head `classifier.*`.
    """
    ours = _our_names(places, convolutions)
    inner = _rows(ours, _hugging_face_names(places, convolutions))
    prefixed = tuple(row._replace(source="resnet." + row.source) for row in inner)
    counters = (r".*num_batches_tracked",)
    return (
        Table(
            "torchvision",
            _rows(ours, _torchvision_names(places, convolutions)),
            (r"fc\..*", *counters),
        ),
        Table("hugging face", inner, counters),
        Table("hugging face, classifier", prefixed, (r"classifier\..*", *counters)),
    )


def _rows(
    ours: list[tuple[str, str]], theirs: list[tuple[str, str]]
) -> tuple[Row, ...]:
    rows = []
    for (our_conv, our_norm), (their_conv, their_norm) in zip(
        ours, theirs, strict=True
    ):
        rows.append(Row(f"{their_conv}.weight", f"params/{our_conv}/kernel", oihw))
        rows += batch_norm(their_norm, our_norm)
    return tuple(rows)


def _our_names(places: Sequence[Place], convolutions: int) -> list[tuple[str, str]]:
    pairs = [("stem_conv", "stem_norm")]
    for place in places:
        root = place.module
        for i in range(1, convolutions + 1):
            pairs.append((f"{root}/conv{i}", f"{root}/norm{i}"))
        if place.project:
            pairs.append((f"{root}/shortcut_conv", f"{root}/shortcut_norm"))
    return pairs


def _torchvision_names(
    places: Sequence[Place], convolutions: int
) -> list[tuple[str, str]]:
    pairs = [("conv1", "bn1")]
    for place in places:
        root = f"layer{place.stage}.{place.block}"
        for i in range(1, convolutions + 1):
            pairs.append((f"{root}.conv{i}", f"{root}.bn{i}"))
        if place.project:
            pairs.append((f"{root}.downsample.0", f"{root}.downsample.1"))
    return pairs


def _hugging_face_names(
    places: Sequence[Place], convolutions: int
) -> list[tuple[str, str]]:
    def pair(root: str) -> tuple[str, str]:
        return f"{root}.convolution", f"{root}.normalization"

    pairs = [pair("embedder.embedder")]
    for place in places:
        root = f"encoder.stages.{place.stage - 1}.layers.{place.block}"
        pairs += [pair(f"{root}.layer.{i}") for i in range(convolutions)]
        if place.project:
            pairs.append(pair(f"{root}.shortcut"))
    return pairs
