"""F2: the weight files of CLIP's image and text towers.

Two layouts: Hugging Face's CLIPModel (also its two halves with projection), and
OpenAI's state dict, which open_clip and timm's `open_clip_model.safetensors` keep.
Every table names one tower and ignores the other.
"""

from __future__ import annotations

from diffup_jax.backbones import towers
from diffup_jax.weights import Row, Table, oihw, same

# Three integers that OpenAI's archives carry beside the weights.
_OPENAI_SIZES = r"input_resolution|context_length|vocab_size"
OPENAI_TEXT_KEYS = (
    r"(transformer|token_embedding|ln_final)\..*",
    r"positional_embedding|text_projection|logit_scale",
    _OPENAI_SIZES,
)


def vision_tables(depth: int) -> tuple[Table, ...]:
    """The layouts of an image tower of `depth` blocks in a CLIP file."""
    body, visual = "vision_model", "visual"
    return (
        Table(
            "hugging face",
            (
                Row(f"{body}.embeddings.class_embedding", "params/class_token", same),
                Row(
                    f"{body}.embeddings.patch_embedding.weight",
                    "params/patch/kernel",
                    oihw,
                ),
                Row(
                    f"{body}.embeddings.position_embedding.weight",
                    "params/positions",
                    same,
                ),
                *towers.norm_rows(f"{body}.pre_layrnorm", "params/pre_norm"),
                *towers.block_rows(f"{body}.encoder.layers", depth),
                *towers.norm_rows(f"{body}.post_layernorm", "params/post_norm"),
                Row(
                    "visual_projection.weight",
                    "params/projection/kernel",
                    towers.transpose,
                ),
            ),
            (
                r"text_model\..*",
                r"text_projection\.weight",
                r"logit_scale",
                r"vision_model\.embeddings\.position_ids",
            ),
        ),
        Table(
            "openai",
            (
                Row(f"{visual}.class_embedding", "params/class_token", same),
                Row(f"{visual}.conv1.weight", "params/patch/kernel", oihw),
                Row(f"{visual}.positional_embedding", "params/positions", same),
                *towers.norm_rows(f"{visual}.ln_pre", "params/pre_norm"),
                *towers.openai_block_rows(f"{visual}.transformer.resblocks", depth),
                *towers.norm_rows(f"{visual}.ln_post", "params/post_norm"),
                Row(f"{visual}.proj", "params/projection/kernel", same),
            ),
            OPENAI_TEXT_KEYS,
        ),
    )


def text_tables(depth: int) -> tuple[Table, ...]:
    """The layouts of a text tower of `depth` blocks in a CLIP file."""
    body = "text_model"
    return (
        Table(
            "hugging face",
            (
                *towers.embedding_rows(body),
                *towers.block_rows(f"{body}.encoder.layers", depth),
                *towers.norm_rows(f"{body}.final_layer_norm", "params/final_norm"),
                Row(
                    "text_projection.weight",
                    "params/projection/kernel",
                    towers.transpose,
                ),
                Row("logit_scale", "params/log_scale", same),
            ),
            (
                r"vision_model\..*",
                r"visual_projection\.weight",
                r"text_model\.embeddings\.position_ids",
            ),
        ),
        Table(
            "openai",
            (
                Row("token_embedding.weight", "params/tokens/embedding", same),
                Row("positional_embedding", "params/positions", same),
                *towers.openai_block_rows("transformer.resblocks", depth),
                *towers.norm_rows("ln_final", "params/final_norm"),
                Row("text_projection", "params/projection/kernel", same),
                Row("logit_scale", "params/log_scale", same),
            ),
            (r"visual\..*", _OPENAI_SIZES),
        ),
    )
