"""Laws of the process and its sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax import diffusion

KEY = jax.random.key(0)


def maps(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_perfect_denoiser_lands_on_the_mask(eta, steps, strength):
    truth = jnp.sign(maps(3, 8, 8))
    shift = strength * maps(3, 8, 8, seed=1)
    times = diffusion.times(jnp.array([1.0, 0.6, 0.2]), steps=steps)
    x = diffusion.forward(truth, times[0], noise=maps(3, 8, 8, seed=2), shift=shift)
    x, path = diffusion.sample(
        lambda x, t, previous: truth,
        x,
        times=times,
        keys=jax.random.split(KEY, 3),
        shift=shift,
        eta=eta,
    )
    np.testing.assert_allclose(x, truth, atol=1e-6)
    assert path.shape == (steps, 3, 8, 8)


def test_deterministic_steps_stay_on_the_forward_path():
    """With the true x_0, eta = 0 keeps the noise that the forward process added."""
    truth, noise, shift = (maps(1, 8, 8, seed=s) for s in range(3))
    t, t_next = jnp.array([0.8]), jnp.array([0.3])
    x = diffusion.forward(truth, t, noise=noise, shift=shift)
    moved = diffusion.ddim_step(
        x, truth, t=t, t_next=t_next, noise=jnp.zeros_like(x), shift=shift, eta=0.0
    )
    expected = diffusion.forward(truth, t_next, noise=noise, shift=shift)
    np.testing.assert_allclose(moved, expected, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_step_keeps_the_marginal(eta):
    """From x_t of (2), x_t' has the mean and variance of (2) at t', for any eta."""
    n = 200_000
    truth = jnp.full((1, 1, n), 0.7)
    shift = jnp.full((1, 1, n), -0.4)
    t, t_next = jnp.array([0.8]), jnp.array([0.35])
    x = diffusion.forward(truth, t, noise=maps(1, 1, n), shift=shift)
    x = diffusion.ddim_step(
        x, truth, t=t, t_next=t_next, noise=maps(1, 1, n, seed=9), shift=shift, eta=eta
    )
    a, s = float(diffusion.signal(t_next)[0]), float(diffusion.noise_level(t_next)[0])
    assert float(x.mean()) == pytest.approx(a * 0.7 - (1 - a) * 0.4, abs=0.01)
    assert float(x.std()) == pytest.approx(s, abs=0.01)


def test_the_sampler_is_a_plain_loop():
    """One scan equals the loop that the equations spell out."""
    net = lambda x, t, previous: jnp.tanh(0.5 * x + 0.3 * previous + t[:, None, None])  # noqa: E731
    keys = jax.random.split(KEY, 2)
    shift, start = maps(2, 4, 4, seed=3), maps(2, 4, 4, seed=4)
    times = diffusion.times(jnp.array([1.0, 0.7]), steps=4)
    got, _ = diffusion.sample(net, start, times=times, keys=keys, shift=shift, eta=0.8)
    x, previous = start, jnp.zeros_like(start)
    split = jax.vmap(lambda key: jax.random.split(key, 4))(keys)
    for i in range(4):
        previous = net(x, times[i], previous)
        x = diffusion.ddim_step(
            x,
            previous,
            t=times[i],
            t_next=times[i + 1],
            noise=diffusion.normal(split[:, i], (4, 4)),
            shift=shift,
            eta=0.8,
        )
    np.testing.assert_allclose(got, x, rtol=1e-5, atol=1e-6)


def test_an_episode_does_not_depend_on_its_batch():
    net = lambda x, t, previous: jnp.tanh(x + previous)  # noqa: E731
    keys, start = jax.random.split(KEY, 3), maps(3, 4, 4)
    run = lambda i: diffusion.sample(  # noqa: E731
        net,
        start[i],
        times=diffusion.times(jnp.ones(len(i)), steps=3),
        keys=keys[i],
        shift=jnp.zeros_like(start[i]),
        eta=1.0,
    )[0]
    whole = run(jnp.array([0, 1, 2]))
    np.testing.assert_allclose(run(jnp.array([2])), whole[2:], atol=1e-6)


@pytest.mark.parametrize("quality", [0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("share", [0.1, 0.4])
def test_the_warm_start_matches_quality(quality, share):
    """A true mask noised to t* has, thresholded, the IoU it was asked for."""
    rng = np.random.default_rng(0)
    mask = rng.random((1, 400, 400)) < share
    truth = jnp.asarray(np.where(mask, 1.0, -1.0), jnp.float32)
    t = diffusion.matched_time(
        jnp.array([quality]), jnp.array([mask.mean()], jnp.float32), scale=1.0
    )
    noised = diffusion.forward(
        truth, t, noise=maps(1, 400, 400), shift=jnp.zeros_like(truth)
    )
    hard = np.asarray(noised > 0)
    iou = (hard & mask).sum() / (hard | mask).sum()
    # A pure-noise mask already has some IoU: no time gives less than that.
    assert iou == pytest.approx(max(quality, share / (share + 1)), abs=0.03)


def test_better_priors_start_later():
    t = diffusion.matched_time(jnp.linspace(0.3, 0.9, 9), jnp.full(9, 0.3), scale=1.0)
    assert (np.diff(t) < 0).all() and 0 < float(t[-1]) < float(t[0]) <= 1
