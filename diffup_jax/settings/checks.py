"""Values of the right type that no run could use, told by name before any work."""

from __future__ import annotations

from typing import Any

from diffup_jax.backbones import prompts
from diffup_jax.data import batches, benchmarks, coco, cues, episodes, protocols
from diffup_jax.methods import decision
from diffup_jax.settings.sections import EvalSettings, Settings, TextSettings
from diffup_jax.types import CUES
from diffup_jax.methods.diffup.decoder import SIZES

METHODS = ("diffup", "prior")


def implausible(settings: Settings) -> list[str]:
    """One sentence for each such value."""
    data, train, evaluation = settings.data, settings.train, settings.eval
    one_of = {
        "method": (settings.method, METHODS),
        "decoder.size": (settings.decoder.size, tuple(SIZES)),
        "sampler.threshold": (settings.sampler.threshold, tuple(decision.THRESHOLDS)),
        "eval.protocol": (evaluation.protocol, tuple(protocols.PROTOCOLS)),
        "data.source": (data.source, tuple(benchmarks.BENCHMARKS)),
        "data.crowd": (data.crowd, coco.CROWD),
        "data.overlap": (data.overlap, coco.OVERLAP),
        "data.box": (data.box, cues.BOXES),
        "data.scribble": (data.scribble, cues.SCRIBBLES),
        "data.on_error": (data.on_error, batches.ON_ERROR),
    }
    checks = [
        (value in known, f"config.{name}", value, known)
        for name, (value, known) in one_of.items()
    ]
    checks += [
        (
            0 < data.val_fraction < 1,
            "config.data.val_fraction",
            data.val_fraction,
            "a share between 0 and 1",
        ),
        (
            not (train.prior_cache and train.multi_host),
            "config.train.prior_cache",
            train.prior_cache,
            "0 with train.multi_host: a cache is made and read by one host",
        ),
        *(
            (
                bool(scales)
                and len(set(scales)) == len(scales)
                and all(0 < scale <= 4 for scale in scales),
                f"config.{name}.scales",
                scales,
                "different numbers above 0, at most 4",
            )
            for name, scales in {
                "prior": settings.prior.scales,
                **{
                    f"train.also_over.{name}": other.scales
                    for name, other in train.also_over.items()
                },
            }.items()
        ),
        (
            not train.also_over or train.steps > len(train.also_over),
            "config.train.steps",
            train.steps,
            f"at least {1 + len(train.also_over)}, one for each backbone of "
            "config.train.also_over and config.backbone",
        ),
        *_sampler(settings),
        (
            settings.losses.from_own + settings.losses.from_prior <= 1 + 1e-9,
            "config.losses.from_own + from_prior",
            settings.losses.from_own + settings.losses.from_prior,
            "at most 1: what is left is the share of the truth",
        ),
        (
            0 <= train.ema_decay < 1,
            "config.train.ema_decay",
            train.ema_decay,
            "a number in [0, 1)",
        ),
        (
            0 <= data.min_area < 1,
            "config.data.min_area",
            data.min_area,
            "a share of the image in [0, 1)",
        ),
        (
            bool(evaluation.shots) and min(evaluation.shots) >= 0,
            "config.eval.shots",
            evaluation.shots,
            "numbers of at least 1, or 0 for text alone",
        ),
    ]
    positive = {
        "train.steps": train.steps,
        "train.batch_size": train.batch_size,
        "train.max_shots": train.max_shots,
        "train.fewest_points": train.fewest_points,
        "train.log_every": train.log_every,
        "train.val_every": train.val_every,
        "train.val_episodes": train.val_episodes,
        "train.checkpoint_every": train.checkpoint_every,
        "train.keep": train.keep,
        "sampler.steps": settings.sampler.steps,
        "sampler.samples": settings.sampler.samples,
        "eval.batch_size": evaluation.batch_size,
        "decoder.mask_stride": settings.decoder.mask_stride,
        "prior.grid_stride": settings.prior.grid_stride,
        "prior.affinity_stride": settings.prior.affinity_stride,
        "data.image_size": data.image_size,
        "data.points": data.points,
    }
    checks += [
        (value >= 1, f"config.{name}", value, "at least 1")
        for name, value in positive.items()
    ]
    above_zero = {
        "train.learning_rate": train.learning_rate,
        "train.clip_norm": train.clip_norm,
        "process.signal_scale": settings.process.signal_scale,
        "losses.time_bias": settings.losses.time_bias,
        "prior.temperature": settings.prior.temperature,
        "prior.fusion_temperature": settings.prior.fusion_temperature,
    }
    checks += [
        (value > 0, f"config.{name}", value, "more than 0")
        for name, value in above_zero.items()
    ]
    not_negative = {
        "train.warmup_steps": train.warmup_steps,
        "train.prior_cache": train.prior_cache,
        "train.val_classes": train.val_classes,
        "train.weight_decay": train.weight_decay,
        "process.condition_strength": settings.process.condition_strength,
        "text.temperature": settings.text.temperature,
        "eval.gallery": evaluation.gallery,
        "eval.episodes": evaluation.episodes,
        "data.workers": data.workers,
    }
    checks += [
        (value >= 0, f"config.{name}", value, "at least 0")
        for name, value in not_negative.items()
    ]
    shares = {
        "sampler.eta": settings.sampler.eta,
        "sampler.prior_dropout": settings.sampler.prior_dropout,
        "augment.flip": settings.augment.flip,
        "augment.grey": settings.augment.grey,
        **{
            f"losses.{name}": getattr(settings.losses, name)
            for name in ("first_step", "from_own", "from_prior")
            + ("self_conditioning", "prior_dropout")
        },
    }
    checks += [
        (0 <= value <= 1, f"config.{name}", value, "a number in [0, 1]")
        for name, value in shares.items()
    ]
    checks.append(
        (
            bool(train.cues) and set(train.cues) <= set(CUES),
            "config.train.cues",
            train.cues,
            f"some of {', '.join(CUES)}",
        )
    )
    checks += _evaluation_cues(evaluation)
    checks += _text(settings.text)
    known = protocols.PROTOCOLS.get(evaluation.protocol)
    most = {"train": episodes.MOST_WAYS, "eval": known.most_ways if known else 1}
    for name, ways in (("train", train.ways), ("eval", evaluation.ways)):
        expected = f"1 to {most[name]}"
        if name == "eval" and known:
            expected += f", the ways of protocol {known.name}"
        checks.append((1 <= ways <= most[name], f"config.{name}.ways", ways, expected))
    return [
        f"{name}: got {value!r}, expected {expected}"
        for fine, name, value, expected in checks
        if not fine
    ]


def _sampler(settings: Settings) -> list[tuple[bool, str, Any, str]]:
    """What no chain could do, and what nothing but a chain could."""
    sampler, chain = settings.sampler, settings.process.diffusion
    switch = "config.process.diffusion=True"
    return [
        (
            not sampler.warm_start or (chain and settings.decoder.dqm),
            "config.sampler.warm_start",
            sampler.warm_start,
            f"False, or {switch} and config.decoder.dqm=True: DQM tells the quality "
            "of the prior",
        ),
        (
            chain or sampler.steps <= 1,
            "config.sampler.steps",
            sampler.steps,
            f"1, or {switch}: one forward has no further steps",
        ),
        (
            chain or sampler.samples <= 1 or sampler.prior_dropout > 0,
            "config.sampler.samples",
            sampler.samples,
            f"1, or {switch}, or config.sampler.prior_dropout above 0: else all "
            "samples are the same",
        ),
    ]


def _evaluation_cues(options: EvalSettings) -> list[tuple[bool, str, Any, str]]:
    """Checks of the cues; a mixture needs a shot for each kind that marks pixels."""
    name = "config.eval.cues"
    least = min((shots for shots in options.shots if shots), default=0)
    kinds = ", ".join(CUES)
    checks = [(bool(options.cues), name, options.cues, f"some of {kinds}")]
    for cue in options.cues:
        parts = cue.split("+")
        fine = set(parts) <= set(CUES) and len(set(parts)) == len(parts)
        expected = f"one of {kinds}, or several joined by '+'"
        checks.append((fine, name, cue, expected))
        expected = f"a shot for each of its kinds; config.eval.shots has {least}"
        shots = len(cues.marking(parts))
        checks.append((not fine or shots <= least, name, cue, expected))
    return checks


def _text(options: TextSettings) -> list[tuple[bool, str, Any, str]]:
    lists = ", ".join(prompts.BACKGROUNDS)
    alone = len(options.backgrounds) == 1
    return [
        (
            bool(options.templates)
            and all(each.count("{name}") == 1 for each in options.templates),
            "config.text.templates",
            options.templates,
            "sentences with {name} in each once (a comma divides sentences)",
        ),
        (
            bool(options.backgrounds)
            and (not alone or options.backgrounds[0] in prompts.BACKGROUNDS),
            "config.text.backgrounds",
            options.backgrounds,
            f"one of the lists {lists}, or several names of what is no class",
        ),
    ]
