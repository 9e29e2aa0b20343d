"""The training-free method: text cues, repeated shots, position debias, no shots."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from diffup_jax import backbones, images, methods
from diffup_jax.methods import prior
from diffup_jax.methods.prior import baft
from diffup_jax.methods.prior import text as texts
from diffup_jax.methods.prior.options import PriorSettings
from diffup_jax.types import DiffUpError
from tests import toy
from tests.episodes_made import changed
from tests.toy import CELL, METHOD, PARAMS, SIZE, cells, red_squares, with_text


@functools.partial(jax.jit, static_argnums=0)
def fused(method, case, keep=None):
    """Priors and what UAPF makes of them; compiled once per method and shape."""
    memory = method.encode(PARAMS, case.support)
    made, _ = method.priors(PARAMS, case.query.image, memory)
    return made, method.fuse(made, memory.floor, keep)


def test_it_is_a_method():
    assert isinstance(METHOD, methods.Method)
    assert methods.get("prior") is prior.Prior


@pytest.mark.parametrize("shots", [0, 1])
def test_text_alone_finds_the_class(shots):
    """With padded shots, and with a shot axis of length 0."""
    case = red_squares(shots, text=True, visual=False)
    _, found = fused(METHOD, case)
    inside = cells(case.query.mask[0, 0])
    mean = np.asarray(found.mean[0, 0])
    assert mean[inside].min() > 0.9 and mean[~inside].max() < 0.1
    assert float(found.variance.max()) < 0.25
    memory = METHOD.encode(PARAMS, case.support)
    np.testing.assert_array_equal(memory.extent, 0)


@pytest.mark.parametrize("visual", [True, False])
def test_text_that_is_not_valid_changes_nothing(visual):
    case = red_squares(visual=visual)
    got = fused(METHOD, with_text(case, valid=False))[1]
    # An episode that was made without texts has none, whatever it says.
    claimed = changed(case, text_valid=jnp.ones((1, 1), bool))
    for expected in (fused(METHOD, case)[1], fused(METHOD, claimed)[1]):
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    if not visual:
        np.testing.assert_array_equal(got.mean, 0.5)
        np.testing.assert_array_equal(got.variance, 0.25)


def test_text_weighs_as_one_shot():
    """One shot and text on one level: all priors are as reliable, so half and half."""
    case = red_squares(1)
    priors, both = fused(METHOD, with_text(case))
    seen = fused(METHOD, case)[1].mean
    read = priors.text_maps.mean(axis=2)
    np.testing.assert_allclose(both.mean, (seen + read) / 2, atol=1e-5)


def test_dropped_operators_leave_the_others_and_text():
    case = red_squares(1, text=True)
    keep = jnp.zeros((1, 1, len(baft.OPERATORS)), bool).at[:, :, 1].set(True)
    priors, got = fused(METHOD, case, keep)
    read = priors.text_maps.mean(axis=2)
    np.testing.assert_allclose(
        got.mean, (priors.maps[:, :, 0, 1, 0] + read) / 2, atol=1e-5
    )


def test_a_repeated_shot_is_no_new_evidence():
    once = fused(METHOD, red_squares(2))[1]
    for order in ([0, 0, 1], [1, 0, 1, 1, 1]):
        again = fused(METHOD, red_squares(2, order=order))[1]
        for got, expected in zip(again, once, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_phrase_is_a_mean_over_templates():
    first, second = (
        np.asarray(toy.backbone().encode_text([sentence]))[0]
        for sentence in ("a photo of a red", "red")
    )
    mean = (first + second) / np.linalg.norm(first + second)
    found = METHOD.embed_text(["blue", " red "])
    assert found.dtype == np.float32 and found.shape == (2, 3)
    np.testing.assert_allclose(found[1], mean, atol=1e-6)


def test_the_space_of_texts():
    def space(backgrounds=("green", "blue"), temperature=0.0):
        return texts.text_space(
            toy.backbone(),
            templates=("a {name}",),
            backgrounds=backgrounds,
            temperature=temperature,
        )

    assert space().temperature == pytest.approx(1 / 20)  # the model's own
    assert space(temperature=0.5).temperature == 0.5
    np.testing.assert_allclose(
        space().backgrounds,
        toy.backbone().encode_text(["a green", "a blue"]),
        atol=1e-6,
    )
    assert len(space(("pascal",)).backgrounds) > len(space(("default",)).backgrounds)
    told = '"a photo of a {name}", "{name}" against 2 backgrounds, temperature 0.05'
    assert METHOD.text_in_words() == told


def test_without_a_text_tower_a_phrase_is_refused():
    mute = prior.Prior(backbones.hollow("tiny"), PriorSettings())
    with pytest.raises(DiffUpError, match="no text tower"):
        mute.embed_text(["red"])


def test_position_debias_is_found_while_tracing():
    """Features that shout where they are match by colour; in jit and in shard_map."""
    case = red_squares(1)
    plain = prior.Prior(toy.backbone(loudness=5.0), toy.settings())
    free = prior.Prior(toy.backbone(loudness=5.0, debias=2), toy.settings())
    inside = cells(case.query.mask[0, 0])

    def gap(method):
        mean = np.asarray(fused(method, case)[1].mean[0, 0])
        return mean[inside].min() - mean[~inside].max()

    assert gap(plain) < 0.2 and gap(free) > 0.5

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("batch",))
    fresh = prior.Prior(toy.backbone(loudness=5.0, debias=2), toy.settings())
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
    case = red_squares(2)

    def maps(case=case, **changes):
        return fused(prior.Prior(toy.backbone(), toy.settings(**changes)), case)[0].maps

    whole, halved, joint = (maps(scales=s) for s in ((1.0,), (0.5,), (1.0, 0.5)))
    levels = whole.shape[2]
    assert joint.shape[2] == 2 * levels
    # The smaller size comes first, whatever order the config names them in.
    np.testing.assert_allclose(joint[:, :, :levels], halved, atol=1e-6)
    np.testing.assert_allclose(joint[:, :, levels:], whole, atol=1e-6)

    half = (SIZE // 2, SIZE // 2)
    support, query = case.support, case.query
    shrunk = case._replace(
        query=query._replace(image=images.resize(query.image, half)),
        support=support._replace(
            images=images.resize(support.images, half),
            fg=images.area_average(support.fg, half),
            bg=images.area_average(support.bg, half),
        ),
    )
    np.testing.assert_allclose(halved, maps(shrunk, grid_stride=CELL // 2), atol=1e-5)
    assert not np.allclose(halved, whole, atol=1e-3)


def test_sizes_fit_the_backbone():
    backbone = dataclasses.replace(toy.backbone(), multiple_of=14)
    method = prior.Prior(backbone, toy.settings(scales=(1.0, 0.5, 0.01)))
    assert method._sizes((112, 224)) == [(14, 14), (56, 112), (112, 224)]
