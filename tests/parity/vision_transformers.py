"""Comparison of our transformers with torch ones, shared by the parity tests here.

`compare` takes a model of the reference library through its file: saved, config.json
read into a variant, safetensors keys converted, both run, every level compared.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import torch

from diffup_jax import weights
from tests.parity.agreement import agree_all


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter away from its default: norms, biases, scales, tokens, positions.

    So a swapped, forgotten or wrongly placed one cannot hide.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name and name.endswith("weight") or "lambda1" in name:
                value.uniform_(0.3, 1.5, generator=generator)
            elif value.ndim >= 2 and name.endswith("weight"):
                deviation = value[0].numel() ** -0.5
                value.normal_(std=deviation, generator=generator)
            else:
                value.normal_(std=0.4, generator=generator)
    return model.eval()


def saved(model: torch.nn.Module, folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """config.json and the arrays of model.safetensors by the file's keys."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    return config, weights.read(folder / "model.safetensors")


def convert(family: ModuleType, variant, source) -> tuple[str, dict]:
    """(layout, parameters) of a file for a variant."""
    recipe = family.recipe_of(variant, dtype=jnp.float32)
    image = np.zeros((1, 2 * variant.patch, 2 * variant.patch, 3), "float32")
    shapes = jax.eval_shape(recipe.module.init, jax.random.key(0), image)
    table, _ = weights.best_table(recipe.tables, source, target_shapes=shapes)
    return table.layout, weights.convert(
        table, source, target_shapes=shapes, what="test"
    )


def compare(
    family: ModuleType, variant, params, body, size: tuple[int, int], **call
) -> None:
    """`agree` for stem, every block and the end.

    `body` is the torch model without head, `call` what its forward is given besides
    the image.
    """
    generator = np.random.default_rng(1)
    images = generator.normal(size=(2, *size, 3)).astype("float32")
    expected = _reference(body, images, call)
    module = family.recipe_of(variant, dtype=jnp.float32).module
    (answer, kept) = jax.jit(
        lambda params, images: module.apply(
            params,
            images,
            capture_intermediates=lambda part, _: part.name == "embed",
        )
    )(params, images)
    grid = (size[0] // variant.patch, size[1] // variant.patch)
    prefix = 1 + variant.registers
    found = {"stem": kept["intermediates"]["embed"]["__call__"][0]}
    found |= answer.levels | {"last": answer.last}
    cells = (2, *grid, variant.width)
    agree_all(
        found,
        {
            name: want if name == "stem" else want[:, prefix:].reshape(cells)
            for name, want in expected.items()
        },
    )


def _reference(body, images, call) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def keep(name):
        def hook(_module, _inputs, out):
            out = out[0] if isinstance(out, tuple) else out
            found[name] = out.numpy()

        return hook

    encoder = getattr(body, "encoder", getattr(body, "model", body))
    layers = getattr(encoder, "layer", None) or encoder.layers
    hooks = [body.embeddings.register_forward_hook(keep("stem"))]
    for j, layer in enumerate(layers):
        hooks.append(layer.register_forward_hook(keep(f"block{j}")))
    with torch.no_grad():
        answer = body(torch.from_numpy(images.transpose(0, 3, 1, 2)), **call)
    for hook in hooks:
        hook.remove()
    return found | {"last": answer.last_hidden_state.numpy()}
