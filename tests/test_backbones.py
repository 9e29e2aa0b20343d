"""What every backbone promises: its levels, that it is frozen, and clear errors."""

import functools
import importlib.resources
import json
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from diffup_jax import backbones
from diffup_jax.backbones import hub, resnet
from diffup_jax.types import DiffUpError

pytestmark = pytest.mark.usefixtures("no_network")

SMALL = ("tiny", "squeezenet1_1")
# Families whose levels hold every pixel at any size; the others want multiples.
ANY_SIZE = tuple(n for n in backbones.names() if backbones.recipe(n).multiple_of == 1)


def _grouped(names):
    """All tests of one network in one process, which then traces it once."""
    return [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in names]


EVERY = _grouped(backbones.names())


@functools.cache
def _get(name: str) -> backbones.Backbone:
    return backbones.get(name, weights="random")


def _images(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


@functools.cache
def _hollow(name: str) -> backbones.Backbone:
    return backbones.hollow(name)


@functools.cache
def _announced(name: str):
    """(size, answer) of each network, traced once for all tests of it."""
    unit = backbones.recipe(name).multiple_of
    size = (97, 131) if unit == 1 else (unit * -(-64 // unit), unit * -(-96 // unit))
    return size, _answer(_hollow(name), size)


def _answer(backbone, size):
    return jax.eval_shape(
        functools.partial(backbone.apply, normalised=False),
        backbone.params,
        jax.ShapeDtypeStruct((2, *size, 3), jnp.uint8),
    )


@pytest.mark.parametrize("name", EVERY)
def test_levels_are_what_was_announced(name):
    backbone = _hollow(name)
    size, answer = _announced(name)
    assert set(answer.levels) == {level.name for level in backbone.levels}
    assert len(answer.levels) == len(backbone.levels)
    for level in backbone.levels:
        grid = tuple(-(-pixels // level.stride) for pixels in size)
        assert answer.levels[level.name].shape == (2, *grid, level.channels)
        assert answer.levels[level.name].dtype == jnp.float32
    assert answer.last.shape[:3] == answer.levels[backbone.levels[-1].name].shape[:3]
    assert answer.last.dtype == jnp.float32
    assert (answer.joint is not None) == backbone.has_text


@pytest.mark.parametrize("name", EVERY)
def test_text_tower_and_image_tower_meet_in_one_space(name):
    backbone = _hollow(name)
    if not backbone.has_text:
        with pytest.raises(DiffUpError, match="no text tower"):
            backbone.encode_text(["a cat"])
        return
    _, answer = _announced(name)
    joint = answer.joint
    assert joint.shape[:3] == answer.last.shape[:3]
    ids = jax.ShapeDtypeStruct((3, backbone.text.context_length), jnp.int32)
    texts = jax.eval_shape(backbone.apply_text, backbone.text_params, ids)
    assert texts.shape == (3, joint.shape[-1])
    assert texts.dtype == joint.dtype == jnp.float32


@pytest.mark.parametrize(
    "name", _grouped(n for n in backbones.names() if n not in ANY_SIZE)
)
def test_a_size_that_does_not_fit_is_told_with_the_multiple(name):
    backbone = _hollow(name)
    unit = backbone.multiple_of
    told = rf"{unit * 4 + 1}.*multiples? of {unit}"
    with pytest.raises(DiffUpError, match=told):
        _answer(backbone, (unit * 4 + 1, unit * 4))


@pytest.mark.parametrize("name", EVERY)
def test_every_parameter_has_one_row_in_every_layout(name):
    recipe, backbone = backbones.recipe(name), _hollow(name)
    shapes, tables = {"image": backbone.params}, {"image": recipe.tables}
    if recipe.text is not None:
        tables["text"] = recipe.text.tables
        shapes["text"] = backbone.text_params
    assert tables.keys() == shapes.keys()
    for part, layouts in tables.items():
        wanted = sorted(flatten_dict(shapes[part], sep="/"))
        for table in layouts:
            rows = [row.target for row in table.rows]
            assert sorted(rows) == wanted, table.layout


@pytest.mark.parametrize("name", EVERY)
def test_default_weights_have_an_id_and_a_licence(name):
    recipe = backbones.recipe(name)
    assert not (recipe.packaged and recipe.hub)
    if recipe.packaged or recipe.hub:
        assert recipe.licence
    if recipe.packaged:
        packaged = importlib.resources.files(backbones) / recipe.packaged
        assert packaged.is_file()
    if recipe.hub:
        assert hub.ID.fullmatch(recipe.hub)


@pytest.mark.parametrize("name", EVERY)
def test_prior_levels_are_levels(name):
    backbone = _hollow(name)
    known = [level.name for level in backbone.levels]
    assert backbone.prior_levels
    assert [n for n in known if n in backbone.prior_levels] == list(
        backbone.prior_levels
    )


def test_resnet_prior_levels_are_end_of_stage_3_and_all_of_stage_4():
    for name, last in (("resnet50", 5), ("resnet101_os8", 22)):
        assert _hollow(name).prior_levels == (
            f"stage3.block{last}",
            *(f"stage4.block{i}" for i in range(3)),
        )


@pytest.mark.parametrize("name", EVERY)
def test_parameters_are_as_many_as_the_table_says(name):
    backbone = _hollow(name)
    towers = (backbone.params, backbone.text_params or {})
    leaves = jax.tree.leaves([tower.get("params", {}) for tower in towers])
    assert sum(leaf.size for leaf in leaves) == backbones.parameters(name)


def test_parameter_counts_are_the_published_ones():
    """torchvision's 25 557 032 and 44 549 160 less the 2048x1000 head and its bias."""
    for name, total, width in (
        ("resnet18", 11_689_512, 512),
        ("resnet34", 21_797_672, 512),
        ("resnet50", 25_557_032, 2048),
        ("resnet101", 44_549_160, 2048),
        ("resnet152", 60_192_808, 2048),
    ):
        assert backbones.parameters(name) == total - width * 1000 - 1000
    assert backbones.parameters("resnet50_os8") == backbones.parameters("resnet50")
    assert backbones.parameters("tiny") <= 1_500_000


def test_dilated_networks_keep_the_grid():
    for name, strides in (
        ("resnet50", (4, 8, 16, 32)),
        ("resnet50_os16", (4, 8, 16, 16)),
        ("resnet50_os8", (4, 8, 8, 8)),
    ):
        levels = {x.name: x.stride for x in _hollow(name).levels}
        assert strides == tuple(levels[f"stage{i}.block0"] for i in range(1, 5))


@pytest.mark.parametrize("name", ["tiny", "squeezenet1_1"])
def test_bfloat16_is_near_float32_and_answers_in_float32(name):
    full, half = _get(name), backbones.get(name, weights="random", dtype="bfloat16")
    assert half.digest == full.digest
    images = _images(7, 1, 64, 48)
    for got, want in zip(
        jax.tree.leaves(half(images)), jax.tree.leaves(full(images)), strict=True
    ):
        assert got.dtype == jnp.float32
        distance = jnp.abs(got - want).max() / jnp.abs(want).max()
        assert 0 < distance < 0.05


def test_an_unknown_dtype_is_refused():
    with pytest.raises(DiffUpError, match="float32 or bfloat16, not in 'float16'"):
        backbones.get("tiny", weights="random", dtype="float16")


def test_hollow_parameters_take_no_memory():
    leaves = jax.tree.leaves(_hollow("resnet152").params)
    assert all(set(x.strides) <= {0} for x in leaves)
    assert _hollow("resnet152").weights == "hollow"


def test_importing_the_door_imports_no_family():
    script = (
        "import sys; import diffup_jax.backbones; "
        "print([m for m in sys.modules if m.startswith('diffup_jax.backbones.') or "
        "m in ('torch', 'transformers', 'huggingface_hub', 'tokenizers')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert set(json.loads(done.stdout.replace("'", '"'))) == {
        f"diffup_jax.backbones.{room}"
        for room in ("backbone", "folders", "hub", "recipe", "stores")
    }


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
        got = backbones.to_network(images, _hollow(name).normalise)
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


def test_unknown_name_suggests_close_ones():
    with pytest.raises(DiffUpError, match=r"'resnet5'.*Did you mean resnet50"):
        backbones.get("resnet5", weights="random")
    with pytest.raises(DiffUpError, match="Known: .*tiny"):
        backbones.get("zzz", weights="random")
