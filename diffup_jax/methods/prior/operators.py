"""F4: the maps that one image's features make of another's cue. No parameters.

Symbols: q, s L2-normalised query and support features of one level, q*, s* the same
after the mean feature of the query was taken off both, w+ and w- the cue's known
foreground and background averaged over the level's cells, tau a temperature, p+- the
normalised w+- weighted means of s.

    (0) position debias   f <- (1 - B B') f                (some transformers only)
    (1) contrast          C(q)  = <q, p+> - <q, p->         (w- empty: first term only)
    (2) assembly          A(q)  = sum_s softmax_s(<q*, s*> / tau | w+ + w- > 0) w+(s)
    (3) self-propagation  S(P)(q) = sum_q' softmax_q'(<q*, q'*> / tau) P(q')
    (4) text              T(q)  = exp(<j, t> / tau_t) / (exp(<j, t> / tau_t)
                                  + sum_i exp(<j, u_i> / tau_t)),  u_i != t

In (0) the columns of B are directions of feature space that tell where a cell is, found
on a blank image. In (4) j is a cell in the joint image-text space, t the class's text,
u_i the background texts.

Features behind a ReLU share a large mean, which leaves all cosines high and alike;
without it (2) and (3) tell cells apart, while (1), a difference, is worse for it
(measured, docs/log/results.md).

Assembly and propagation follow PGMA-Net, by DiffUp's authors, (0) is INSID3's (arXiv
2603.28480), (4) reads CLIP as MaskCLIP does (arXiv 2112.01071); the equations are this
project's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffup_jax import attention, images
from diffup_jax.methods.prior.evidence import EMPTY

# Least length, relative to the feature, that `centred` takes for more than noise. Of
# real features 1 % were below 0.75.
_LEFT = 0.5
# Singular values below this share of the first are rounding, not position.
_RANK = 1e-5
# Texts of at least this cosine say the same: rounding apart, they are one sentence.
_SAME_TEXT = 1 - 1e-5


def prototype(
    support: Float[Array, "u v c"],
    foreground: Float[Array, "u v"],
    background: Float[Array, "u v"],
) -> Float[Array, " c"]:
    """p+ - p- of equation (1); L2-normalised query features times it are C."""
    support = images.unit(support)
    positive = images.unit(images.masked_mean(support, foreground))
    negative = images.unit(images.masked_mean(support, background))
    return positive - negative


def assembly(
    query: Float[Array, "p q c"],
    support: Float[Array, "u v c"],
    foreground: Float[Array, "u v"],
    background: Float[Array, "u v"],
    *,
    temperature: float,
) -> Float[Array, "p q"]:
    """Equation (2), unscaled, of `centred` features; zero when no cell is known."""
    assembled = attention.attend(
        _flat(query),
        _flat(support),
        foreground.reshape(-1, 1),
        (foreground + background > EMPTY).reshape(-1),
        temperature=temperature,
    )
    return assembled.reshape(query.shape[:2])


def propagate(
    features: Float[Array, "p q c"], maps: Float[Array, "m p q"], *, temperature: float
) -> Float[Array, "m p q"]:
    """Equation (3), all maps in one pass over the `centred` features."""
    flat = _flat(features)
    values = maps.reshape(len(maps), -1).T
    everywhere = jnp.ones(len(flat), bool)
    spread = attention.attend(flat, flat, values, everywhere, temperature=temperature)
    return spread.T.reshape(maps.shape)


def centred(
    features: Float[Array, "p q c"], of: Float[Array, "u v c"]
) -> Float[Array, "p q c"]:
    """q* and s* above: L2-normalised after the mean feature of `of` was taken off.

    What is left of a cell that hardly differs from the mean (a plain wall) is noise:
    below a share of the whole feature it is not blown up to length one.
    """
    rest = features - of.mean(axis=(0, 1), keepdims=True)
    length, whole = (
        jnp.sum(jnp.square(x), axis=-1, keepdims=True) for x in (rest, features)
    )
    least = jnp.maximum(whole * _LEFT**2, images.EPSILON**2)
    return rest * jax.lax.rsqrt(jnp.maximum(length, least))


def text_foreground(
    joint: Float[Array, "b p q d"],
    text: Float[Array, "b n d"],
    background: Float[Array, "u d"],
    *,
    temperature: float,
) -> Float[Array, "b n p q"]:
    """Equation (4): probability of each way's text against the background texts.

    All three are normalised here; `temperature` is tau_t, the reciprocal of the model's
    logit scale unless a config says otherwise. A background that says what a way's text
    says is none for that way: it would take the class's cells.
    """
    joint, text, background = map(images.unit, (joint, text, background))
    wanted = jnp.einsum("bpqd,bnd->bnpq", joint, text) / temperature
    others = jnp.einsum("bpqd,ud->bpqu", joint, background) / temperature
    apart = jnp.einsum("bnd,ud->bnu", text, background) < _SAME_TEXT
    others = jnp.where(apart[:, :, None, None], others[:, None], -jnp.inf)
    return jax.nn.sigmoid(wanted - jax.nn.logsumexp(others, axis=-1))


def position_basis(
    blank: Float[Array, "p q c"], *, components: int
) -> Float[Array, "c r"]:
    """B of equation (0): the leading directions in which cells of a blank image differ.

    A blank image has nothing to tell its cells apart but their places. r is
    `components`, or less where the image has fewer cells or channels; directions that
    hold nothing but rounding are zero columns, which remove nothing.
    """
    flat = images.unit(_flat(blank))
    flat = flat - flat.mean(axis=0, keepdims=True)
    _, strength, directions = jnp.linalg.svd(flat, full_matrices=False)
    count = min(components, len(flat) - 1, flat.shape[1] - 1)
    real = strength[:count] > jnp.maximum(strength[0] * _RANK, EMPTY)
    return directions[:count].T * real[None]


def without_position(
    features: Float[Array, "*b c"], basis: Float[Array, "c r"]
) -> Float[Array, "*b c"]:
    """Equation (0) on features that are L2-normalised first; not normalised after."""
    features = images.unit(features)
    return features - (features @ basis) @ basis.T


def _flat(features):
    """[p q c] -> [pq c]."""
    return features.reshape(-1, features.shape[-1])
