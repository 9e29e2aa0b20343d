"""F2: a backbone against its torch reference, on the same weights, level by level.

The error of a level is max |ours - reference| / max |reference|, float32, on one random
image, not square. The reference is `transformers.AutoModel` for a folder with Hugging
Face's config.json, and `torch_reference` for ResNet and VGG files without one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffup_jax import backbones
from diffup_jax.backbones import efficientnet, folders, resnet, stores, vgg
from diffup_jax.types import DiffUpError

# What float32 leaves between two libraries over a deep network; a wrong activation,
# epsilon or padding gives a hundred times as much.
TOLERANCE = 1e-4
# Rows and columns, up to the next multiple. Swin's reference fails on a grid smaller
# than its window (12 cells of 32 pixels).
_SIZE = (384, 416)
_TEXTS = ("a photo of a cat", "a dog", "two people on a bicycle")
# Variants with a reference in torch_reference, whose import needs torch: family, class.
_OWN = {
    resnet.Variant: (resnet, "ResNet"),
    vgg.Variant: (vgg, "VGG"),
    efficientnet.Variant: (efficientnet, "EfficientNetLite"),
}


def compare(name: str, *, weights: str | None) -> tuple[backbones.Backbone, dict]:
    """(the backbone, {level or "last" or "text": relative error}).

    Raises DiffUpError without torch, and when there is no reference for the files.
    """
    try:
        import torch
    except ImportError as error:
        raise DiffUpError(
            "Comparing with the reference needs torch: pip install 'diffup-jax[parity]'"
        ) from error
    if weights == "random":
        raise DiffUpError(
            "Untrained weights have no reference. Give the files with --weights."
        )
    source = backbones.locate(name, weights=weights)
    backbone = backbones.get(name, weights=weights)
    unit = backbone.multiple_of
    shape = (1, *(-(-side // unit) * unit for side in _SIZE), 3)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    ours = jax.jit(backbone.module.apply)(backbone.params, images)
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        theirs = _reference(name, backbone, source, pixels)
    found = {}
    for level, want in theirs.items():
        if level != "text":
            got = ours.last if level == "last" else ours.levels[level]
            found[level] = _error(got, want)
    if "text" in theirs:
        ids = jnp.asarray(_ids(backbone))
        found["text"] = _error(
            backbone.apply_text(backbone.text_params, ids), theirs["text"]
        )
    return backbone, found


def text(errors: dict[str, float]) -> str:
    """One line for each level, the worst one last."""
    width = max(map(len, errors))
    lines = [f"{level.ljust(width)}  {error:.1e}" for level, error in errors.items()]
    worst = max(errors, key=errors.__getitem__)
    verdict = "agrees" if errors[worst] <= TOLERANCE else "DIFFERS"
    return "\n".join(
        (*lines, f"{verdict}: largest relative error {errors[worst]:.1e} at {worst}")
    )


def _error(got: Any, want: np.ndarray) -> float:
    got = np.asarray(got, np.float32)
    if got.shape != want.shape:
        raise DiffUpError(f"Shapes differ: ours {got.shape}, reference {want.shape}.")
    return float(np.abs(got - want).max() / np.abs(want).max())


def _reference(name, backbone, source: stores.Source, pixels) -> dict[str, np.ndarray]:
    variant = getattr(backbone.module, "variant", None)
    own = type(variant) in _OWN
    dilated = isinstance(variant, resnet.Variant) and any(variant.dilate)
    config = source.folder / "config.json"
    model_type = (
        folders.config(source.folder).get("model_type") if config.is_file() else ""
    )
    if model_type and not dilated:
        return _transformers(backbone, source.folder, pixels)
    if own and source.origin != "packaged":
        return _plain(name, variant, source, pixels)
    raise DiffUpError(
        f"There is no reference for {source.origin!r} as it is. Give a folder or id "
        "with Hugging Face's config.json and safetensors: "
        f"diffup backbones check {name} --weights FOLDER"
    )


def _plain(name, variant, source, pixels) -> dict[str, np.ndarray]:
    """Through the reference's names, whatever the file's own are."""
    import torch

    from diffup_jax import weights as weight_files
    from diffup_jax.backbones import torch_reference

    family, model = _OWN[type(variant)]
    arrays = stores.read(source)
    tables = family.tables(variant)
    like = backbones.shapes(backbones.recipe(name))["image"]
    table, fit = weight_files.best_table(tables, arrays, target_shapes=like)
    if fit < len(table.rows):
        raise DiffUpError(
            f"{source.origin!r} is in this project's own layout, which no reference "
            "reads. Check the file that it was converted from."
        )
    theirs = {row.target: row.source for row in tables[0].rows}
    state = {theirs[row.target]: arrays[row.source] for row in table.rows}
    network = getattr(torch_reference, model)(variant).eval()
    missing, strange = network.load_state_dict(
        {k: torch.from_numpy(np.array(v, np.float32)) for k, v in state.items()},
        strict=False,
    )
    counters = [key for key in missing if not key.endswith("num_batches_tracked")]
    if counters or strange:
        raise DiffUpError(f"The reference has no use for {strange}, misses {counters}.")
    found = {k: _nhwc(v) for k, v in network(pixels).items()}
    return found | {"last": list(found.values())[-1]}


def _transformers(backbone, folder: Path, pixels) -> dict[str, np.ndarray]:
    import torch
    import transformers

    model, told = transformers.AutoModel.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
        output_loading_info=True,
    )
    # A pooler is no part of any level; classification files do not have one.
    absent = [key for key in told["missing_keys"] if "pooler" not in key]
    if absent:
        raise DiffUpError(
            f"transformers does not find all weights in {str(folder)!r}: {absent[:3]}."
        )
    model = model.eval()
    vision = getattr(model, "vision_model", model)
    options = {}
    if "interpolate_pos_encoding" in vision.forward.__code__.co_varnames:
        options["interpolate_pos_encoding"] = True
    answer = vision(pixels, output_hidden_states=True, **options)
    known = {level.name: level for level in backbone.levels}
    found = {}
    hidden = getattr(answer, "reshaped_hidden_states", None) or answer.hidden_states
    for index, value in enumerate(hidden[1:]):
        name = f"block{index}" if value.ndim == 3 else _end_of(known, index + 1)
        if name in known:
            value = _cells(value, known[name].stride, pixels)
            if value.shape[-1] == known[name].channels:  # not after a reduction
                found[name] = value
    last = answer.last_hidden_state
    found["last"] = _cells(last, backbone.levels[-1].stride, pixels)
    if backbone.has_text and hasattr(model, "text_model"):
        ids = torch.from_numpy(_ids(backbone).astype(np.int64))
        features = model.get_text_features(input_ids=ids)
        features = getattr(features, "pooler_output", features)
        found["text"] = (features / features.norm(dim=-1, keepdim=True)).numpy()
    return found


def _ids(backbone: backbones.Backbone) -> np.ndarray:
    return backbone.tokenize(_TEXTS)


def _end_of(known, stage: int) -> str:
    blocks = [name for name in known if re.match(rf"stage{stage}\.", name)]
    return blocks[-1] if blocks else ""


def _cells(value, stride: int, pixels) -> np.ndarray:
    """Spatial tokens only, as [b p q c]; what precedes them is dropped."""
    if value.ndim == 4:
        return _nhwc(value)
    rows, columns = (size // stride for size in pixels.shape[2:])
    value = value[:, -rows * columns :]
    return value.reshape(len(value), rows, columns, -1).numpy()


def _nhwc(value) -> np.ndarray:
    return value.numpy().transpose(0, 2, 3, 1)
