"""F4: DiffUp's own section of a config, `diffup`: decoder, process, sampler, losses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from diffup_jax.methods.diffup.decoder import SIZES
from diffup_jax.methods.prior.decision import THRESHOLDS
from diffup_jax.sections import (
    FREE,
    MODEL,
    Above,
    AtLeast,
    OneOf,
    Role,
    Section,
    Within,
)

_Share = Annotated[float, Within(0, 1)]


class DecoderSettings(Section):
    """mask_stride: image pixels per mask pixel (h / R); the others: see decoder.py and
    chain.py (dqm is the chain's).
    """

    size: Annotated[str, OneOf(*SIZES), MODEL] = "B"
    mask_stride: Annotated[int, AtLeast(1), MODEL | Role.KEPT] = 4
    query_rgb: Annotated[bool, MODEL] = True
    scm: Annotated[bool, MODEL] = True
    dqm: Annotated[bool, MODEL] = True


class ProcessSettings(Section):
    """The diffusion process.

    diffusion: False = one forward of the decoder, as good in what was measured and
    cheaper (docs/results.md); what follows and most of LossSettings is then not read.
    True = the paper's. signal_scale: s; condition_strength: lambda, 0 = plain DDPM.
    """

    diffusion: Annotated[bool, MODEL] = False
    signal_scale: Annotated[float, Above(0), MODEL] = 1.0
    condition_strength: Annotated[float, AtLeast(0), MODEL] = 0.0


class SamplerSettings(Section):
    """How masks are drawn, and cut.

    steps of DDIM; eta: 0 = deterministic; samples, averaged; warm_start: begin at the
    time matched to DQM's estimate of the prior, not at 1. threshold: where the mean
    probability is cut: "half", at 1/2, or "iou", so that the expected IoU of the mask
    is greatest (prior/decision.py); a way that strokes speak of is cut at 1/2.

    Without diffusion steps and samples are 1, there is no warm start, and eta is not
    read.
    """

    steps: Annotated[int, AtLeast(1), FREE] = 1
    eta: Annotated[float, Within(0, 1), FREE] = 1.0
    samples: Annotated[int, AtLeast(1), FREE] = 1
    warm_start: Annotated[bool, FREE] = False
    threshold: Annotated[str, OneOf(*THRESHOLDS), FREE] = "half"


class LossSettings(Section):
    """What training draws and how it weighs; the first five with diffusion only.

    first_step: f of equation (4) in objective.py; 1 = the first step is all that is
      trained. time_bias: t = u^(1/time_bias) in (2); 1 = uniform, larger = nearer to
      noise. from_own, from_prior: shares of z in equation (2); the rest is the truth.
      self_conditioning: share of draws of (2) that see the previous x0_hat.
    prior_dropout: probability of leaving out each (level, operator) pair, and each
      text operator. prior_gamma: standard deviation of log gamma in the distortion
      P -> P^gamma.
    dice, error, quality: weights of the loss terms; the last two are DQM's, with
      diffusion only.
    """

    first_step: _Share = 0.5
    time_bias: Annotated[float, Above(0)] = 2.0
    from_own: _Share = 0.4
    from_prior: _Share = 0.35
    self_conditioning: _Share = 0.5
    prior_dropout: _Share = 0.2
    prior_gamma: Annotated[float, AtLeast(0)] = 0.3
    dice: Annotated[float, AtLeast(0)] = 1.0
    error: Annotated[float, AtLeast(0)] = 0.2
    quality: Annotated[float, AtLeast(0)] = 0.2

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.from_own + self.from_prior > 1 + 1e-9:
            yield "from_own", "from_own + from_prior at most 1: the rest is the truth"


class DiffUpSettings(Section):
    """The trained method; its priors are made as section `prior` says."""

    decoder: DecoderSettings = DecoderSettings()
    process: ProcessSettings = ProcessSettings()
    sampler: SamplerSettings = SamplerSettings()
    losses: LossSettings = LossSettings()

    def problems(self) -> Iterator[tuple[str, str]]:
        sampler, chain = self.sampler, self.process.diffusion
        switch = "diffup.process.diffusion=True"
        if sampler.warm_start and not (chain and self.decoder.dqm):
            yield (
                "sampler.warm_start",
                f"False, or {switch} and diffup.decoder.dqm=True: DQM tells the "
                "quality of the prior",
            )
        for name in ("steps", "samples"):
            if getattr(sampler, name) > 1 and not chain:
                yield f"sampler.{name}", f"1, or {switch}: one forward has no chain"
