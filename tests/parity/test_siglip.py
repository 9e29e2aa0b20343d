"""SigLIP 2 against Hugging Face's, fixed resolution and NaFlex, from the file's keys.

`joint` has no reference in the library: it is the reference's own pooling head, applied
to every cell as a set of one token.
"""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="parity tests need the extra: pip install 'diffup-jax[parity]'"
)

from transformers import (  # noqa: E402
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)

from diffup_jax import weights  # noqa: E402
from diffup_jax.backbones import siglip  # noqa: E402
from tests.parity.agreement import agree  # noqa: E402
from tests.tower_laws import (  # noqa: E402
    convert,
    image_shapes,
    run,
    text_shapes,
)

# Larger and smaller than the trained 4 x 4 patches: NaFlex's antialias shows itself
# only where the table shrinks.
SIZES = [(32, 32), (16, 56)]
KINDS = {
    "siglip": (SiglipConfig, SiglipModel),
    "siglip2": (Siglip2Config, Siglip2Model),
}
TOWER = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def _randomised(model):
    """No parameter at its initial value: a bias of zero hides a missing bias."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "logit" in name:
                value.fill_(0.7)
            elif "norm" in name:
                value.normal_(std=0.2).add_(float(name.endswith("weight")))
            elif "embedding" in name or "probe" in name:
                value.normal_(std=0.5)
            elif value.ndim == 1:
                value.normal_(std=0.2)
            else:
                value.normal_(std=value[0].numel() ** -0.5)
    return model


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """(torch model, recipe, image parameters, text parameters), from the file."""
    config_kind, model_kind = KINDS[request.param]
    # A giant's text tower is narrower than its image tower.
    text = TOWER | {
        "hidden_size": 16,
        "projection_size": 24,
        "vocab_size": 30,
        "max_position_embeddings": 8,
    }
    vision = TOWER | {"patch_size": 8}
    vision |= {"image_size": 32} if request.param == "siglip" else {"num_patches": 16}
    torch.manual_seed(0)
    model = model_kind(config_kind(text_config=text, vision_config=vision)).eval()
    _randomised(model)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    source = weights.read(folder / "model.safetensors")
    variant = siglip.from_config(model.config.to_dict())
    recipe = siglip.recipe_of(variant, dtype=jnp.float32)
    params, text_params = (
        convert(tables, source, target_shapes=shapes)[1]
        for tables, shapes in (
            (recipe.tables, image_shapes(recipe)),
            (recipe.text.tables, text_shapes(recipe.text)),
        )
    )
    return model, recipe, params, text_params


def _images(size):
    return np.random.default_rng(1).normal(size=(2, *size, 3)).astype("float32")


def _inputs(model, images):
    """The reference's way of taking the images: whole, or cut into patches."""
    if isinstance(model, SiglipModel):
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        return {"pixel_values": pixels, "interpolate_pos_encoding": True}
    b, h, w, _ = images.shape
    p, q = h // 8, w // 8
    patches = images.reshape(b, p, 8, q, 8, 3).transpose(0, 1, 3, 2, 4, 5)
    return {
        "pixel_values": torch.from_numpy(patches.reshape(b, p * q, -1).copy()),
        "pixel_attention_mask": torch.ones(b, p * q, dtype=torch.long),
        "spatial_shapes": torch.tensor([[p, q]] * b),
    }


def _stem(module, images):
    """What enters the first block."""
    return module._tokens(images)[0]


@pytest.mark.parametrize("size", SIZES)
def test_every_level_agrees(pair, size):
    model, recipe, params, _ = pair
    images = _images(size)
    grid = (size[0] // 8, size[1] // 8)
    with torch.no_grad():
        want = model.vision_model(**_inputs(model, images), output_hidden_states=True)
        cells = want.last_hidden_state.reshape(-1, 1, 24)
        alone = [model.vision_model.head(cell[None]) for cell in cells]
        joint = torch.cat(alone).reshape(2, *grid, 24)
        joint = (joint / joint.norm(dim=-1, keepdim=True)).numpy()
    stem = run(recipe.module, params, images, method=_stem)
    agree("stem", stem, want.hidden_states[0])
    answer = run(recipe.module, params, images)
    for j, hidden in enumerate(want.hidden_states[1:]):
        cells = hidden.reshape(2, *grid, -1).numpy()
        agree(f"block{j}", answer.levels[f"block{j}"], cells)
    agree("last", answer.last, want.last_hidden_state.reshape(2, *grid, -1))
    agree("joint", answer.joint, joint)


def test_text_and_logits_agree(pair):
    model, recipe, params, text_params = pair
    images = _images(SIZES[1])
    ids = np.random.default_rng(2).integers(0, 30, (3, 8)).astype(np.int32)
    with torch.no_grad():
        want = model(input_ids=torch.from_numpy(ids).long(), **_inputs(model, images))
    text = recipe.text.module
    hidden = run(text, text_params, ids, method="hidden")
    agree("text hidden", hidden, want.text_model_output.last_hidden_state)
    texts = run(text, text_params, ids)
    agree("text", texts, want.text_embeds)
    embed = run(recipe.module, params, images, method="embed")
    agree("image", embed, want.image_embeds)
    scale, bias = run(text, text_params, method="scale")
    agree("logits", scale * embed @ texts.T + bias, want.logits_per_image)
