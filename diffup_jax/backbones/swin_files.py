"""F2: the weight files of Swin transformers.

A layout is names with places: s is the stage from 0, j the block from 0. Where query,
key and value are one array, each takes its third.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diffup_jax.weights import Row, Table, oihw, same


class _Names(NamedTuple):
    patch: str
    patch_norm: str
    merge: Callable[[int], str]  # the merging before stage s
    block: Callable[[int, int], str]
    norms: tuple[str, str]
    table: str
    qkv: tuple[str, ...]
    out: str
    mlp: tuple[str, str]
    last_norm: str


_HUGGING_FACE = _Names(
    patch="embeddings.patch_embeddings.projection",
    patch_norm="embeddings.norm",
    merge=lambda s: f"encoder.layers.{s - 1}.downsample",
    block=lambda s, j: f"encoder.layers.{s}.blocks.{j}",
    norms=("layernorm_before", "layernorm_after"),
    table="attention.self.relative_position_bias_table",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    out="attention.output.dense",
    mlp=("intermediate.dense", "output.dense"),
    last_norm="layernorm",
)
_MICROSOFT = _Names(
    patch="patch_embed.proj",
    patch_norm="patch_embed.norm",
    merge=lambda s: f"layers.{s - 1}.downsample",
    block=lambda s, j: f"layers.{s}.blocks.{j}",
    norms=("norm1", "norm2"),
    table="attn.relative_position_bias_table",
    qkv=("attn.qkv",),
    out="attn.proj",
    mlp=("mlp.fc1", "mlp.fc2"),
    last_norm="norm",
)
_TIMM_NAMES = _MICROSOFT._replace(merge=lambda s: f"layers.{s}.downsample")
_TORCHVISION = _MICROSOFT._replace(
    patch="features.0.0",
    patch_norm="features.0.2",
    merge=lambda s: f"features.{2 * s}",
    block=lambda s, j: f"features.{2 * s + 1}.{j}",
    mlp=("mlp.0", "mlp.3"),
)


def tables(depths: tuple[int, ...], *, qkv_bias: bool) -> tuple[Table, ...]:
    """The layouts a file of a Swin of these sizes may have, each with what it leaves
    unused.

    `hugging face`: a saved SwinModel (the file's keys: transformers 5 renames them in
    memory), or a model with a head and the prefix `swin.`. `microsoft`: the original
    code, and timm before 0.9; `timm`: later, its mergings open a stage; `torchvision`:
    `features.1.0.attn.qkv.weight`. Buffers made from the sizes are not read.
    """
    rows = functools.partial(_rows, depths, qkv_bias=qkv_bias)
    inner = rows(_HUGGING_FACE)
    prefixed = tuple(row._replace(source="swin." + row.source) for row in inner)
    buffers = (r".*relative_position_index", r".*attn_mask")
    head = (r"head\..*", *buffers)
    return (
        Table("hugging face", inner, (r"embeddings\.mask_token", *buffers)),
        Table(
            "hugging face, with head",
            prefixed,
            (r"swin\.embeddings\.mask_token", r"(classifier|decoder)\..*", *buffers),
        ),
        Table("microsoft", rows(_MICROSOFT), head),
        Table("timm", rows(_TIMM_NAMES), head),
        Table("torchvision", rows(_TORCHVISION), head),
    )


def _rows(depths: tuple[int, ...], names: _Names, *, qkv_bias: bool) -> tuple[Row, ...]:
    rows = [
        *_pair(names.patch, "patch", "kernel", oihw),
        *_pair(names.patch_norm, "patch_norm", "scale", same),
        *_pair(names.last_norm, "last_norm", "scale", same),
    ]
    for s in range(1, len(depths)):
        theirs, ours = names.merge(s), f"stage{s + 1}_merge"
        rows += _pair(f"{theirs}.norm", f"{ours}/norm", "scale", same)
        kernel = f"params/{ours}/reduction/kernel"
        rows.append(Row(f"{theirs}.reduction.weight", kernel, _dense))
    blocks = [(s, block) for s, count in enumerate(depths) for block in range(count)]
    for s, block in blocks:
        theirs, ours = names.block(s, block), f"stage{s + 1}_block{block}"
        for name, target in zip(names.norms, ("norm1", "norm2"), strict=True):
            rows += _pair(f"{theirs}.{name}", f"{ours}/{target}", "scale", same)
        for name, target in zip(names.mlp, ("mlp1", "mlp2"), strict=True):
            rows += _pair(f"{theirs}.{name}", f"{ours}/{target}", "kernel", _dense)
        ours += "/attention"
        rows += _pair(f"{theirs}.{names.out}", f"{ours}/out", "kernel", _dense)
        table = f"params/{ours}/relative_position_bias_table"
        rows.append(Row(f"{theirs}.{names.table}", table, same))
        for index, target in enumerate(("query", "key", "value")):
            fused = len(names.qkv) == 1
            take = functools.partial(_third, index=index) if fused else same
            pair = _pair(
                f"{theirs}.{names.qkv[0 if fused else index]}",
                f"{ours}/{target}",
                "kernel",
                functools.partial(_dense, take=take),
                take=take,
            )
            rows += pair if qkv_bias else pair[:1]
    return tuple(rows)


def _pair(
    theirs: str,
    ours: str,
    leaf: str,
    transform: Callable[[np.ndarray], np.ndarray],
    *,
    take: Callable[[np.ndarray], np.ndarray] = same,
) -> list[Row]:
    """The rows of a module's weight and of its bias."""
    return [
        Row(f"{theirs}.weight", f"params/{ours}/{leaf}", transform),
        Row(f"{theirs}.bias", f"params/{ours}/bias", take),
    ]


def _dense(
    array: np.ndarray, *, take: Callable[[np.ndarray], np.ndarray] = same
) -> np.ndarray:
    return take(array).transpose(1, 0)


def _third(array: np.ndarray, *, index: int) -> np.ndarray:
    return np.split(array, 3)[index]
