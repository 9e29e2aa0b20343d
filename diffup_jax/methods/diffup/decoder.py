"""F4: UQDD's network: from the fused prior and the query to the logits of a mask.

It sees maps whose number of channels depends neither on the backbone nor on the cues:
the fused prior (mean, variance), the extent of the cues (prior/evidence.py) and the RGB
query. All is at mask resolution R.

    (1) e_0..e_3 = pyramid([2 mu - 1, sigma / sigma_max, extent, RGB])
        h_0 = E e_0
    (2) g_i      = silu(W_i e_l(i))                                      SCM, stage i
        h        = GroupNorm(h) (1 + gamma_i) + beta_i, [gamma, beta] = U_i g_i
    (3) logits   = U-Net(h_0) + u (2 mu - 1) + v, 7 stages: 3 down, middle, 3 up

This is the whole network of one forward. The chain (chain.py) is a module
around it that adds a `Step` of its own to (1) and (2) at every time; `condition` holds
what does not depend on t, so that a sampler computes it once.

The seven stages and the inputs of SCM (mean, variance, query infos) are the paper's
(arXiv 2407.16182). Layer sizes, the form of (1)-(3) and extent are this project's
choice.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffup_jax import images
from diffup_jax.layers import Conv, norm

# Stage i of the U-Net works at pyramid level STAGE_LEVELS[i]: resolution R / 2^level.
STAGE_LEVELS = (0, 1, 2, 3, 2, 1, 0)

# Decoder sizes: channels at R, R/2, R/4, R/8. At most 10 M parameters.
SIZES = {
    "S": (32, 48, 64, 96),
    "B": (64, 128, 192, 256),
    "L": (96, 160, 256, 320),
}

HIDDEN = 32  # channels of the condition pyramid and of SCM's hidden layer
_PRIOR_SCALE = 3.0  # u of equation (3) before training


class Facts(NamedTuple):
    """What the decoder sees of an episode, at R, ways folded into the batch.

    mean: mu in [0, 1]; variance: sigma^2 in [0, 0.25]; extent: see evidence.py; rgb:
    the query in [0, 1].
    """

    mean: Float[Array, "b p q"]
    variance: Float[Array, "b p q"]
    extent: Float[Array, "b 2"]
    rgb: Float[Array, "b p q 3"]


class Condition(NamedTuple):
    """What of an episode does not depend on t.

    stages: W_i e_l(i) of equation (2), none without SCM; entry, prior: the terms of (1)
    and (3).
    """

    stages: tuple[Float[Array, "b _ _ _"], ...]
    entry: Float[Array, "b p q c"]
    prior: Float[Array, "b p q 1"]


class Step(NamedTuple):
    """What a chain adds at one time: to h_0, and to each stage.

    hidden: to the hidden layer of SCM, none without SCM; the features after SCM become
    `features * (1 + scale) + shift`.
    """

    entry: Float[Array, "b p q c"]
    hidden: tuple[Float[Array, "b _ _ _"], ...]
    scale: tuple[Float[Array, "b 1 1 _"], ...]
    shift: tuple[Float[Array, "b _ _ _"], ...]


def stage_widths(size: str) -> tuple[int, ...]:
    """Channels of each stage of a decoder of that size."""
    return tuple(SIZES[size][level] for level in STAGE_LEVELS)


class Decoder(nn.Module):
    """The network; `size` names a row of SIZES.

    query_rgb: show it the image. scm: equation (2); without it the condition enters
    by h_0 alone.
    """

    size: str
    query_rgb: bool
    scm: bool

    def setup(self):
        widths = SIZES[self.size]
        self.pyramid = [Conv(HIDDEN, 3, stride=1 if i == 0 else 2) for i in range(4)]
        self.pyramid_deep = [Conv(HIDDEN, 3) for _ in range(4)]
        if self.scm:
            self.static = [Conv(HIDDEN, 1) for _ in STAGE_LEVELS]
        self.entry = Conv(widths[0], 1)
        self.stages = [Stage(width, self.scm) for width in stage_widths(self.size)]
        self.down = [Conv(widths[i + 1], 3, stride=2) for i in range(3)]
        self.up = [Conv(widths[level], 1) for level in (2, 1, 0)]
        self.head = Conv(1, 3, kernel_init=nn.initializers.zeros)
        # The U-Net starts at zero, so an untrained decoder answers the prior and
        # training spends no step on finding it again.
        self.prior = nn.Dense(1, kernel_init=nn.initializers.constant(_PRIOR_SCALE))

    def __call__(self, facts: Facts) -> Float[Array, "b p q"]:
        """Logits of the mask: one forward."""
        return self.decode(self.condition(facts))

    def condition(self, facts: Facts) -> Condition:
        """Equation (1) and the first half of (2) per stage, and the prior of (3).

        What the switches leave out of `facts` is not read.
        """
        mean = facts.mean[..., None]
        extent = facts.extent[:, None, None]
        parts = [
            2 * mean - 1,
            2 * jnp.sqrt(facts.variance)[..., None],
            jnp.broadcast_to(extent, (*mean.shape[:3], 2)),
        ]
        if self.query_rgb:
            parts.append(2 * facts.rgb - 1)
        maps = jnp.concatenate(parts, axis=-1)
        levels = []
        for conv, deep in zip(self.pyramid, self.pyramid_deep, strict=True):
            maps = nn.silu(conv(maps))
            maps = maps + nn.silu(deep(maps))
            levels.append(maps)
        stages = ()
        if self.scm:
            stages = tuple(
                static(levels[level])
                for static, level in zip(self.static, STAGE_LEVELS, strict=True)
            )
        return Condition(stages, self.entry(levels[0]), self.prior(2 * mean - 1))

    def decode(
        self, condition: Condition, step: Step | None = None
    ) -> Float[Array, "b p q"]:
        """Equations (2) and (3); `step` is a chain's, None in one forward."""

        def stage(i, h):
            static = condition.stages[i] if self.scm else None
            scale = shift = None
            if step is not None:
                static = static + step.hidden[i] if self.scm else None
                scale, shift = step.scale[i], step.shift[i]
            return self.stages[i](h, static, scale, shift)

        h = condition.entry if step is None else condition.entry + step.entry
        skips = []
        for i in range(3):
            h = stage(i, h)
            skips.append(h)
            h = self.down[i](h)
        h = stage(3, h)
        for i in range(3):
            skip = skips.pop()
            h = images.resize(h, skip.shape[1:3])
            h = stage(4 + i, self.up[i](jnp.concatenate([h, skip], axis=-1)))
        return (self.head(nn.silu(h)) + condition.prior)[..., 0]


class Stage(nn.Module):
    """Residual block of one stage: SCM (or a norm with scale and shift) inside it."""

    channels: int
    scm: bool

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "b p q c"],
        static: Float[Array, "b p q e"] | None,
        scale: Float[Array, "b 1 1 c"] | None,
        shift: Float[Array, "b p q c"] | None,
    ) -> Float[Array, "b p q c"]:
        inner = Conv(self.channels, 3, name="conv0")(
            nn.silu(norm(self.channels, affine=True, name="norm")(h))
        )
        if self.scm:
            both = Conv(2 * self.channels, 1, name="scm")(nn.silu(static))
            gamma, beta = jnp.split(both, 2, axis=-1)
            inner = norm(self.channels, affine=False)(inner) * (1 + gamma) + beta
        else:
            inner = norm(self.channels, affine=True, name="inner_norm")(inner)
        if scale is not None:
            inner = inner * (1 + scale) + shift
        return h + Conv(self.channels, 3, name="conv1")(nn.silu(inner))
