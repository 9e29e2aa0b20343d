"""F1: the conditional diffusion process and its sampler.

Symbols: x_0 in [-s, s] the clean mask at signal scale s, t in [0, 1] (1 = noise),
eps standard normal, m in [-s, s] the condition (the prior mean mapped as the mask is),
lambda its strength. The cosine schedule is that of arXiv 2102.09672 without offset.

    (1) abar(t) = cos(pi t / 2)^2
    (2) x_t     = sqrt(abar) x_0 + (1 - sqrt(abar)) lambda m + sqrt(1 - abar) eps
    (3) eps_hat = (x_t - sqrt(abar) x0_hat - (1 - sqrt(abar)) lambda m) / sqrt(1 - abar)
    (4) sigma^2 = eta^2 (1 - abar') / (1 - abar) (1 - abar / abar')
    (5) x_t'    = sqrt(abar') x0_hat + (1 - sqrt(abar')) lambda m
                  + sqrt(1 - abar' - sigma^2) eps_hat + sigma eps

(3)-(5) are DDIM (arXiv 2010.02502) for the shifted process (2); lambda = 0 is plain
DDPM/DDIM. That the condition takes part in the forward process is DiffUp's
(arXiv 2407.16182); the form of (2) is this project's choice.

The sampler knows one callable, `denoise(x_t, t, x0_previous) -> x0_hat`, and is one
`lax.scan` over precomputed records (t, t', key).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, Key

Maps = Float[Array, "b p q"]
Times = Float[Array, " b"]
Denoise = Callable[[Maps, Times, Maps], Maps]


def signal(t: Float[Array, ...]) -> Float[Array, ...]:
    """sqrt(abar(t)), equation (1)."""
    return jnp.cos(0.5 * jnp.pi * t)


def noise_level(t: Float[Array, ...]) -> Float[Array, ...]:
    """sqrt(1 - abar(t)), equation (1)."""
    return jnp.sin(0.5 * jnp.pi * t)


def forward(x0: Maps, t: Times, *, noise: Maps, shift: Maps) -> Maps:
    """x_t of equation (2); `shift` is lambda m [b p q]."""
    a = signal(t)[:, None, None]
    return a * x0 + (1 - a) * shift + noise_level(t)[:, None, None] * noise


def ddim_step(
    x: Maps,
    x0: Maps,
    *,
    t: Times,
    t_next: Times,
    noise: Maps,
    shift: Maps,
    eta: float,
) -> Maps:
    """Equations (3)-(5): one step from t to t_next <= t. At t_next = 0 it is x0."""
    a, a_next = signal(t)[:, None, None], signal(t_next)[:, None, None]
    s, s_next = noise_level(t)[:, None, None], noise_level(t_next)[:, None, None]
    eps = (x - a * x0 - (1 - a) * shift) / jnp.maximum(s, 1e-6)
    # abar <= abar' because time falls, so the last factor is in [0, 1].
    share = 1 - (a / jnp.maximum(a_next, 1e-6)) ** 2
    variance = eta**2 * (s_next / jnp.maximum(s, 1e-6)) ** 2 * jnp.clip(share, 0, 1)
    along = jnp.sqrt(jnp.maximum(s_next**2 - variance, 0))
    mean = a_next * x0 + (1 - a_next) * shift
    return mean + along * eps + jnp.sqrt(variance) * noise


def times(start: Times, *, steps: int) -> Float[Array, "times b"]:
    """Evenly spaced times from `start` down to 0, one column per episode."""
    return jnp.linspace(1.0, 0.0, steps + 1)[:, None] * start[None]


def sample(
    denoise: Denoise,
    x: Maps,
    *,
    times: Float[Array, "times b"],
    keys: Key[Array, " b"],
    shift: Maps,
    eta: float,
) -> tuple[Maps, Float[Array, "steps b p q"]]:
    """Runs the chain from x at times[0] to times[-1] in one `lax.scan`.

    Args:
      denoise: `(x_t [b p q], t [b], x0_previous [b p q]) -> x0_hat [b p q]`;
        x0_previous is all zeros in the first step.
      x: x_t at times[0].
      times: falling times per episode, the last one 0.
      keys: one key per episode, so an episode's result does not depend on its batch.
      shift: lambda m of equation (2).
      eta: 0 = deterministic DDIM, 1 = ancestral.

    Returns:
      x at times[-1] and the x0_hat of every step.
    """
    steps = times.shape[0] - 1
    step_keys = jax.vmap(lambda key: jax.random.split(key, steps), out_axes=1)(keys)

    def step(carry, record):
        x, previous = carry
        t, t_next, key = record
        x0 = denoise(x, t, previous)
        noise = normal(key, x.shape[1:])
        x = ddim_step(x, x0, t=t, t_next=t_next, noise=noise, shift=shift, eta=eta)
        return (x, x0), x0

    carry = (x, jnp.zeros_like(x))
    (x, _), path = jax.lax.scan(step, carry, (times[:-1], times[1:], step_keys))
    return x, path


def normal(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Standard normal noise with one key per episode."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def matched_time(
    quality: Float[Array, " b"], foreground: Float[Array, " b"], *, scale: float
) -> Times:
    """The time at which a noised true mask is as good as a map of IoU `quality`.

    Equation (2) with lambda = 0 flips the sign of a pixel with probability
    r = Phi(-s sqrt(abar / (1 - abar))). Flipping both classes at rate r gives
    IoU = (1 - r) f / (f + r (1 - f)) for a foreground share f; solving for r and then
    for t gives the warm start t* of a prior with estimated IoU `quality`.

    Args:
      quality: IoU in [0, 1].
      foreground: share of foreground pixels in (0, 1).
      scale: signal scale s.
    """
    q = jnp.clip(quality, 1e-3, 1 - 1e-3)
    f = jnp.clip(foreground, 1e-3, 1 - 1e-3)
    flipped = jnp.minimum(f * (1 - q) / (f + q * (1 - f)), 0.5)
    ratio = -ndtri(flipped) / scale  # sqrt(abar / (1 - abar))
    return jnp.arctan2(1.0, ratio) * 2 / jnp.pi
