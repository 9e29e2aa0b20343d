"""DiffUp as a method: the contract, and the laws of the design."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

from diffup_jax import backbones, methods
from diffup_jax.methods import asked, diffup, prior
from diffup_jax.methods.diffup.options import (
    DecoderSettings,
    DiffUpSettings,
    ProcessSettings,
    SamplerSettings,
)
from diffup_jax.methods.prior.options import PriorSettings
from diffup_jax.types import DiffUpError
from tests.episodes_made import (
    SIZE,
    changed,
    rows_at,
    rubbish_in,
    shots_at,
    squares,
    way_of,
)

BACKBONE = backbones.get("tiny", weights="random")
PRIOR = prior.Prior(BACKBONE, PriorSettings(temperature=0.05))
# Everything that a config can switch on.
METHOD = diffup.DiffUp(
    PRIOR,
    DiffUpSettings(
        decoder=DecoderSettings(size="S"),
        process=ProcessSettings(diffusion=True, condition_strength=0.5),
        sampler=SamplerSettings(steps=2, samples=2, warm_start=True, threshold="iou"),
    ),
)
PREDICT = jax.jit(functools.partial(asked, METHOD))
MEAN = jax.jit(
    lambda keys, case: asked(PRIOR, {"backbone": BACKBONE.params}, keys, case).maps
)
KEYS = jax.random.split(jax.random.key(1), 2)


def settings(method=METHOD, **sections):
    """The method with fields of these sections of its settings replaced."""
    parts = {
        name: msgspec.structs.replace(getattr(method.settings, name), **fields)
        for name, fields in sections.items()
    }
    changed = msgspec.structs.replace(method.settings, **parts)
    return dataclasses.replace(method, settings=changed)


def randomised(params):
    """Decoder parameters away from their zero-initialised start."""
    leaves, tree = jax.tree.flatten(params["decoder"])
    rng = np.random.default_rng(0)
    moved = [x + rng.normal(0, 0.05, x.shape).astype(np.float32) for x in leaves]
    return {**params, "decoder": jax.tree.unflatten(tree, moved)}


@pytest.fixture(scope="module")
def params():
    return randomised(METHOD.init(jax.random.key(0), squares()))


def test_it_is_a_method():
    assert isinstance(METHOD, methods.Method)
    assert methods.get("diffup") is diffup.DiffUp
    one = settings(process={"diffusion": False}, sampler={"threshold": "half"})
    assert one.in_words() == "one forward, cut at 1/2"
    told = "diffusion, 2 steps, 2 samples, cut for the greatest expected IoU"
    assert METHOD.in_words() == told


def test_the_contract(params):
    case = squares()
    prob, threshold, maps = PREDICT(params, KEYS, case)
    assert prob.shape == case.query.mask.shape
    assert float(prob.min()) >= 0 and float(prob.max()) <= 1
    assert threshold.shape == prob.shape[:2]
    assert 0 < float(threshold.min()) <= float(threshold.max()) <= 0.5
    assert set(maps) == {"prior_mean", "prior_variance", "uncertainty", "spread"}
    assert all(x.shape == prob.shape for x in maps.values())
    assert float(maps["spread"].max()) > 0
    assert float(prob.std()) > 0
    np.testing.assert_allclose(
        maps["uncertainty"], np.sqrt(prob * (1 - prob)), atol=1e-5
    )


def test_shots_permute_and_padding_is_ignored(params):
    case = squares(k=3)
    prob = PREDICT(params, KEYS, case).probability
    moved = PREDICT(params, KEYS, shots_at(case, [2, 0, 1])).probability
    np.testing.assert_allclose(moved, prob, atol=2e-4)

    valid = case.support.valid.at[:, :, 2].set(False)
    padded = PREDICT(params, KEYS, changed(case, valid=valid)).probability
    rubbish = PREDICT(params, KEYS, rubbish_in(case, 2)).probability
    np.testing.assert_allclose(rubbish, padded, atol=2e-4)
    assert float(jnp.abs(padded - prob).max()) > 1e-3  # the third shot did count


def test_fifty_shots_in_one_call(params):
    case = squares(b=1, k=50)
    found = PREDICT(params, KEYS[:1], case)
    prob = found.probability
    assert prob.shape == case.query.mask.shape
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    order = np.random.default_rng(0).permutation(50)
    moved = PREDICT(params, KEYS[:1], shots_at(case, order)).probability
    np.testing.assert_allclose(moved, prob, atol=2e-4)
    # All but two padded: what two shots give.
    two = changed(case, valid=case.support.valid.at[:, :, 2:].set(False))
    got, expected = (MEAN(KEYS[:1], x) for x in (two, shots_at(case, [0, 1])))
    for name in ("prior_mean", "prior_variance"):
        np.testing.assert_allclose(got[name], expected[name], atol=1e-5)


def test_an_episode_depends_on_its_own_key_only(params):
    case = squares()
    prob = PREDICT(params, KEYS, case).probability
    swapped = PREDICT(params, KEYS[::-1], rows_at(case, [1, 0])).probability
    np.testing.assert_allclose(swapped[::-1], prob, atol=2e-4)
    again = PREDICT(params, jax.random.split(jax.random.key(9), 2), case).probability
    assert float(jnp.abs(again - prob).max()) > 1e-4


def test_without_shots_nothing_is_claimed(params):
    case = squares()
    none = changed(case, valid=jnp.zeros_like(case.support.valid))
    prob, _, maps = PREDICT(params, KEYS, none)
    assert np.isfinite(prob).all()
    np.testing.assert_allclose(maps["prior_mean"], 0.5, atol=1e-6)
    np.testing.assert_allclose(maps["prior_variance"], 0.25, atol=1e-6)


def test_ways_are_separate_tasks():
    """Two ways in one episode get the priors that each gets alone."""
    both = squares(n=2)
    mean = MEAN(KEYS, both)["prior_mean"]
    for way in range(2):
        alone = MEAN(KEYS, way_of(both, way))["prior_mean"]
        np.testing.assert_allclose(mean[:, way], alone[:, 0], atol=1e-4)


def test_loss_trains_the_decoder_alone_and_falls():
    case = squares()
    params = METHOD.init(jax.random.key(0), case)

    @jax.jit
    def step(params, keys):
        def loss(params):
            return METHOD.loss(params, keys, case)[0]

        value, grad = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.05 * g, params, grad), value

    start, values = params["backbone"], []
    for i in range(30):
        params, value = step(params, jax.random.split(jax.random.key(i), 2))
        values.append(float(value))
    assert np.mean(values[-5:]) < 0.8 * np.mean(values[:3])
    jax.tree.map(np.testing.assert_array_equal, params["backbone"], start)


def test_ignored_pixels_do_not_reach_the_loss(params):
    case = squares()
    query = case.query
    valid = query.valid.at[:, :, :32].set(False)
    # z (what x_t is built from) may be the truth, so only the targets are compared.
    blind = settings(losses={"from_own": 0.5, "from_prior": 0.5})
    run = jax.jit(blind.loss)

    def loss(**changes):
        asked = case._replace(query=query._replace(**changes))
        return float(run(params, KEYS, asked)[0])

    flipped = query.mask.at[..., :32].set(1 - query.mask[..., :32])
    first, second = loss(valid=valid), loss(valid=valid, mask=flipped)
    assert first == pytest.approx(second, rel=1e-5)
    assert abs(loss(mask=flipped) - first) > 1e-3


SMALLEST = (
    *("resnet18", "resnet50_os8", "vgg16", "squeezenet1_1", "vit_s16", "dinov2_s14"),
    *("dinov3_s16", "swin_t", "convnextv2_atto", "clip_b32", "clip_rn50"),
    *("efficientnet_lite0", "siglip2_b16_224"),
)


@pytest.mark.parametrize("name", SMALLEST)
def test_law_of_the_interface(name):
    """Over every family, what the decoder sees has the same form, and so has its tree.

    224 pixels fit every patch and stride. Shapes only: nothing is computed.
    """

    def forms(backbone):
        over = dataclasses.replace(PRIOR, backbone=backbone)
        method = dataclasses.replace(METHOD, prior=over)
        method = settings(method, decoder={"mask_stride": 28})
        case = _shapes(squares(b=1, k=1), 224)
        params = jax.eval_shape(method.init, jax.random.key(0), case)

        def seen(params, case):
            made = method.prepare(params, case)
            fused = method.prior.fuse(made.priors, made.floor)
            observed = method.observe(
                params, case.query, method.encode(params, case.support)
            )
            return method._facts(fused, made.extent, made.rgb), observed

        both = (params["decoder"], jax.eval_shape(seen, params, case))
        return jax.tree.map(lambda x: (x.shape, x.dtype), both)

    assert forms(backbones.hollow(name)) == forms(BACKBONE)


def test_the_law_names_every_family():
    families = {backbones._family(name) for name in SMALLEST}
    assert families == {backbones._family(name) for name in backbones.names()}


def _shapes(case, size):
    """The episode's shapes at another image size."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            tuple(size if n == SIZE else n for n in x.shape), x.dtype
        ),
        case,
    )


def test_an_image_size_that_does_not_fit_is_refused():
    bad = settings(decoder={"mask_stride": 5})
    with pytest.raises(DiffUpError, match=r"multiple of 40"):
        bad.init(jax.random.key(0), squares())
