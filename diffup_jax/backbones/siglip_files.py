"""F2: the weight files of SigLIP: Hugging Face's SiglipModel and Siglip2Model.

Every table names one tower and ignores the other.
"""

from __future__ import annotations

import numpy as np

from diffup_jax.backbones import towers
from diffup_jax.weights import Row, Table, oihw, same


def vision_tables(depth: int, *, patch: int, naflex: bool) -> tuple[Table, ...]:
    """An image tower of `depth` blocks; the kernel of its patches of `patch` pixels is
    kept as a linear layer's in a `naflex` file.
    """
    body, head = "vision_model", "vision_model.head"

    def unfolded(kernel: np.ndarray) -> np.ndarray:
        """NaFlex: a linear layer [c, patch * patch * 3] over pixels row by row."""
        return kernel.reshape(-1, patch, patch, 3).transpose(1, 2, 3, 0)

    return (
        Table(
            "hugging face",
            (
                Row(
                    f"{body}.embeddings.patch_embedding.weight",
                    "params/patch/kernel",
                    unfolded if naflex else oihw,
                ),
                Row(
                    f"{body}.embeddings.patch_embedding.bias", "params/patch/bias", same
                ),
                Row(
                    f"{body}.embeddings.position_embedding.weight",
                    "params/positions",
                    same,
                ),
                *towers.block_rows(f"{body}.encoder.layers", depth),
                *towers.norm_rows(f"{body}.post_layernorm", "params/post_norm"),
                Row(f"{head}.probe", "params/head/probe", same),
                *towers.fused_rows(f"{head}.attention", "params/head"),
                *towers.linear_rows(f"{head}.attention.out_proj", "params/head/out"),
                *towers.norm_rows(f"{head}.layernorm", "params/head/norm"),
                *towers.linear_rows(f"{head}.mlp.fc1", "params/head/fc1"),
                *towers.linear_rows(f"{head}.mlp.fc2", "params/head/fc2"),
            ),
            (
                r"text_model\..*",
                r"logit_scale|logit_bias",
                r"vision_model\.embeddings\.position_ids",
            ),
        ),
    )


def text_tables(depth: int) -> tuple[Table, ...]:
    """A text tower of `depth` blocks."""
    body = "text_model"
    return (
        Table(
            "hugging face",
            (
                *towers.embedding_rows(body),
                *towers.block_rows(f"{body}.encoder.layers", depth),
                *towers.norm_rows(f"{body}.final_layer_norm", "params/final_norm"),
                *towers.linear_rows(f"{body}.head", "params/projection"),
                Row("logit_scale", "params/log_scale", _scalar),
                Row("logit_bias", "params/bias", _scalar),
            ),
            (r"vision_model\..*", r"text_model\.embeddings\.position_ids"),
        ),
    )


def _scalar(array: np.ndarray) -> np.ndarray:
    return array.reshape(())
