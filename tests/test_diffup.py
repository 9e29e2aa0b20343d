"""DiffUp as a method: the contract, and the laws of the design."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax import backbones
from diffup_jax.methods import diffup, prior
from diffup_jax.types import CUES, TEXT_LENGTH, DiffUpError, Episode

SIZE = 64
BACKBONE = backbones.get("tiny", weights="random")
PRIOR = prior.Prior(
    BACKBONE,
    prior.PriorSettings(
        levels=(),
        scales=(1.0,),
        temperature=0.05,
        fusion_temperature=0.1,
        grid_stride=8,
        affinity_stride=16,
    ),
)
LOSSES = diffup.LossSettings(
    time_bias=2.0,
    first_step=0.5,
    from_own=0.4,
    from_prior=0.35,
    self_conditioning=0.5,
    prior_dropout=0.2,
    prior_gamma=0.3,
    dice=1.0,
    error=0.2,
    quality=0.2,
)
METHOD = diffup.DiffUp(
    prior=PRIOR,
    decoder=diffup.DecoderSettings(
        size="S",
        mask_stride=4,
        query_rgb=True,
        layout=True,
        affinity=True,
        scm=True,
        dqm=True,
    ),
    process=diffup.ProcessSettings(
        diffusion=True, signal_scale=1.0, condition_strength=0.5
    ),
    sampler=diffup.SamplerSettings(
        steps=2,
        eta=1.0,
        samples=2,
        warm_start=True,
        prior_dropout=0.2,
        threshold="iou",
    ),
    losses=LOSSES,
)
PREDICT = jax.jit(METHOD.predict)
KEYS = jax.random.split(jax.random.key(1), 2)


def episode(b=2, n=1, k=3, seed=0) -> Episode:
    """Coloured squares on noise; the cue is the whole square."""
    rng = np.random.default_rng(seed)

    def picture(colour):
        image = rng.integers(0, 120, (SIZE, SIZE, 3), dtype=np.uint8)
        y, x = rng.integers(4, 32, 2)
        mask = np.zeros((SIZE, SIZE), np.float32)
        mask[y : y + 24, x : x + 24] = 1
        image[mask > 0] = colour
        return image, mask

    colours = [(230, 40, 40), (40, 230, 40), (40, 60, 240)]
    support = np.zeros((b, n, k, SIZE, SIZE, 3), np.uint8)
    fg = np.zeros((b, n, k, SIZE, SIZE), np.float32)
    query = np.zeros((b, SIZE, SIZE, 3), np.uint8)
    target = np.zeros((b, n, SIZE, SIZE), np.float32)
    for i in range(b):
        query[i], target[i, 0] = picture(colours[i % 3])
        for j, shot in np.ndindex(n, k):
            support[i, j, shot], fg[i, j, shot] = picture(colours[(i + j) % 3])
    return Episode(
        query=jnp.asarray(query),
        query_mask=jnp.asarray(target),
        query_valid=jnp.ones((b, SIZE, SIZE), bool),
        support=jnp.asarray(support),
        cue_fg=jnp.asarray(fg),
        cue_bg=jnp.asarray(1 - fg),
        cue_kind=jnp.full((b, n, k), CUES.index("mask"), jnp.int32),
        text_ids=jnp.zeros((b, n, TEXT_LENGTH), jnp.int32),
        shot_valid=jnp.ones((b, n, k), bool),
        text_valid=jnp.zeros((b, n), bool),
        class_id=jnp.zeros((b, n), jnp.int32),
    )


def randomised(params):
    """Decoder parameters away from their zero-initialised start."""
    leaves, tree = jax.tree.flatten(params["decoder"])
    rng = np.random.default_rng(0)
    moved = [x + rng.normal(0, 0.05, x.shape).astype(np.float32) for x in leaves]
    return {**params, "decoder": jax.tree.unflatten(tree, moved)}


@pytest.fixture(scope="module")
def params():
    return randomised(METHOD.init(jax.random.key(0), episode()))


def test_the_contract(params):
    case = episode()
    prob, maps = PREDICT(params, KEYS, case)
    assert prob.shape == case.query_mask.shape
    assert float(prob.min()) >= 0 and float(prob.max()) <= 1
    threshold = maps.pop("threshold")
    assert threshold.shape == prob.shape[:2]
    assert 0 < float(threshold.min()) <= float(threshold.max()) <= 0.5
    assert set(maps) == {"prior_mean", "prior_variance", "uncertainty", "spread"}
    assert all(x.shape == prob.shape for x in maps.values())
    assert float(maps["spread"].max()) > 0
    assert float(prob.std()) > 0


def test_shots_permute_and_padding_is_ignored(params):
    case = episode(k=3)
    prob, _ = PREDICT(params, KEYS, case)
    order = jnp.array([2, 0, 1])
    fields = ("support", "cue_fg", "cue_bg", "cue_kind", "shot_valid")
    moved = case._replace(**{f: getattr(case, f)[:, :, order] for f in fields})
    np.testing.assert_allclose(PREDICT(params, KEYS, moved)[0], prob, atol=2e-4)

    valid = case.shot_valid.at[:, :, 2].set(False)
    padded, _ = PREDICT(params, KEYS, case._replace(shot_valid=valid))
    rubbish = case._replace(
        shot_valid=valid,
        support=case.support.at[:, :, 2].set(255),
        cue_fg=case.cue_fg.at[:, :, 2].set(1.0),
    )
    np.testing.assert_allclose(PREDICT(params, KEYS, rubbish)[0], padded, atol=2e-4)
    assert float(jnp.abs(padded - prob).max()) > 1e-3  # the third shot did count


def test_fifty_shots_in_one_call(params):
    case = episode(b=1, k=50)
    prob, maps = PREDICT(params, KEYS[:1], case)
    assert prob.shape == case.query_mask.shape
    assert all(np.isfinite(x).all() for x in (prob, *maps.values()))
    order = np.random.default_rng(0).permutation(50)
    fields = ("support", "cue_fg", "cue_bg", "cue_kind", "shot_valid")
    moved = case._replace(**{f: getattr(case, f)[:, :, order] for f in fields})
    np.testing.assert_allclose(PREDICT(params, KEYS[:1], moved)[0], prob, atol=2e-4)
    # All but two padded: what two shots give.
    two = case._replace(shot_valid=case.shot_valid.at[:, :, 2:].set(False))
    few = case._replace(**{f: getattr(case, f)[:, :, :2] for f in fields})
    answer, backbone = jax.jit(PRIOR.predict), {"backbone": BACKBONE.params}
    for name in ("prior_mean", "prior_variance"):
        got, expected = (answer(backbone, KEYS[:1], c)[1][name] for c in (two, few))
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_an_episode_depends_on_its_own_key_only(params):
    case = episode()
    prob, _ = PREDICT(params, KEYS, case)
    swapped = jax.tree.map(lambda x: x[::-1], case)
    np.testing.assert_allclose(
        PREDICT(params, KEYS[::-1], swapped)[0][::-1], prob, atol=2e-4
    )
    again, _ = PREDICT(params, jax.random.split(jax.random.key(9), 2), case)
    assert float(jnp.abs(again - prob).max()) > 1e-4


def test_without_shots_nothing_is_claimed(params):
    case = episode()
    none = case._replace(shot_valid=jnp.zeros_like(case.shot_valid))
    prob, maps = PREDICT(params, KEYS, none)
    assert np.isfinite(prob).all()
    np.testing.assert_allclose(maps["prior_mean"], 0.5, atol=1e-6)
    np.testing.assert_allclose(maps["prior_variance"], 0.25, atol=1e-6)


def test_ways_are_separate_tasks():
    """Two ways in one episode get the priors that each gets alone."""
    both = episode(n=2)
    answer = jax.jit(PRIOR.predict)
    params = {"backbone": BACKBONE.params}
    _, maps = answer(params, KEYS, both)
    fields = ("query_mask", "support", "cue_fg", "cue_bg", "cue_kind")
    fields += ("text_ids", "shot_valid", "text_valid", "class_id")
    for way in range(2):
        alone = both._replace(**{f: getattr(both, f)[:, way : way + 1] for f in fields})
        _, one = answer(params, KEYS, alone)
        np.testing.assert_allclose(
            maps["prior_mean"][:, way], one["prior_mean"][:, 0], atol=1e-4
        )


def test_loss_trains_the_decoder_alone_and_falls():
    case = episode()
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
    case = episode()
    valid = case.query_valid.at[:, :, :32].set(False)
    # z (what x_t is built from) may be the truth, so only the targets are compared.
    only = dataclasses.replace(
        METHOD, losses=dataclasses.replace(LOSSES, from_own=0.5, from_prior=0.5)
    )
    loss = jax.jit(only.loss)
    first, _ = loss(params, KEYS, case._replace(query_valid=valid))
    flipped = case.query_mask.at[..., :32].set(1 - case.query_mask[..., :32])
    second, _ = loss(params, KEYS, case._replace(query_valid=valid, query_mask=flipped))
    assert float(first) == pytest.approx(float(second), rel=1e-5)
    third, _ = loss(params, KEYS, case._replace(query_mask=flipped))
    assert abs(float(third) - float(first)) > 1e-3


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
        method = dataclasses.replace(
            METHOD,
            prior=dataclasses.replace(PRIOR, backbone=backbone),
            decoder=dataclasses.replace(METHOD.decoder, mask_stride=28),
        )
        case = _shapes(episode(b=1, k=1), 224)
        params = jax.eval_shape(method.init, jax.random.key(0), case)
        seen = jax.eval_shape(
            lambda p, e: method._state(method.prepare(p, e), None), params, case
        )
        both = (params["decoder"], seen)
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
    bad = dataclasses.replace(
        METHOD, decoder=dataclasses.replace(METHOD.decoder, mask_stride=5)
    )
    with pytest.raises(DiffUpError, match=r"multiple of 40"):
        bad.init(jax.random.key(0), episode())
