"""CLIP's transformers against Hugging Face's, level by level, from the file's keys.

Everything is random and offline, the trained size is 4 x 4 patches; the second size is
not square, so that positions are resized. `joint` has no reference in the library: it
is written out here in torch.
"""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="parity tests need the extra: pip install 'diffup-jax[parity]'"
)

from transformers import CLIPConfig, CLIPModel  # noqa: E402

from diffup_jax import weights  # noqa: E402
from diffup_jax.backbones import clip  # noqa: E402
from tests.parity.agreement import agree  # noqa: E402
from tests.tower_laws import (  # noqa: E402
    convert,
    image_shapes,
    run,
    text_shapes,
)

SIZES = [(32, 32), (24, 56)]
EOS = 49


def reference(*, activation="quick_gelu", eos=EOS):
    config = CLIPConfig(
        projection_dim=20,
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "patch_size": 8,
            "image_size": 32,
            "hidden_act": activation,
        },
        text_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": EOS + 1,
            "max_position_embeddings": 12,
            "hidden_act": activation,
            "eos_token_id": eos,
            "bos_token_id": 1,
        },
    )
    torch.manual_seed(0)
    return randomised(CLIPModel(config).eval())


def randomised(model):
    """No parameter at its initial value: a bias of zero hides a missing bias."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 0 or "logit" in name:
                value.fill_(0.7)
            elif "norm" in name or "layrnorm" in name:
                offset = float(name.endswith("weight"))
                value.normal_(std=0.2).add_(offset)
            elif "embedding" in name or "probe" in name:
                value.normal_(std=0.5)
            elif value.ndim == 1:
                value.normal_(std=0.2)
            else:
                value.normal_(std=value[0].numel() ** -0.5)
    return model


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(torch model, recipe, image parameters, text parameters), from the file."""
    return load(reference(), tmp_path_factory.mktemp("clip"))


def load(model, folder):
    model.save_pretrained(folder)
    source = weights.read(folder / "model.safetensors")
    variant = clip.from_config(model.config.to_dict())
    recipe = clip.recipe_of(variant, dtype=jnp.float32)
    (layout, params), (text_layout, text_params) = (
        convert(tables, source, target_shapes=shapes)
        for tables, shapes in (
            (recipe.tables, image_shapes(recipe)),
            (recipe.text.tables, text_shapes(recipe.text)),
        )
    )
    assert layout == text_layout == "hugging face"
    return model, recipe, params, text_params


def _images(size):
    return np.random.default_rng(1).normal(size=(2, *size, 3)).astype("float32")


def _nchw(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def _unit(x):
    return (x / x.norm(dim=-1, keepdim=True)).detach().numpy()


def _stem(module, images):
    """What enters the first block."""
    return module._tokens(images)[0]


@pytest.mark.parametrize("size", SIZES)
def test_every_level_agrees(pair, size):
    model, recipe, params, _ = pair
    images = _images(size)
    grid = (size[0] // 8, size[1] // 8)
    with torch.no_grad():
        want = model.vision_model(
            _nchw(images), interpolate_pos_encoding=True, output_hidden_states=True
        )
    stem = run(recipe.module, params, images, method=_stem)
    agree("stem", stem, want.hidden_states[0])
    answer = run(recipe.module, params, images)
    for j, hidden in enumerate(want.hidden_states[1:]):
        cells = hidden[:, 1:].reshape(2, *grid, -1).numpy()
        agree(f"block{j}", answer.levels[f"block{j}"], cells)
    last = want.last_hidden_state[:, 1:].reshape(2, *grid, -1).numpy()
    agree("last", answer.last, last)


@pytest.mark.parametrize("size", SIZES)
def test_joint_is_the_value_path(pair, size):
    model, recipe, params, _ = pair
    images = _images(size)
    tower = model.vision_model
    layer = tower.encoder.layers[-1]
    with torch.no_grad():
        x = tower(
            _nchw(images), interpolate_pos_encoding=True, output_hidden_states=True
        ).hidden_states[-2][:, 1:]
        v = layer.self_attn.out_proj(layer.self_attn.v_proj(layer.layer_norm1(x)))
        want = _unit(model.visual_projection(tower.post_layernorm(v)))
    joint = run(recipe.module, params, images).joint
    agree("joint", joint, want.reshape(joint.shape))


def _ids():
    """Rows whose mark is at the end, in the middle, and doubled as padding."""
    ids = np.random.default_rng(2).integers(3, EOS, (4, 12))
    ids[:, 0], ids[0, -1], ids[1, 5], ids[2, 3:] = 1, EOS, EOS, EOS
    ids[3, 8] = EOS
    return ids.astype(np.int32)


def test_text_and_logits_agree(pair):
    model, recipe, params, text_params = pair
    ids, images = _ids(), _images(SIZES[1])
    with torch.no_grad():
        want = model(
            input_ids=torch.from_numpy(ids).long(),
            pixel_values=_nchw(images),
            interpolate_pos_encoding=True,
        )
    text = recipe.text.module
    hidden = run(text, text_params, ids, method="hidden")
    agree("text hidden", hidden, want.text_model_output.last_hidden_state)
    texts = run(text, text_params, ids)
    agree("text", texts, want.text_embeds)
    embed = run(recipe.module, params, images, method="embed")
    agree("image", embed, want.image_embeds)
    scale, bias = run(text, text_params, method="scale")
    agree("logits", scale * embed @ texts.T + bias, want.logits_per_image)


@pytest.mark.parametrize(("activation", "eos"), [("gelu", EOS), ("quick_gelu", 2)])
def test_other_activation_and_the_old_end_rule(tmp_path, activation, eos):
    """With eos_token_id 2, as in files of 2023 and before, the largest id counts."""
    model, recipe, params, text_params = load(
        reference(activation=activation, eos=eos), tmp_path
    )
    ids, images = _ids(), _images(SIZES[0])
    with torch.no_grad():
        want = model(input_ids=torch.from_numpy(ids).long(), pixel_values=_nchw(images))
    agree("text", run(recipe.text.module, text_params, ids), want.text_embeds)
    embed = run(recipe.module, params, images, method="embed")
    agree("image", embed, want.image_embeds)


def _openai(source):
    """The same weights under OpenAI's names, query, key and value fused."""
    found = {}
    for key, value in source.items():
        if "k_proj" in key or "v_proj" in key:
            continue
        if "q_proj" in key:
            value = np.concatenate(
                [source[key.replace("q_proj", f"{p}_proj")] for p in "qkv"]
            )
        if key in ("visual_projection.weight", "text_projection.weight"):
            value = value.T
        for theirs, ours in (
            ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
            ("vision_model.embeddings.patch_embedding", "visual.conv1"),
            (
                "vision_model.embeddings.position_embedding.weight",
                "visual.positional_embedding",
            ),
            ("vision_model.pre_layrnorm", "visual.ln_pre"),
            ("vision_model.post_layernorm", "visual.ln_post"),
            ("vision_model.encoder.layers", "visual.transformer.resblocks"),
            ("visual_projection.weight", "visual.proj"),
            ("text_model.embeddings.token_embedding", "token_embedding"),
            (
                "text_model.embeddings.position_embedding.weight",
                "positional_embedding",
            ),
            ("text_model.final_layer_norm", "ln_final"),
            ("text_model.encoder.layers", "transformer.resblocks"),
            ("text_projection.weight", "text_projection"),
            ("self_attn.q_proj.", "attn.in_proj_"),
            ("self_attn.out_proj", "attn.out_proj"),
            ("layer_norm", "ln_"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
        ):
            key = key.replace(theirs, ours)
        found[key] = value
    return found


def test_openai_layout_gives_identical_params(pair, tmp_path):
    model, recipe, params, text_params = pair
    model.save_pretrained(tmp_path)
    renamed = _openai(weights.read(tmp_path / "model.safetensors"))
    # What OpenAI's archives hold beside the weights.
    renamed |= {
        key: np.array(7) for key in ("input_resolution", "context_length", "vocab_size")
    }
    for tables, shapes, want in (
        (recipe.tables, image_shapes(recipe), params),
        (recipe.text.tables, text_shapes(recipe.text), text_params),
    ):
        layout, got = convert(tables, renamed, target_shapes=shapes)
        assert layout == "openai"
        assert weights.digest(got) == weights.digest(want)
