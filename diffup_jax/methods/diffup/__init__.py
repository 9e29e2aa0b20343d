"""F4: DiffUp. A trained decoder turns the fused prior of a query into its mask.

What of an episode depends on nothing that is trained is `prepare`d once; the decoder is
trained on it (objective.py) and asked for the mask: in one forward, or, with
`process.diffusion`, as the inner module of a chain that draws masks from noise, one
`lax.scan` over its times for all samples (chain.py).

One decoder over a frozen backbone, mean/variance condition and priors as intermediate
states of the chain: arXiv 2407.16182.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from diffup_jax import images
from diffup_jax.backbones import Backbone
from diffup_jax.methods.diffup import chain, objective
from diffup_jax.methods.diffup.decoder import Decoder, Facts
from diffup_jax.methods.diffup.disturbance import Draws, disturb
from diffup_jax.methods.diffup.options import DiffUpSettings
from diffup_jax.methods.prior import Fused, Memory, Prior, baft, correction, decision
from diffup_jax.methods.prior.options import PriorSettings
from diffup_jax.types import (
    DiffUpError,
    Episode,
    Prediction,
    Query,
    Strokes,
    Support,
)

# Where masks are cut, in words.
_CUTS = {"iou": "cut for the greatest expected IoU", "half": "cut at 1/2"}


class Prepared(NamedTuple):
    """All that the decoder's training takes from an episode, at R = h / mask_stride.

    priors: before fusion; floor [b n], extent [b n 2]: as in prior.Memory; rgb
    [b r s 3] in [0, 1]; target [b n r s], share of a cell that is foreground; valid
    [b r s] in [0, 1].
    """

    priors: baft.Priors
    floor: Float[Array, "b n"]
    extent: Float[Array, "b n 2"]
    rgb: Float[Array, "b r s 3"]
    target: Float[Array, "b n r s"]
    valid: Float[Array, "b r s"]


class Observed(NamedTuple):
    """What of an answer depends on nothing trained, and on no stroke.

    fused: the prior at its grid; extent: as in prior.Memory; image [b h w 3] as given;
    similarity [b g g]: see correction.similarity.
    """

    fused: Fused
    extent: Float[Array, "b n 2"]
    image: Shaped[Array, "b h w 3"]
    similarity: Float[Array, "b g g"]


@dataclasses.dataclass(frozen=True)
class DiffUp:
    """The method. `params` is {"backbone": frozen, "decoder": trained}."""

    prior: Prior
    settings: DiffUpSettings

    name: ClassVar[str] = "diffup"
    # 6: the decoder without affinity and layout; the chain is a module around it.
    version: ClassVar[int] = 6
    trainable: ClassVar[tuple[str, ...]] = ("decoder",)
    uses_backbone: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True
    SECTIONS: ClassVar[dict[str, type]] = {
        "prior": PriorSettings,
        "diffup": DiffUpSettings,
    }

    @classmethod
    def make(cls, settings: Any, backbone: Backbone) -> DiffUp:
        """The method of a run. Raises as Prior.make does, and DiffUpError if the image
        size does not fit the mask stride.
        """
        found = cls(Prior.make(settings, backbone), settings.diffup)
        found._resolution((settings.data.image_size,) * 2)
        return found

    def init(self, key: Key[Array, ""], episode: Episode) -> dict[str, Any]:
        """A fresh network next to the backbone's weights.

        Raises:
          DiffUpError: if the image size does not fit the mask stride.
        """
        r = self._resolution(episode.query.image.shape[1:3])
        maps = lambda *channels: jnp.zeros((1, *r, *channels))  # noqa: E731
        inputs = (Facts(maps(), maps(), jnp.zeros((1, 2)), maps(3)),)
        if self.settings.process.diffusion:
            inputs = (*inputs, maps(), jnp.ones((1,)), maps())
        init = self._network.init
        if not isinstance(key, jax.core.Tracer):
            # Run once: compiling it well (11 s) costs more than it could ever save.
            # When only shapes are asked for, nothing is compiled at all.
            init = jax.jit(init, compiler_options={"xla_backend_optimization_level": 0})
        decoder = init(key, *inputs)["params"]
        return {**self.prior.init(key, episode), "decoder": decoder}

    def loss(
        self, params: dict, keys: Key[Array, " b"], episode: Episode
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Mean over episodes and ways of objective.py's (4) or (5)."""
        prepared = jax.lax.stop_gradient(self.prepare(params, episode))
        return self.loss_prepared(params, keys, prepared)

    def prepare(self, params: dict, episode: Episode) -> Prepared:
        """What of a training episode the trained part changes nothing of.

        Raises:
          DiffUpError: if the image size does not fit the mask stride.
        """
        query = episode.query
        r = self._resolution(query.image.shape[1:3])
        memory = self.encode(params, episode.support)
        priors, _ = self.prior.priors(params, query.image, memory)
        return Prepared(
            priors=priors,
            floor=memory.floor,
            extent=memory.extent,
            rgb=images.resize(images.to_float(query.image), r),
            target=images.area_average(query.mask, r),
            valid=images.area_average(query.valid.astype(jnp.float32), r),
        )

    def loss_prepared(
        self, params: dict, keys: Key[Array, " b"], prepared: Prepared
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """`loss` of what `prepare` returned; of `params` only the decoder is used."""
        draws, losses = Draws(keys), self.settings.losses
        priors, keep = disturb(
            prepared.priors,
            draws,
            dropout=losses.prior_dropout,
            log_gamma=losses.prior_gamma,
        )
        fused = self.prior.fuse(priors, prepared.floor, keep)
        n, *r = prepared.target.shape[1:]
        seen = (
            self._facts(fused, prepared.extent, prepared.rgb),
            prepared.target.reshape(-1, *r),
            jnp.repeat(prepared.valid, n, axis=0),
        )
        seen = jax.lax.stop_gradient(seen)
        if not self.settings.process.diffusion:
            return objective.of_one_forward(
                self._network, params["decoder"], *seen, losses=losses
            )
        return objective.of_chain(
            self._network,
            params["decoder"],
            draws,
            *seen,
            losses=losses,
            process=self.settings.process,
        )

    def encode(self, params: dict, support: Support) -> Memory:
        """Looks at the examples, once for all queries."""
        return self.prior.encode(params, support)

    def predict(
        self, params: dict, keys: Key[Array, " b"], query: Query, memory: Memory
    ) -> Prediction:
        """The mask of a query; maps "prior_mean", "prior_variance", "uncertainty"
        (standard deviation sqrt(p (1 - p)) of the mean probability) and, of several
        samples, "spread" (their standard deviation).
        """
        return self.answer(params, keys, self.observe(params, query, memory), None)

    def observe(self, params: dict, query: Query, memory: Memory) -> Observed:
        """What strokes on the query do not change."""
        priors, levels = self.prior.priors(params, query.image, memory)
        fused = self.prior.fuse(priors, memory.floor)
        similarity = correction.similarity(levels)
        return Observed(fused, memory.extent, query.image, similarity)

    def answer(
        self,
        params: dict,
        keys: Key[Array, " b"],
        observed: Observed,
        strokes: Strokes | None,
    ) -> Prediction:
        """The answer at the query's size; `strokes` on it correct it (correction.py).

        A chain restarts mid-way from the strokes' mask, if they hold one. The threshold
        of a way that strokes speak of is 1/2.

        Raises:
          DiffUpError: for strokes of another shape than [b n h w].
        """
        b, n = observed.extent.shape[:2]
        size, sampler = observed.image.shape[1:3], self.settings.sampler
        r = self._resolution(size)
        rgb = images.resize(images.to_float(observed.image), r)
        facts = self._facts(observed.fused, observed.extent, rgb)
        said = present = None
        if strokes is not None:
            strokes = correction.checked(strokes, (b, n, *size))
            similarity = jnp.repeat(observed.similarity, n, axis=0)
            said = correction.evidence(strokes, facts.rgb, similarity)
            present = correction.present(said, strokes)
            facts = facts._replace(
                mean=correction.mean(said, facts.mean),
                variance=correction.variance(said, facts.variance),
            )
        if self.settings.process.diffusion:
            prob = self._drawn(params, keys, facts, present, n)
        else:
            prob = jax.nn.sigmoid(
                self._network.apply({"params": params["decoder"]}, facts)
            )[None]
        if said is not None:
            prob = jax.vmap(lambda p: correction.mean(said, p))(prob)
        unfold = lambda x: x.reshape(-1, b, n, *x.shape[2:])  # noqa: E731
        coarse = unfold(prob).mean(axis=0)
        threshold = decision.THRESHOLDS[sampler.threshold](coarse)
        prob = unfold(images.resize_maps(prob, size))
        if strokes is not None:
            # What strokes weigh was fitted to masks cut at 1/2, and around a stroke the
            # probability falls off slowly: cut lower, a word reaches too far.
            spoken_of = (strokes.fg + strokes.bg > 0).any(axis=(2, 3))
            threshold = jnp.where(spoken_of, 0.5, threshold)
            prob = correction.honoured(prob, strokes)
        mean = prob.mean(axis=0)
        full = lambda x: images.resize_maps(x, size).reshape(b, n, *size)  # noqa: E731
        maps = {
            "prior_mean": full(facts.mean),
            "prior_variance": full(facts.variance),
            "uncertainty": jnp.sqrt(jnp.maximum(mean * (1 - mean), 0)),
        }
        if sampler.samples > 1:
            maps["spread"] = prob.std(axis=0)
        return Prediction(mean, threshold, maps)

    def embed_text(self, phrases: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Phrases as `Support.text`. Raises DiffUpError without a text tower."""
        return self.prior.embed_text(phrases)

    def text_in_words(self) -> str:
        """How text is read, for whoever reads a result."""
        return self.prior.text_in_words()

    def in_words(self) -> str:
        """How it answers, for a report."""
        sampler = self.settings.sampler
        how = "one forward"
        if self.settings.process.diffusion:
            how = f"diffusion, {sampler.steps} steps, {sampler.samples} samples"
        return f"{how}, {_CUTS[sampler.threshold]}"

    def _drawn(self, params, keys, facts, present, n) -> Float[Array, "samples bn r s"]:
        """Masks at the end of the chain, of ways [b n] folded into the batch."""
        samples = self.settings.sampler.samples
        apply = lambda name, *a: self._network.apply(  # noqa: E731
            {"params": params["decoder"]}, *a, method=name
        )

        def draw(keys):
            """One sample; keys [bn 2]."""
            return chain.drawn(
                apply,
                condition,
                mean=facts.mean,
                present=present,
                keys=keys,
                process=self.settings.process,
                sampler=self.settings.sampler,
            )

        condition = apply("condition", facts)
        split = jax.vmap(lambda key: jax.random.split(key, (samples, n, 2)))(keys)
        split = jnp.moveaxis(split, 1, 0).reshape(samples, -1, 2)
        return jax.vmap(draw)(split)

    @property
    def _network(self) -> Decoder | chain.Chain:
        options = self.settings.decoder
        decoder = Decoder(
            size=options.size, query_rgb=options.query_rgb, scm=options.scm
        )
        if not self.settings.process.diffusion:
            return decoder
        return chain.Chain(decoder, options.dqm)

    def _resolution(self, size: tuple[int, int]) -> tuple[int, int]:
        stride = self.settings.decoder.mask_stride
        if any(x % (8 * stride) for x in size):
            raise DiffUpError(
                f"image size {size[0]}x{size[1]} does not fit "
                f"diffup.decoder.mask_stride={stride}: the decoder halves the mask "
                f"three times, so the size must be a multiple of {8 * stride}. Set "
                "config.data.image_size or config.diffup.decoder.mask_stride "
                "accordingly."
            )
        return size[0] // stride, size[1] // stride

    def _facts(
        self,
        fused: Fused,
        extent: Float[Array, "b n 2"],
        rgb: Float[Array, "b r s 3"],
    ) -> Facts:
        """What the network sees, at the size of `rgb`, ways folded into the batch."""
        n, size = extent.shape[1], rgb.shape[1:3]
        fold = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
        return Facts(
            mean=images.resize_maps(fold(fused.mean), size),
            variance=images.resize_maps(fold(fused.variance), size),
            extent=fold(extent),
            rgb=jnp.repeat(rgb, n, axis=0),
        )


METHOD = DiffUp
