"""The training-free method: text cues, repeated shots, position debias, no shots.

The backbone is a toy that is right by construction: its features are the mean colours
of cells (with a loud code of the place, if asked), and its texts are colours by name.
"""

import dataclasses
import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from diffup_jax import backbones, baft, images
from diffup_jax.backbones.recipe import Normalise, TextRecipe
from diffup_jax.methods import prior
from diffup_jax.methods import text as text_cues
from diffup_jax.types import TEXT_LENGTH, DiffUpError, Episode, Features, Level

SIZE, CELL = 32, 4
COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
SETTINGS = prior.PriorSettings(
    levels=(),
    scales=(1.0,),
    temperature=0.05,
    fusion_temperature=0.1,
    grid_stride=CELL,
    affinity_stride=8,
)


class Eye(nn.Module):
    """Mean colours of cells, beside `loudness` times where the cell is."""

    loudness: float

    def __call__(self, x):
        b, h, w, c = x.shape
        cells = x.reshape(b, h // CELL, CELL, w // CELL, CELL, c).mean(axis=(2, 4))
        y, x = jnp.meshgrid(*(jnp.linspace(-1, 1, n) for n in cells.shape[1:3]))
        place = self.loudness * jnp.broadcast_to(
            jnp.stack([x, y], -1), (*cells.shape[:3], 2)
        )
        one = jnp.ones((*cells.shape[:3], 1))
        level = jnp.concatenate([cells, place, 0.3 * one], axis=-1)
        return Features({"a": level}, level, cells)


class Voice(nn.Module):
    """Logit scale of a text tower."""

    def scale(self):
        return jnp.float32(20.0), jnp.float32(0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Toy(backbones.Backbone):
    """Embeds the colours that a sentence names."""

    def encode_text(self, texts):
        found = [
            sum(np.array(v, np.float32) for k, v in COLOURS.items() if k in text)
            + np.float32(0.01 * len(text) / 100)
            for text in texts
        ]
        found = np.array(found, np.float32)
        return jnp.asarray(found / np.linalg.norm(found, axis=-1, keepdims=True))


def toy(*, loudness=0.0, debias=0):
    return Toy(
        name="toy",
        module=Eye(loudness),
        params={},
        levels=(Level("a", CELL, 6),),
        prior_levels=("a",),
        normalise=Normalise((0, 0, 0), (1, 1, 1), bgr=False),
        digest="",
        weights="made up",
        multiple_of=CELL,
        debias=debias,
        text=TextRecipe(Voice(), TEXT_LENGTH, "none", ()),
        text_params={},
        folder=Path(),
    )


def table(**changes):
    options = {
        "templates": ("a photo of a {name}", "{name}"),
        "backgrounds": ("green", "blue"),
        "temperature": None,
    }
    return text_cues.text_table(toy(), ("red",), **{**options, **changes})


def episode(shots=2, *, text=True, visual=True, seed=0, order=None) -> Episode:
    """A red square on green and blue noise; the first axis is one episode."""
    rng = np.random.default_rng(seed)

    def picture():
        image = np.zeros((SIZE, SIZE, 3), np.float32)
        image[..., 1:] = rng.random((SIZE, SIZE, 2))
        mask = np.zeros((SIZE, SIZE), np.float32)
        y, x = CELL * rng.integers(0, 4, 2)
        mask[y : y + 16, x : x + 16] = 1
        image[mask > 0] = (0.9, 0.1, 0.1)
        return image, mask

    query, target = picture()
    pairs = [picture() for _ in range(shots)]
    pairs = pairs if order is None else [pairs[i] for i in order]
    k = len(pairs)
    support = np.array([p for p, _ in pairs]).reshape(1, 1, k, SIZE, SIZE, 3)
    fg = np.array([m for _, m in pairs], np.float32).reshape(1, 1, k, SIZE, SIZE)
    return Episode(
        query=jnp.asarray(query[None]),
        query_mask=jnp.asarray(target[None, None]),
        query_valid=jnp.ones((1, SIZE, SIZE), bool),
        support=jnp.asarray(support, jnp.float32),
        cue_fg=jnp.asarray(fg),
        cue_bg=jnp.asarray(1 - fg),
        cue_kind=jnp.zeros((1, 1, k), jnp.int32),
        text_ids=jnp.zeros((1, 1, TEXT_LENGTH), jnp.int32),
        shot_valid=jnp.full((1, 1, k), visual),
        text_valid=jnp.full((1, 1), text),
        class_id=jnp.zeros((1, 1), jnp.int32),
    )


@functools.partial(jax.jit, static_argnums=0)
def fused(method, case, keep=None):
    """Priors and what UAPF makes of them; compiled once per method and shape."""
    made = method.priors({"backbone": {}}, case)
    return made, method.fuse(made, keep)


SEEING = prior.Prior(toy(), SETTINGS)
READING = prior.Prior(toy(), SETTINGS, text=table())


@pytest.mark.parametrize("shots", [0, 1])
def test_text_alone_finds_the_class(shots):
    """With padded shots, and with a shot axis of length 0."""
    case = episode(shots, visual=False)
    made, found = fused(READING, case)
    inside = case.query_mask[0, 0].reshape(8, CELL, 8, CELL).mean((1, 3)) > 0.5
    mean = np.asarray(found.mean[0, 0])
    assert mean[inside].min() > 0.9 and mean[~inside].max() < 0.1
    assert float(found.variance.max()) < 0.25
    np.testing.assert_array_equal(made.extent, 0)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        (SEEING, {}),  # no text tower
        (READING, {"text_valid": jnp.zeros((1, 1), bool)}),
        (READING, {"class_id": jnp.full((1, 1), 7, jnp.int32)}),  # not in the table
        (READING, {"class_id": jnp.full((1, 1), -1, jnp.int32)}),
    ],
)
@pytest.mark.parametrize("visual", [True, False])
def test_without_text_nothing_changes(method, changes, visual):
    case = episode(visual=visual)
    got = fused(method, case._replace(**changes))[1]
    expected = fused(SEEING, case._replace(text_valid=jnp.zeros((1, 1), bool)))[1]
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    if not visual:
        np.testing.assert_array_equal(got.mean, 0.5)
        np.testing.assert_array_equal(got.variance, 0.25)


def test_text_weighs_as_one_shot():
    """One shot and text on one level: all priors are as reliable, so half and half."""
    case = episode(1)
    (priors, *_), both = fused(READING, case)
    seen = fused(SEEING, case)[1].mean
    read = priors.text_maps.mean(axis=2)
    np.testing.assert_allclose(both.mean, (seen + read) / 2, atol=1e-5)


def test_dropped_operators_leave_the_others_and_text():
    case = episode(1)
    keep = jnp.zeros((1, 1, len(baft.OPERATORS)), bool).at[:, :, 1].set(True)
    (priors, *_), got = fused(READING, case, keep)
    read = priors.text_maps.mean(axis=2)
    np.testing.assert_allclose(
        got.mean, (priors.maps[:, :, 0, 1, 0] + read) / 2, atol=1e-5
    )


def test_a_repeated_shot_is_no_new_evidence():
    once = fused(SEEING, episode(2, text=False))[1]
    for order in ([0, 0, 1], [1, 0, 1, 1, 1]):
        again = fused(SEEING, episode(2, text=False, order=order))[1]
        for got, expected in zip(again, once, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_table_is_a_mean_over_templates():
    found = table(temperature=0.5)
    first, second = (
        np.asarray(toy().encode_text([t]))[0] for t in ("a photo of a red", "red")
    )
    mean = (first + second) / np.linalg.norm(first + second)
    np.testing.assert_allclose(found.classes, mean[None], atol=1e-6)
    assert found.backgrounds.shape == (2, 3) and found.temperature == 0.5
    assert table(backgrounds=("blue", " Red ")).backgrounds.shape == (1, 3)
    assert table().temperature == pytest.approx(1 / 20)  # the model's own


def test_a_table_that_cannot_be_is_refused():
    with pytest.raises(DiffUpError, match="No background name is left"):
        table(backgrounds=(" Red ",))
    mute = backbones.get("tiny", weights="random")
    with pytest.raises(DiffUpError, match="no text tower"):
        text_cues.text_table(
            mute, ("a",), templates=("{name}",), backgrounds=("b",), temperature=None
        )


def test_position_debias_is_found_while_tracing():
    """Features that shout where they are match by colour; in jit and in shard_map."""
    case = episode(1, text=False)
    plain = prior.Prior(toy(loudness=5.0), SETTINGS)
    free = prior.Prior(toy(loudness=5.0, debias=2), SETTINGS)
    inside = case.query_mask[0, 0].reshape(8, CELL, 8, CELL).mean((1, 3)) > 0.5

    def gap(method):
        mean = np.asarray(fused(method, case)[1].mean[0, 0])
        return mean[inside].min() - mean[~inside].max()

    assert gap(plain) < 0.2 and gap(free) > 0.5

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("batch",))
    fresh = prior.Prior(toy(loudness=5.0, debias=2), SETTINGS)
    spread = jax.shard_map(
        lambda case: fused(fresh, case)[1].mean,
        mesh=mesh,
        in_specs=PartitionSpec("batch"),
        out_specs=PartitionSpec("batch"),
        check_vma=False,
    )
    two = jax.tree.map(lambda x: jnp.concatenate([x, x]), case)
    expected = jnp.concatenate([fused(free, case)[1].mean] * 2)
    np.testing.assert_allclose(jax.jit(spread)(two), expected, atol=1e-5)


def test_every_size_of_an_image_makes_the_priors_of_that_size():
    """Half the size: what an episode whose images were halved before has."""
    case = episode(2)
    small = dataclasses.replace(SETTINGS, scales=(0.5,))
    both = dataclasses.replace(SETTINGS, scales=(1.0, 0.5))

    def maps(settings):
        return fused(prior.Prior(toy(), settings), case)[0].priors.maps

    whole = maps(SETTINGS)
    halved = maps(small)
    joint = maps(both)
    levels = whole.shape[2]
    assert joint.shape[2] == 2 * levels
    # The smaller size comes first, whatever order the config names them in.
    np.testing.assert_allclose(joint[:, :, :levels], halved, atol=1e-6)
    np.testing.assert_allclose(joint[:, :, levels:], whole, atol=1e-6)

    half = (SIZE // 2, SIZE // 2)
    shrunk = case._replace(
        query=images.resize(case.query, half), support=images.resize(case.support, half)
    )
    params = {"backbone": {}}
    coarse = dataclasses.replace(SETTINGS, grid_stride=CELL // 2)
    expected = prior.Prior(toy(), coarse).priors(
        params,
        shrunk._replace(
            cue_fg=images.area_average(case.cue_fg, half),
            cue_bg=images.area_average(case.cue_bg, half),
        ),
    )
    np.testing.assert_allclose(halved, expected.priors.maps, atol=1e-5)
    assert not np.allclose(halved, whole, atol=1e-3)


def test_sizes_fit_the_backbone():
    method = prior.Prior(
        dataclasses.replace(toy(), multiple_of=14),
        dataclasses.replace(SETTINGS, scales=(1.0, 0.5, 0.01)),
    )
    assert method._sizes((112, 224)) == [(14, 14), (56, 112), (112, 224)]
