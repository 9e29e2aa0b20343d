"""F4: what DiffUp's decoder is trained on: the states it is shown, and the loss.

Symbols: M the mask at resolution R, s the signal scale, x_0 = s (2M - 1),
m = s (2 mu - 1), lambda the strength of the condition in the forward process.

    (1) x_1 = lambda m + eps, y = x0_hat(x_1, 1, 0): the first step of a chain
    (2) x_t = forward(z, t, eps', lambda m),  z drawn from {y, m, x_0}
    (3) L   = BCE + Dice of the logits against M
              + lambda_e |e_hat - |clip(x_t/s) - (2M - 1)| / 2|
              + lambda_q |q_hat - IoU(x_t > 0, M)|
    (4) loss = f L of (1) + (1 - f) L of (2)
    (5) loss = BCE + Dice of x0_hat(0, 1, 0): without diffusion

Training from x_0 alone teaches the network to trust x_t, which while sampling carries
its own mistakes: then every further step made masks worse (measured, see docs). So z is
what will really be there: the network's own answer y or the prior, next to the truth,
and t leans to noise. y, gradients stopped, is also the previous x0_hat
(self-conditioning, arXiv 2208.04202) in a share of the draws.

Every chain begins at (1), and with one step it ends there, so every draw trains it.
What that brings, and what it does not: docs/results.md. (5) is the regression that
the chain is measured against; nothing is drawn in it but the disturbance of the priors.

Losses and draws: this project's choice.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffup_jax import diffusion
from diffup_jax.methods.diffup.disturbance import Draws
from diffup_jax.methods.diffup.decoder import UQDD, Decoded, Facts


@dataclasses.dataclass(frozen=True)
class ProcessSettings:
    """The diffusion process.

    diffusion: False = one forward from nothing, equation (5); what follows and most of
    LossSettings is then not read. signal_scale: s; condition_strength: lambda, 0 =
    plain DDPM.
    """

    diffusion: bool
    signal_scale: float
    condition_strength: float


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """What training draws and how it weighs; the first five with diffusion only.

    first_step: f of equation (4), in [0, 1]; 1 = the first step is all that is trained.
    time_bias: t = u^(1/time_bias) in (2); 1 = uniform, larger = nearer to noise.
    from_own, from_prior: shares of z in equation (2); the rest is the truth.
    self_conditioning: share of draws of (2) that see the previous x0_hat.
    prior_dropout: probability of leaving out each (level, operator) pair, and each
      text operator.
    prior_gamma: standard deviation of log gamma in the distortion P -> P^gamma.
    dice, error, quality: weights of the loss terms; the last two are DQM's, with
      diffusion only.
    """

    first_step: float
    time_bias: float
    from_own: float
    from_prior: float
    self_conditioning: float
    prior_dropout: float
    prior_gamma: float
    dice: float
    error: float
    quality: float


def loss(
    network: UQDD,
    params: dict[str, Any],
    draws: Draws,
    state: dict[str, Array],
    *,
    losses: LossSettings,
    process: ProcessSettings,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Equation (4) or (5): the mean over rows, and its terms by name.

    Args:
      params: of the decoder.
      state: what it sees and should answer, ways folded into the batch: the fields of
        uqdd.Facts, target [b r r] and valid [b r r] in [0, 1].
    """
    s = process.signal_scale
    target, valid = state["target"], state["valid"]
    apply = lambda name, *a: network.apply(  # noqa: E731
        {"params": params}, *a, method=name
    )
    condition = apply("condition", facts_of(state))
    if not process.diffusion:
        terms = _mask_terms(apply("once", condition).logits, target, valid)
        return terms["bce"] + losses.dice * terms["dice"], terms
    b = draws.count
    n = len(target) // b
    shift = process.condition_strength * s * (2 * state["mean"] - 1)
    prior = s * (2 * state["mean"] - 1)
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


def facts_of(state: dict[str, Array]) -> Facts:
    """What of a state the decoder is told."""
    return Facts(*(state[name] for name in Facts._fields))


def _terms(out: Decoded, x, target, valid) -> dict[str, Array]:
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
