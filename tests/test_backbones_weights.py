"""Backbones from files: which weights they get, both towers, and clear errors."""

from __future__ import annotations

import functools
import importlib.resources
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax import backbones, weights
from diffup_jax.backbones import folders, resnet, stores
from diffup_jax.backbones.recipe import TextRecipe
from diffup_jax.types import DiffUpError, Features, Level

pytestmark = pytest.mark.usefixtures("no_network")


@functools.cache
def _get(name: str) -> backbones.Backbone:
    return backbones.get(name, weights="random")


def _images(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_digest_names_the_weights(tmp_path):
    backbone = _get("tiny")
    assert backbone.weights == "random"
    assert backbone.digest == weights.digest(backbone.params)
    path = tmp_path / "one.safetensors"
    changed = jax.tree.map(lambda x: x + 1, backbone.params)
    for params in (backbone.params, changed):
        weights.save(path, params, half=False)
        loaded = backbones.get("tiny", weights=str(path))
        assert loaded.weights == str(path)
        assert (loaded.digest == backbone.digest) is (params is backbone.params)


def test_packaged_weights_are_trained_ones():
    packaged = importlib.resources.files(backbones) / resnet.VARIANTS["tiny"].packaged
    if not packaged.is_file():
        pytest.skip("tiny.safetensors is not built: run demo/pretrain_tiny.py")
    by_none, by_empty = (backbones.get("tiny", weights=w) for w in (None, ""))
    assert by_none.weights == by_empty.weights == "packaged"
    assert by_none.digest == by_empty.digest != _get("tiny").digest
    last = np.asarray(by_none(_images(6, 2, 64, 64)).last)
    assert np.isfinite(last).all()
    assert last.std() > 0


def test_missing_weights_name_the_file_and_the_option(tmp_path):
    absent = str(tmp_path / "absent.safetensors")
    option = r"(?s)--config\.backbone\.weights=PATH.*weights=\"random\""
    with pytest.raises(DiffUpError, match=option) as caught:
        backbones.get("resnet50", weights=absent)
    assert absent in str(caught.value)
    for empty in ("", None):
        with pytest.raises(DiffUpError, match=option) as caught:
            backbones.get("squeezenet1_1", weights=empty)
        assert "'squeezenet1_1'" in str(caught.value)


def test_default_weights_that_are_not_there_name_id_cache_and_command(tmp_path):
    for empty in ("", None):
        with pytest.raises(DiffUpError) as caught:
            backbones.get("resnet50", weights=empty)
        for part in (
            "'timm/resnet50.tv_in1k'",
            repr(str(tmp_path / "hub")),
            "diffup backbones fetch resnet50",
        ):
            assert part in str(caught.value)


def test_from_folder_wants_the_config_of_a_known_family(tmp_path):
    with pytest.raises(DiffUpError, match="No folder at"):
        backbones.from_folder(tmp_path / "absent")
    with pytest.raises(DiffUpError, match=r"config\.json is missing.*name the network"):
        backbones.from_folder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DiffUpError, match=r"'bert'.*Families: resnet"):
        backbones.from_folder(tmp_path)
    config = {"model_type": "resnet", "hidden_act": "gelu"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DiffUpError, match="hidden_act = 'gelu'.*'relu'"):
        backbones.from_folder(tmp_path)


def test_a_folder_says_how_its_images_are_normalised(tmp_path):
    """Without the file the family's own constants; a strange file is told."""
    assert folders.normalise(tmp_path) is None
    file = tmp_path / "preprocessor_config.json"
    file.write_text('{"image_mean": [0.4, 0.3, 0.2], "image_std": [0.2, 0.2, 0.3]}')
    assert folders.normalise(tmp_path) == ((0.4, 0.3, 0.2), (0.2, 0.2, 0.3), False)
    file.write_text('{"do_normalize": false}')
    assert folders.normalise(tmp_path) == ((0, 0, 0), (1, 1, 1), False)
    for content, told in (
        ("{", "is not valid JSON.*correct or remove it"),
        ("{}", "cannot be read.*correct or remove it"),
        ('{"image_mean": 0.5, "image_std": 1}', "cannot be read"),
    ):
        file.write_text(content)
        with pytest.raises(DiffUpError, match=rf"preprocessor_config.*{told}"):
            folders.normalise(tmp_path)
    file.write_text('{"do_normalize": false, "rescale_factor": 1}')
    with pytest.raises(DiffUpError, match=r"rescale_factor 1\.0.*expected 1/255"):
        folders.normalise(tmp_path)


def test_resnet_sizes_come_from_the_config():
    for name, config in (
        ("resnet50", {}),
        (
            "resnet18",
            {
                "layer_type": "basic",
                "hidden_sizes": [64, 128, 256, 512],
                "depths": [2, 2, 2, 2],
            },
        ),
    ):
        variant = resnet.from_config({"model_type": "resnet", **config})
        assert variant == resnet.VARIANTS[name]._replace(hub="", licence="")
    assert resnet.from_config({"model_type": "vit"}) is None


def test_parameters_in_a_store_are_the_same_network(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "_WORTH_KEEPING", 0)
    first = _get("tiny")
    path = tmp_path / "one.safetensors"
    weights.save(path, first.params, half=False)
    made, again = (backbones.get("tiny", weights=str(path)) for _ in range(2))
    (kept,) = (tmp_path / "cache" / "backbones").glob("tiny-*.safetensors")
    assert made.digest == again.digest == first.digest
    assert weights.load_converted(kept)[1] == first.digest
    for got, want in zip(
        jax.tree.leaves(again.params), jax.tree.leaves(first.params), strict=True
    ):
        np.testing.assert_array_equal(got, want)


def test_a_text_backbone_keeps_both_towers_in_its_own_layout(tmp_path):
    """Own files, books and digest cover both towers; half a file is refused."""
    recipe = _two_towers()
    made = backbones._random("two", recipe)
    both = {"image": made.params, "text": made.text_params}
    assert made.digest == weights.digest(both)
    path = tmp_path / "two.safetensors"
    weights.save(path, both, half=False)
    source = stores.Source((path,), "here", tmp_path)
    loaded = backbones._build("two", recipe, source, sizes="")
    assert loaded.digest == made.digest
    assert loaded.has_text
    weights.save(path, {"image": made.params}, half=False)
    with pytest.raises(DiffUpError, match=r"'two' \(text tower\)"):
        backbones._build("two", recipe, source, sizes="")


def test_global_score_is_scale_times_product_plus_bias(monkeypatch):
    backbone = backbones._random("two", _two_towers())
    monkeypatch.setattr(
        backbones.Backbone, "tokenize", lambda self, texts: np.array([[1], [2]])
    )
    images = _images(8, 3, 4, 4)
    own = backbone.module.apply(
        backbone.params,
        backbones.to_network(images, backbone.normalise),
        method="embed",
    )
    texts = backbone.encode_text(["a", "b"])
    want = 3.0 * np.asarray(own) @ np.asarray(texts).T - 1.0
    np.testing.assert_allclose(backbone.score(images, ["a", "b"]), want, rtol=1e-5)


class _Image(nn.Module):
    def setup(self):
        self.dense = nn.Dense(2)

    def __call__(self, x):
        x = self.dense(x)
        return Features({"only": x}, x, x)

    def embed(self, x):
        return self.dense(x).mean((1, 2))


class _Text(nn.Module):
    def setup(self):
        self.tokens = nn.Embed(4, 2)

    def __call__(self, ids):
        return self.tokens(ids).mean(1)

    def scale(self):
        return jnp.float32(3), jnp.float32(-1)


def _two_towers():
    return backbones.recipe("tiny")._replace(
        module=_Image(),
        levels=(Level("only", 1, 2),),
        tables=(),
        text=TextRecipe(_Text(), 1, "clip", ()),
    )


def test_weights_of_another_network_are_named_first(tmp_path):
    path = tmp_path / "other.safetensors"
    weights.save(path, _get("squeezenet1_1").params, half=False)
    with pytest.raises(DiffUpError) as caught:
        backbones.get("tiny", weights=str(path))
    first = str(caught.value).splitlines()[0]
    for part in ("'tiny'", "0 of the 50 keys", str(path)):
        assert part in first
    with pytest.raises(DiffUpError, match=r"'squeezenet1_0'.*47 of the 50 keys"):
        backbones.get("squeezenet1_0", weights=str(path))
