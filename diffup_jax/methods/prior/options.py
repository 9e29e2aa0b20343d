"""F4: how priors are made and text is read, as a config says it: section `prior`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from diffup_jax.backbones import prompts
from diffup_jax.sections import KEPT, Above, AtLeast, Role, Section

_Scale = Annotated[float, Above(0), Meta(le=4)]
Scales = Annotated[tuple[_Scale, ...], Meta(min_length=1), KEPT]


class TextSettings(Section):
    """What a text cue says, where the backbone has a text tower.

    templates: sentences for a phrase, each with {name} once; their embeddings are
      averaged. backgrounds: what is no class: a list of backbones/prompts.py
      ("default", "coco" or "pascal"), or names. temperature: of the softmax between a
      phrase and the backgrounds; 0 = the model's own.
    """

    templates: Annotated[tuple[str, ...], Meta(min_length=1), KEPT] = prompts.TEMPLATES
    backgrounds: Annotated[tuple[str, ...], Meta(min_length=1), KEPT] = ("default",)
    temperature: Annotated[float, AtLeast(0), KEPT] = 0.0

    def problems(self) -> Iterator[tuple[str, str]]:
        if any(each.count("{name}") != 1 for each in self.templates):
            yield (
                "templates",
                "sentences with {name} in each once (a comma divides sentences)",
            )
        if len(self.backgrounds) == 1 and self.backgrounds[0] not in (
            prompts.BACKGROUNDS
        ):
            lists = ", ".join(prompts.BACKGROUNDS)
            yield (
                "backgrounds",
                f"one of the lists {lists}, or several names of what is no class",
            )


class PriorSettings(Section):
    """How priors are made.

    levels: names of backbone levels; empty = the backbone's own choice.
    scales: sizes at which the backbone sees an image, relative to the episode's, each
      rounded to what the backbone takes; every level of every size makes priors.
    temperature: tau of assembly and self-propagation.
    fusion_temperature: tau of UAPF's reliability weights.
    grid_stride: image pixels per cell of the prior grid.
    """

    levels: Annotated[tuple[str, ...], KEPT] = ()
    scales: Scales = (1.0,)
    temperature: Annotated[float, Above(0), KEPT] = 0.1
    # What a cache keeps is not fused yet.
    fusion_temperature: Annotated[float, Above(0), Role.RUN] = 0.1
    grid_stride: Annotated[int, AtLeast(1), KEPT] = 8
    text: TextSettings = TextSettings()

    def problems(self) -> Iterator[tuple[str, str]]:
        if len(set(self.scales)) < len(self.scales):
            yield "scales", "different numbers"
