"""F4: what DiffUp's network is trained on: the states it is shown, and the loss.

Symbols: M the mask at resolution R, s the signal scale, x_0 = s (2M - 1),
m = s (2 mu - 1), lambda the strength of the condition in the forward process.

    (1) x_1 = lambda m + eps, y = x0_hat(x_1, 1, 0): the first step of a chain
    (2) x_t = forward(z, t, eps', lambda m),  z drawn from {y, m, x_0}
    (3) L   = BCE + Dice of the logits against M
              + lambda_e |e_hat - |clip(x_t/s) - (2M - 1)| / 2|
              + lambda_q |q_hat - IoU(x_t > 0, M)|
    (4) loss = f L of (1) + (1 - f) L of (2)
    (5) loss = BCE + Dice of the decoder's one forward: without diffusion

Training from x_0 alone teaches the network to trust x_t, which while sampling carries
its own mistakes: then every further step made masks worse (measured, see docs). So z is
what will really be there: the network's own answer y or the prior, next to the truth,
and t leans to noise. y, gradients stopped, is also the previous x0_hat
(self-conditioning, arXiv 2208.04202) in a share of the draws.

Every chain begins at (1), and with one step it ends there, so every draw trains it.
What that brings, and what it does not: docs/log/results.md. In (5) nothing is drawn but
the disturbance of the priors.

Losses and draws: this project's choice.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffup_jax import diffusion
from diffup_jax.methods.diffup.chain import Chain, Denoised
from diffup_jax.methods.diffup.decoder import Decoder, Facts
from diffup_jax.methods.diffup.disturbance import Draws
from diffup_jax.methods.diffup.options import LossSettings, ProcessSettings


def of_one_forward(
    network: Decoder,
    params: dict[str, Any],
    facts: Facts,
    target: Float[Array, "b p q"],
    valid: Float[Array, "b p q"],
    *,
    losses: LossSettings,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Equation (5): the mean over rows, and its terms by name."""
    terms = _mask_terms(network.apply({"params": params}, facts), target, valid)
    return terms["bce"] + losses.dice * terms["dice"], terms


def of_chain(
    network: Chain,
    params: dict[str, Any],
    draws: Draws,
    facts: Facts,
    target: Float[Array, "b p q"],
    valid: Float[Array, "b p q"],
    *,
    losses: LossSettings,
    process: ProcessSettings,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Equation (4): the mean over rows, and its terms by name.

    Args:
      facts, target, valid in [0, 1]: what it sees and should answer, ways folded into
        the batch.
    """
    s = process.signal_scale
    apply = lambda name, *a: network.apply(  # noqa: E731
        {"params": params}, *a, method=name
    )
    condition = apply("condition", facts)
    b = draws.count
    n = len(target) // b
    shift = process.condition_strength * s * (2 * facts.mean - 1)
    prior = s * (2 * facts.mean - 1)
    truth = s * (2 * target - 1)

    def draw(name, f, *tail):
        """One draw per episode and way, flattened to [b n, ...]."""
        drawn = draws(name, f, (n, *tail))
        return drawn.reshape(b * n, *tail)

    f = losses.first_step
    nothing, start = jnp.zeros_like(target), jnp.ones(len(target))
    parts, own = [], nothing
    if f or losses.from_own or losses.self_conditioning:
        noise = draw("noise first", jax.random.normal, *target.shape[1:])
        x = diffusion.forward(prior, start, noise=noise, shift=shift)
        first = apply("denoise", condition, x / s, start, nothing)
        own = jax.lax.stop_gradient(jnp.tanh(first.logits / 2))
        if f:
            parts.append((f, _terms(first, x / s, target, valid)))
    if f < 1:
        t = draw("time", jax.random.uniform) ** (1 / losses.time_bias)
        which = draw("source", jax.random.uniform)[:, None, None]
        z = jnp.where(which < losses.from_own, s * own, prior)
        z = jnp.where(which < losses.from_own + losses.from_prior, z, truth)
        noise = draw("noise", jax.random.normal, *target.shape[1:])
        x = diffusion.forward(z, t, noise=noise, shift=shift)
        seen = draw("self", jax.random.uniform) < losses.self_conditioning
        previous = jnp.where(seen[:, None, None], own, 0.0)
        out = apply("denoise", condition, x / s, t, previous)
        parts.append((1 - f, _terms(out, x / s, target, valid)))
    terms = {
        name: sum(share * part[name] for share, part in parts) for name in parts[0][1]
    }
    weighted = [getattr(losses, name) * terms[name] for name in list(terms)[1:]]
    return terms["bce"] + sum(weighted), terms


def _terms(out: Denoised, x, target, valid) -> dict[str, Array]:
    """Terms of equation (3), each averaged over the batch."""
    shown = jnp.clip(x, -1, 1)
    error = jnp.abs(shown - (2 * target - 1)) / 2
    hard, truth = (x > 0) * valid, (target > 0.5) * valid
    union = jnp.maximum(hard, truth).sum(axis=(1, 2))
    iou = (hard * truth).sum(axis=(1, 2)) / jnp.maximum(union, 1e-6)
    return {
        **_mask_terms(out.logits, target, valid),
        "error": _over_pixels(jnp.abs(out.error - error), valid),
        "quality": jnp.abs(out.quality - iou).mean(),
    }


def _mask_terms(logits, target, valid) -> dict[str, Array]:
    """BCE and Dice of equations (3) and (5)."""
    prob = jax.nn.sigmoid(logits)
    overlap = (prob * target * valid).sum(axis=(1, 2))
    mass = ((prob + target) * valid).sum(axis=(1, 2))
    return {
        "bce": _over_pixels(jnp.logaddexp(0.0, logits) - target * logits, valid),
        "dice": (1 - (2 * overlap + 1) / (mass + 1)).mean(),
    }


def _over_pixels(values, valid) -> Array:
    """The mean over the valid pixels of a row, and over rows."""
    pixels = jnp.maximum(valid.sum(axis=(1, 2)), 1e-6)
    return ((values * valid).sum(axis=(1, 2)) / pixels).mean()
