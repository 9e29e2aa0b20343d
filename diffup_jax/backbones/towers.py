"""F2: what the image-text transformers (CLIP, SigLIP) are built from.

A tower is a stack of pre-norm blocks,

    x = x + out(attention(norm1(x)));   x = x + fc2(act(fc1(norm2(x))))

of the sizes in a `Tower`. Softmax and the norms' statistics are float32, parameters
too; everything else is in the tower's `dtype`. At the foot, the rows of the conversion
tables for these parts: Hugging Face names them alike in both families.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffup_jax.backbones.transformer import ACTIVATIONS
from diffup_jax.types import DiffUpError
from diffup_jax.weights import Row, same


class Tower(NamedTuple):
    """Sizes of a stack of blocks; `hidden` is the width inside the MLP."""

    width: int
    depth: int
    heads: int
    hidden: int
    activation: str
    epsilon: float


class Block(nn.Module):
    """Pre-norm attention and MLP, see the module docstring."""

    tower: Tower
    dtype: Any

    def setup(self):
        tower = self.tower
        width = tower.width
        self.norm1 = layer_norm(tower, self.dtype)
        self.query = nn.Dense(width, dtype=self.dtype)
        self.key = nn.Dense(width, dtype=self.dtype)
        self.value = nn.Dense(width, dtype=self.dtype)
        self.out = nn.Dense(width, dtype=self.dtype)
        self.norm2 = layer_norm(tower, self.dtype)
        self.fc1 = nn.Dense(tower.hidden, dtype=self.dtype)
        self.fc2 = nn.Dense(width, dtype=self.dtype)

    def __call__(
        self, x: Float[Array, "b t c"], *, causal: bool
    ) -> Float[Array, "b t c"]:
        y = self.norm1(x)
        y = attend(
            self.query(y),
            self.key(y),
            self.value(y),
            heads=self.tower.heads,
            causal=causal,
        )
        x = x + self.out(y)
        y = ACTIVATIONS[self.tower.activation](self.fc1(self.norm2(x)))
        return x + self.fc2(y)

    def value_path(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
        """What attention would answer if every token attended to itself alone."""
        return self.out(self.value(self.norm1(x)))


def blocks(tower: Tower, dtype: Any) -> list[Block]:
    """The stack of a tower."""
    return [Block(tower, dtype) for _ in range(tower.depth)]


def layer_norm(tower: Tower, dtype: Any) -> nn.LayerNorm:
    """Layer norm with float32 statistics; the variance as a mean of squares around the
    mean, for E[x^2] - E[x]^2 loses the digits that parity to 1e-5 needs."""
    return nn.LayerNorm(epsilon=tower.epsilon, dtype=dtype, use_fast_variance=False)


def attend(
    query: Float[Array, "b s c"],
    key: Float[Array, "b t c"],
    value: Float[Array, "b t c"],
    *,
    heads: int,
    causal: bool,
) -> Float[Array, "b s c"]:
    """Scaled dot-product attention over `heads` equal parts; softmax in float32."""
    query, key, value = (
        x.reshape(*x.shape[:2], heads, x.shape[2] // heads) for x in (query, key, value)
    )
    answer = jax.nn.dot_product_attention(query, key, value, is_causal=causal)
    return answer.reshape(*answer.shape[:2], -1)


def unit(x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """Vectors of length 1 along the last axis, float32."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def cells(x: Float[Array, "b t c"], grid: tuple[int, int]) -> Float[Array, "b p q c"]:
    """Tokens in rows to a grid of p rows and q columns."""
    return x.reshape(x.shape[0], *grid, x.shape[-1])


def tower_of(config: Mapping[str, Any]) -> Tower:
    """A tower from its part of config.json, in which nothing is left out."""
    found = Tower(
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
        activation=config["hidden_act"],
        epsilon=config["layer_norm_eps"],
    )
    if found.activation not in ACTIVATIONS or found.width % found.heads:
        raise DiffUpError(
            f"config.json has hidden_act {found.activation!r}, and hidden_size "
            f"{found.width} for {found.heads} heads; supported: one of "
            f"{', '.join(ACTIVATIONS)}, and a multiple of the heads."
        )
    return found


def prior_blocks(depth: int) -> tuple[str, ...]:
    """The blocks at 1/2, 2/3, 5/6 and the end of the depth, rounded up."""
    ends = (-(-depth * part // 6) for part in (3, 4, 5, 6))
    return tuple(dict.fromkeys(f"block{end - 1}" for end in ends))


# --- Rows of conversion tables --------------------------------------------------------


def transpose(array: np.ndarray) -> np.ndarray:
    """Transform of a linear layer's kernel [out in]."""
    return array.T


def embedding_rows(body: str) -> tuple[Row, ...]:
    """Token and position embeddings of a Hugging Face text tower."""
    root = f"{body}.embeddings"
    return (
        Row(f"{root}.token_embedding.weight", "params/tokens/embedding", same),
        Row(f"{root}.position_embedding.weight", "params/positions", same),
    )


def norm_rows(source: str, target: str) -> tuple[Row, ...]:
    """Scale and bias of a layer norm."""
    return (
        Row(f"{source}.weight", f"{target}/scale", same),
        Row(f"{source}.bias", f"{target}/bias", same),
    )


def linear_rows(source: str, target: str) -> tuple[Row, ...]:
    """Kernel and bias of a linear layer."""
    return (
        Row(f"{source}.weight", f"{target}/kernel", transpose),
        Row(f"{source}.bias", f"{target}/bias", same),
    )


def fused_rows(source: str, target: str) -> tuple[Row, ...]:
    """Query, key and value from torch's `in_proj_weight` [3c c] and `in_proj_bias`."""
    rows = []
    for index, name in enumerate(("query", "key", "value")):
        for leaf, ours in (("weight", "kernel"), ("bias", "bias")):
            rows.append(
                Row(
                    f"{source}.in_proj_{leaf}",
                    f"{target}/{name}/{ours}",
                    lambda array, index=index: np.split(array, 3)[index].T,
                )
            )
    return tuple(rows)


def block_rows(source: str, depth: int) -> tuple[Row, ...]:
    """All blocks of a Hugging Face tower (CLIP and SigLIP name them alike)."""
    rows: list[Row] = []
    for j in range(depth):
        theirs, ours = f"{source}.{j}", f"params/block_{j}"
        rows += norm_rows(f"{theirs}.layer_norm1", f"{ours}/norm1")
        for name, leaf in (
            ("query", "q"),
            ("key", "k"),
            ("value", "v"),
            ("out", "out"),
        ):
            rows += linear_rows(f"{theirs}.self_attn.{leaf}_proj", f"{ours}/{name}")
        rows += norm_rows(f"{theirs}.layer_norm2", f"{ours}/norm2")
        rows += linear_rows(f"{theirs}.mlp.fc1", f"{ours}/fc1")
        rows += linear_rows(f"{theirs}.mlp.fc2", f"{ours}/fc2")
    return tuple(rows)


def openai_block_rows(source: str, depth: int) -> tuple[Row, ...]:
    """All blocks of an OpenAI tower: one fused projection for query, key and value."""
    rows: list[Row] = []
    for j in range(depth):
        theirs, ours = f"{source}.{j}", f"params/block_{j}"
        rows += norm_rows(f"{theirs}.ln_1", f"{ours}/norm1")
        rows += fused_rows(f"{theirs}.attn", ours)
        rows += linear_rows(f"{theirs}.attn.out_proj", f"{ours}/out")
        rows += norm_rows(f"{theirs}.ln_2", f"{ours}/norm2")
        rows += linear_rows(f"{theirs}.mlp.c_fc", f"{ours}/fc1")
        rows += linear_rows(f"{theirs}.mlp.c_proj", f"{ours}/fc2")
    return tuple(rows)
