"""What every backbone promises: its levels, that it is frozen, and clear errors."""

import functools
import importlib.resources

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax import backbones, weights
from diffup_jax.backbones import resnet
from diffup_jax.types import DiffUpError

SMALL = ("tiny", "squeezenet1_1")


@functools.cache
def _get(name: str) -> backbones.Backbone:
    return backbones.get(name, weights="random")


def _images(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(96, 64), (97, 131)])
@pytest.mark.parametrize("name", backbones.names())
def test_levels_are_what_was_announced(name, size):
    backbone = _get(name)
    answer = jax.eval_shape(
        functools.partial(backbone.apply, normalised=False),
        backbone.params,
        jax.ShapeDtypeStruct((2, *size, 3), jnp.uint8),
    )
    assert set(answer.levels) == {level.name for level in backbone.levels}
    assert len(answer.levels) == len(backbone.levels)
    for level in backbone.levels:
        grid = tuple(-(-pixels // level.stride) for pixels in size)
        assert answer.levels[level.name].shape == (2, *grid, level.channels)
        assert answer.levels[level.name].dtype == jnp.float32
    assert answer.last.shape == answer.levels[backbone.levels[-1].name].shape
    assert answer.joint is None
    assert not backbone.has_text


@pytest.mark.parametrize("name", backbones.names())
def test_prior_levels_are_levels(name):
    backbone = _get(name)
    known = [level.name for level in backbone.levels]
    assert backbone.prior_levels
    assert [n for n in known if n in backbone.prior_levels] == list(
        backbone.prior_levels
    )


def test_resnet_prior_levels_are_end_of_stage_3_and_all_of_stage_4():
    for name, last in (("resnet50", 5), ("resnet101", 22)):
        assert _get(name).prior_levels == (
            f"stage3.block{last}",
            *(f"stage4.block{i}" for i in range(3)),
        )


def test_parameter_counts_are_the_published_ones():
    """torchvision's 25 557 032 and 44 549 160 less the 2048x1000 head and its bias."""
    for name, total in (("resnet50", 25_557_032), ("resnet101", 44_549_160)):
        count = sum(x.size for x in jax.tree.leaves(_get(name).params["params"]))
        assert count == total - 2048 * 1000 - 1000
    tiny = sum(x.size for x in jax.tree.leaves(_get("tiny").params["params"]))
    assert tiny <= 1_500_000


@pytest.mark.parametrize("name", SMALL)
def test_no_gradient_passes(name):
    backbone = _get(name)

    def total(params, images):
        answer = backbone.apply(params, images, normalised=False)
        return sum(jnp.abs(x).sum() for x in jax.tree.leaves(answer))

    images = _images(0, 1, 32, 32) / np.float32(255)
    value, gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(
        backbone.params, images
    )
    assert value > 0
    assert all((g == 0).all() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("name", SMALL)
def test_an_answer_does_not_depend_on_the_rest_of_the_batch(name):
    backbone = _get(name)
    image = _images(1, 1, 32, 48)
    with_noise = np.concatenate([image, _images(2, 1, 32, 48)])
    with_black = np.concatenate([image, np.zeros_like(image)])
    first, second = (backbone(batch).last[0] for batch in (with_noise, with_black))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", SMALL)
def test_uint8_float_and_normalised_inputs_agree(name):
    backbone = _get(name)
    images = _images(3, 2, 32, 48)
    as_float = images.astype(np.float32) / np.float32(255)
    normalised = np.asarray(backbones.to_network(images, backbone.normalise))
    want = np.asarray(backbone(images).last)
    tolerance = 1e-5 * np.abs(want).max()
    for got in (
        backbone(as_float).last,
        backbone(normalised, normalised=True).last,
    ):
        np.testing.assert_allclose(got, want, atol=tolerance)


def test_normalisation_is_what_the_weights_were_trained_with():
    images = _images(4, 1, 5, 7)
    imagenet = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    caffe = images[..., ::-1] - np.array([103.939, 116.779, 123.68])
    for name, want in (("resnet50", imagenet), ("squeezenet1_1", caffe)):
        got = backbones.to_network(images, _get(name).normalise)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-3)


def test_integer_images_other_than_bytes_are_refused():
    with pytest.raises(DiffUpError, match="int32"):
        _get("tiny")(np.zeros((1, 32, 32, 3), np.int32))


def test_squeezenet_grid_is_not_shifted_against_the_image():
    """A bright dot changes the grid, on average, around the cell that holds it.

    Padding at one end only, at conv1 and at every pool, would be 7.5 pixels off.
    """
    backbone = _get("squeezenet1_1")
    level = next(x for x in backbone.levels if x.name == "fire9")
    blank = np.zeros((1, 160, 160, 3), np.float32)
    base = np.asarray(backbone(blank).levels["fire9"][0])
    offsets = []
    for at in range(40, 120, 5):
        dot = blank.copy()
        dot[0, at, at] = 1
        change = np.abs(np.asarray(backbone(dot).levels["fire9"][0]) - base).sum(-1)
        rows = (np.arange(len(change)) + 0.5) * level.stride
        for axis in (0, 1):
            profile = change.sum(axis=1 - axis)
            offsets.append((rows * profile).sum() / profile.sum() - (at + 0.5))
    assert abs(np.mean(offsets)) < 4


def test_training_norm_uses_the_batch_and_shares_the_layout():
    variant = resnet.VARIANTS["tiny"]
    training = resnet.ResNet(
        variant,
        norm=functools.partial(nn.BatchNorm, use_running_average=False, momentum=0.9),
    )
    variables = _get("tiny").params
    x = backbones.to_network(_images(5, 2, 32, 32), resnet.IMAGENET)
    apply = jax.jit(functools.partial(training.apply, mutable=["batch_stats"]))
    _, updated = apply(variables, x)
    before = jax.tree.map(jnp.shape, variables["batch_stats"])
    assert jax.tree.map(jnp.shape, updated["batch_stats"]) == before
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()),
        updated["batch_stats"],
        variables["batch_stats"],
    )
    assert all(jax.tree.leaves(moved))


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
        pytest.skip("tiny.safetensors is not built: run data_prep/pretrain_tiny.py")
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
            backbones.get("resnet50", weights=empty)
        assert "'resnet50'" in str(caught.value)


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


def test_unknown_name_suggests_close_ones():
    with pytest.raises(DiffUpError, match=r"'resnet5'.*Did you mean resnet50"):
        backbones.get("resnet5", weights="random")
    with pytest.raises(DiffUpError, match="Known: .*tiny"):
        backbones.get("zzz", weights="random")
