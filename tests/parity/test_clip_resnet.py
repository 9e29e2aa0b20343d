"""CLIP's residual networks against a torch model written here from their description.

No installed library has them. The description: arXiv 2103.00020, section 2.4, and the
key names of OpenAI's state dict. Everything is random and offline.
"""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="parity tests need the extra: pip install 'diffup-jax[parity]'"
)

import safetensors.torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from diffup_jax import weights  # noqa: E402
from diffup_jax.backbones import clip, clip_resnet  # noqa: E402
from diffup_jax.backbones.towers import Tower  # noqa: E402
from tests.parity.agreement import agree  # noqa: E402
from tests.tower_laws import (  # noqa: E402
    convert,
    image_shapes,
    run,
    text_shapes,
)

SMALL = clip_resnet.Variant(
    width=8,
    blocks=(2, 1, 2, 1),
    heads=4,
    grid=2,
    text=clip.Text(Tower(16, 2, 2, 64, "quick_gelu", 1e-5), 30, 10, 20, 29, "clip"),
    packaged="",
    hub="",
    licence="",
)


def _norm(channels):
    return nn.BatchNorm2d(channels)


class Bottleneck(nn.Module):
    def __init__(self, before, width, stride):
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = _norm(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = _norm(4 * width)
        if stride > 1 or before != 4 * width:
            shortcut = nn.Conv2d(before, 4 * width, 1, bias=False)
            self.downsample = nn.Sequential(shortcut, _norm(4 * width))

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(functional.avg_pool2d(y, self.stride)))
        if hasattr(self, "downsample"):
            x = self.downsample(functional.avg_pool2d(x, self.stride))
        return (x + y).relu()


class AttentionPool(nn.Module):
    def __init__(self, cells, width, heads, joint):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(cells + 1, width))
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, joint)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x))
        )
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.c_proj(y.transpose(1, 2).flatten(2))[:, 0]

    def dense(self, x):
        value, out = (p.weight[:, :, None, None] for p in (self.v_proj, self.c_proj))
        y = functional.conv2d(x, value, self.v_proj.bias)
        return functional.conv2d(y, out, self.c_proj.bias)


class Visual(nn.Module):
    def __init__(self, variant):
        super().__init__()
        width = variant.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = _norm(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = _norm(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = _norm(width)
        before = width
        for stage, count in enumerate(variant.blocks, start=1):
            inner = width * 2 ** (stage - 1)
            blocks = []
            for block in range(count):
                stride = 2 if stage > 1 and block == 0 else 1
                blocks.append(Bottleneck(before, inner, stride))
                before = 4 * inner
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.attnpool = AttentionPool(
            variant.grid**2, before, variant.heads, variant.text.joint
        )

    def levels(self, x):
        for i in (1, 2, 3):
            conv, norm = getattr(self, f"conv{i}"), getattr(self, f"bn{i}")
            x = norm(conv(x)).relu()
        x = functional.avg_pool2d(x, 2)
        found = {"stem": x}
        for stage in (1, 2, 3, 4):
            for index, block in enumerate(getattr(self, f"layer{stage}")):
                x = block(x)
                found[f"stage{stage}.block{index}"] = x
        return found


class TextBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        )

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y))


class Clip(nn.Module):
    """Image and text towers under OpenAI's names."""

    def __init__(self, variant):
        super().__init__()
        text = variant.text
        width = text.tower.width
        self.visual = Visual(variant)
        self.token_embedding = nn.Embedding(text.vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.randn(text.context, width))
        blocks = [TextBlock(width, text.tower.heads) for _ in range(text.tower.depth)]
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(blocks)})
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, text.joint))
        self.logit_scale = nn.Parameter(torch.tensor(1.3))

    def encode_text(self, ids):
        x = self.token_embedding(ids) + self.positional_embedding
        mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)
        for block in self.transformer["resblocks"]:
            x = block(x, mask)
        x = self.ln_final(x)[torch.arange(len(ids)), ids.argmax(-1)]
        return x @ self.text_projection


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(torch model, recipe, image parameters, text parameters), from the file."""
    torch.manual_seed(0)
    model = Clip(SMALL).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.3, 2.0)
        elif isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.bias, std=0.2)
        elif isinstance(module, nn.MultiheadAttention):
            nn.init.normal_(module.in_proj_bias, std=0.2)
            nn.init.normal_(module.out_proj.bias, std=0.2)
    path = tmp_path_factory.mktemp("clip") / "model.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    recipe = clip_resnet.recipe_of(SMALL, dtype=jnp.float32)
    source = weights.read(path)
    params, text_params = (
        convert(tables, source, target_shapes=shapes)[1]
        for tables, shapes in (
            (recipe.tables, image_shapes(recipe)),
            (recipe.text.tables, text_shapes(recipe.text)),
        )
    )
    return model, recipe, params, text_params


def _images(size):
    images = np.random.default_rng(1).normal(size=(2, *size, 3)).astype("float32")
    return images, torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def _nhwc(x):
    return x.numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_every_level_and_joint_agree(pair, size):
    model, recipe, params, _ = pair
    images, pixels = _images(size)
    answer = run(recipe.module, params, images)
    with torch.no_grad():
        levels = model.visual.levels(pixels)
        joint = model.visual.attnpool.dense(levels["stage4.block0"])
    assert levels.keys() == answer.levels.keys()
    for name, want in levels.items():
        agree(name, answer.levels[name], _nhwc(want))
    agree("last", answer.last, _nhwc(levels["stage4.block0"]))
    agree("joint", answer.joint, _nhwc(joint / joint.norm(dim=1, keepdim=True)))


def _unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def test_embeddings_and_logits_agree(pair):
    model, recipe, params, text_params = pair
    images, pixels = _images((64, 64))
    ids = np.random.default_rng(2).integers(0, 29, (3, 10)).astype(np.int32)
    ids[[0, 1, 2], [9, 4, 6]] = 29
    with torch.no_grad():
        cells = model.visual.levels(pixels)["stage4.block0"]
        image = _unit(model.visual.attnpool(cells))
        text = _unit(model.encode_text(torch.from_numpy(ids).long()))
        logits = model.logit_scale.exp() * image @ text.T
    embed = run(recipe.module, params, images, method="embed")
    agree("image", embed, image)
    texts = run(recipe.text.module, text_params, ids)
    agree("text", texts, text)
    scale, bias = run(recipe.text.module, text_params, method="scale")
    agree("logits", scale * embed @ texts.T + bias, logits)


def test_positions_of_another_size_are_resized(pair):
    """Our choice, for the original has none: torch's bicubic, mean token kept."""
    model, recipe, params, _ = pair
    images, pixels = _images((96, 160))
    pool = model.visual.attnpool
    trained = pool.positional_embedding
    with torch.no_grad():
        table = trained[1:].reshape(1, 2, 2, -1).permute(0, 3, 1, 2)
        table = functional.interpolate(
            table, (3, 5), mode="bicubic", align_corners=False
        )
        rows = table.permute(0, 2, 3, 1).reshape(15, -1)
        pool.positional_embedding = nn.Parameter(torch.cat([trained[:1], rows]))
        want = _unit(pool(model.visual.levels(pixels)["stage4.block0"]))
        pool.positional_embedding = trained
    agree("image", run(recipe.module, params, images, method="embed"), want)
