"""F4: UAPF, uncertainty-aware prior fusion. Many prior maps become two. No parameters.

Symbols: P_i in [0, 1] a prior map, v_i its validity, r_i its reliability in [-1, 1],
c_i its share (what it counts beside equally reliable priors; repeated evidence counts
less, see baft.py), tau a temperature, f the variance floor of the cue.

    (1) w_i    = v_i c_i exp(r_i / tau) / sum_j v_j c_j exp(r_j / tau)
    (2) mu     = sum_i w_i P_i
    (3) var    = min(sum_i w_i [D (P_i - mu)^2 + O P_i (1 - P_i)] + f, MAX_VARIANCE)
    (4) no valid prior: mu = 1/2, var = MAX_VARIANCE
    (5) mu    <- mu (1 - N),  N what negative examples reject (baft.py)

var is to be the expected squared error of mu. How much the priors disagree (D) says
too little about that: often all of them are wrong together. What each leaves open
itself (O) says more, as P (1 - P) is the variance of a pixel that is foreground with
probability P. It says little where the cut that suits the priors is far from 1/2. How D
and O were set, and where they fail: docs/log/results.md.

That the priors are turned into a mean and a variance map is DiffUp's
(arXiv 2407.16182); reliabilities, weights and floor are this project's choice.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Largest variance of a value in [0, 1].
MAX_VARIANCE = 0.25

# O and D of equation (3), set so that the mean of var is that of (mu - y)^2 on base
# classes of photographs.
LEFT_OPEN = 0.6
DISAGREED = 0.2

# Variance that is left when every prior agrees, by index into types.CUES: one lone
# prior from a point is less certain than one from a mask. Rising; our choice.
FLOORS = (0.002, 0.005, 0.01, 0.02, 0.03)


def fuse(
    maps: Float[Array, "b n m p q"],
    valid: Bool[Array, "b n m"],
    *,
    reliability: Float[Array, "b n m"],
    share: Float[Array, "b n m"],
    temperature: float,
    floor: Float[Array, "b n"],
    rejected: Float[Array, "b n p q"],
) -> tuple[Float[Array, "b n p q"], Float[Array, "b n p q"]]:
    """Equations (1)-(5): mean and variance map over all valid priors; m may be 0."""
    weights = fusion_weights(valid, reliability, share=share, temperature=temperature)
    mean = jnp.einsum("bnm,bnmpq->bnpq", weights, maps)
    between = jnp.einsum(
        "bnm,bnmpq->bnpq", weights, jnp.square(maps - mean[:, :, None])
    )
    # Not below zero by rounding, where every prior says the same.
    left_open = jnp.maximum(mean * (1 - mean) - between, 0)
    variance = DISAGREED * between + LEFT_OPEN * left_open + floor[:, :, None, None]
    variance = jnp.minimum(variance, MAX_VARIANCE)
    known = valid.any(axis=2)[:, :, None, None]
    mean = jnp.where(known, mean, 0.5) * (1 - rejected)
    return mean, jnp.where(known, variance, MAX_VARIANCE)


def fusion_weights(
    valid: Bool[Array, "*b m"],
    reliability: Float[Array, "*b m"],
    *,
    share: Float[Array, "*b m"],
    temperature: float,
) -> Float[Array, "*b m"]:
    """Equation (1); all zero (not NaN) where nothing is valid."""
    scores = jnp.where(valid, reliability, -jnp.inf)
    top = jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    raw = jnp.where(valid, share * jnp.exp((scores - top) / temperature), 0.0)
    return raw / jnp.maximum(raw.sum(axis=-1, keepdims=True), 1e-12)


def cue_floor(
    cue_kind: Int[Array, "b n k"],
    shot_valid: Bool[Array, "b n k"],
    text_valid: Bool[Array, "b n"],
) -> Float[Array, "b n"]:
    """Variance floor of an episode: that of its surest valid cue, text included.

    shot_valid: shots that show the class.

    The surest cue, not the mean: adding a point to a mask must not make the answer
    less certain.
    """
    floors = jnp.asarray(FLOORS)
    shots = jnp.where(shot_valid, floors[cue_kind], MAX_VARIANCE)
    text = jnp.where(text_valid, floors[-1], MAX_VARIANCE)
    return jnp.minimum(shots.min(axis=2, initial=MAX_VARIANCE), text)
