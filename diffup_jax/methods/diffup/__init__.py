"""F4: DiffUp. The fused prior conditions a diffusion decoder that draws the mask.

What of an episode depends on nothing that is trained is `prepare`d once; the decoder
is trained on it (objective.py), or asked for samples of the mask, one `lax.scan` over
the times of the chain for all of them (chain.py). Without `process.diffusion` the same
decoder answers once, in one forward from nothing.

One decoder over a frozen backbone, mean/variance condition and priors as intermediate
states of the chain: arXiv 2407.16182.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffup_jax import images
from diffup_jax.methods import chain, correction, decision, objective
from diffup_jax.methods.diffup.chain import SamplerSettings
from diffup_jax.methods.prior.correction import Strokes
from diffup_jax.methods.diffup.disturbance import Draws, disturb
from diffup_jax.methods.diffup.objective import LossSettings, ProcessSettings, facts_of
from diffup_jax.types import DiffUpError, Episode
from diffup_jax.methods.diffup.decoder import UQDD, Facts


@runtime_checkable
class FusesPriors(Protocol):
    """What DiffUp needs of the training-free method below it."""

    def init(self, key, episode) -> dict[str, Any]: ...
    def priors(self, params, episode) -> Any: ...
    def fuse(self, made, keep=None) -> Any: ...
    def affinity_grid(self, size: tuple[int, int]) -> tuple[int, int]: ...


class Prepared(NamedTuple):
    """All that the decoder's training takes from an episode, at R = h / mask_stride.

    made: the priors before fusion (prior.Made); rgb [b r r 3] in [0, 1]; target
    [b n r r], share of a cell that is foreground; valid [b r r] in [0, 1].
    """

    made: Any
    rgb: Float[Array, "b r s 3"]
    target: Float[Array, "b n r s"]
    valid: Float[Array, "b r s"]


@dataclasses.dataclass(frozen=True)
class DecoderSettings:
    """mask_stride: image pixels per mask pixel (h / R); the others: see uqdd.UQDD."""

    size: str
    mask_stride: int
    query_rgb: bool
    layout: bool
    affinity: bool
    scm: bool
    dqm: bool


@dataclasses.dataclass(frozen=True)
class DiffUp:
    """The method. `params` is {"backbone": frozen, "decoder": trained}."""

    prior: FusesPriors
    decoder: DecoderSettings
    process: ProcessSettings
    sampler: SamplerSettings
    losses: LossSettings
    trainable: tuple[str, ...] = ("decoder",)

    def init(self, key: Key[Array, ""], episode: Episode) -> dict[str, Any]:
        """Fresh decoder next to the backbone's weights.

        Raises:
          DiffUpError: if the image size does not fit the mask stride.
        """
        r = self._resolution(episode.query.shape[1:3])
        maps = lambda *channels: jnp.zeros((1, *r, *channels))  # noqa: E731
        cells = math.prod(self.prior.affinity_grid(episode.query.shape[1:3]))
        facts = Facts(
            mean=maps(),
            variance=maps(),
            extent=jnp.zeros((1, 2)),
            layout=maps(),
            similarity=jnp.zeros((1, cells, cells)),
            rgb=maps(3),
        )
        inputs = (facts, maps(), jnp.ones((1,)), maps())
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
        """Mean over episodes and ways of objective.py's (4); no collective inside.

        Args:
          keys: one per episode, so that the draws do not depend on the batch.
        """
        prepared = jax.lax.stop_gradient(self.prepare(params, episode))
        return self.loss_prepared(params, keys, prepared)

    def prepare(self, params: dict, episode: Episode) -> Prepared:
        """What of a training episode the trained part changes nothing of.

        Raises:
          DiffUpError: if the image size does not fit the mask stride.
        """
        r = self._resolution(episode.query.shape[1:3])
        return Prepared(
            made=self.prior.priors(params, episode),
            rgb=images.resize(images.to_float(episode.query), r),
            target=images.area_average(episode.query_mask, r),
            valid=images.area_average(episode.query_valid.astype(jnp.float32), r),
        )

    def loss_prepared(
        self, params: dict, keys: Key[Array, " b"], prepared: Prepared
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """`loss` of what `prepare` returned; of `params` only the decoder is used."""
        draws = Draws(keys)
        state = self._state(
            prepared,
            draws,
            dropout=self.losses.prior_dropout,
            log_gamma=self.losses.prior_gamma,
        )
        return objective.loss(
            self._network,
            params["decoder"],
            draws,
            jax.lax.stop_gradient(state),
            losses=self.losses,
            process=self.process,
        )

    def predict(
        self,
        params: dict,
        keys: Key[Array, " b"],
        episode: Episode,
        *,
        query_strokes: Strokes | None = None,
    ) -> tuple[Float[Array, "b n h w"], dict[str, Array]]:
        """Samples masks and averages them.

        Args:
          query_strokes: what a user says of the query itself, see correction.py; the
            chain restarts mid-way from its mask, if it holds one. Without diffusion
            there is no chain, each answer is made anew and the mask not read.

        Returns:
          probability [b n h w], and maps at h x w: "prior_mean", "prior_variance",
          "uncertainty" (standard deviation sqrt(p (1 - p)) of the mean probability),
          "spread" (standard deviation over samples; zero for one sample); "threshold"
          [b n], the probability from which on a pixel is in the mask, see decision.py;
          1/2 for a way that strokes speak of.

        Raises:
          DiffUpError: for strokes of another shape than [b n h w].
        """
        prepared = self.prepare(params, episode)
        size = episode.query.shape[1:3]
        return self.predict_prepared(
            params, keys, prepared, size, query_strokes=query_strokes
        )

    def predict_prepared(
        self,
        params: dict,
        keys: Key[Array, " b"],
        prepared: Prepared,
        size: tuple[int, int],
        *,
        query_strokes: Strokes | None = None,
    ) -> tuple[Float[Array, "b n h w"], dict[str, Array]]:
        """`predict` of what `prepare` returned, at `size` h x w; only the decoder runs.

        `prepared.target` and `prepared.valid` are not read.
        """
        b, n = prepared.target.shape[:2]
        samples = self.sampler.samples
        apply = lambda name, *a: self._network.apply(  # noqa: E731
            {"params": params["decoder"]}, *a, method=name
        )

        def spread(x):
            """Rows [b n] as rows [b samples n]."""
            x = x.reshape(b, 1, n, *x.shape[1:])
            return jnp.repeat(x, samples, axis=1).reshape(-1, *x.shape[3:])

        # From here on a row is a sample of a way of an episode: [b samples n].
        keys = jax.vmap(lambda key: jax.random.split(key, samples))(keys).reshape(-1)
        whole = seen = self._state(prepared)
        strokes, said, present = query_strokes, None, None
        if strokes is not None:
            strokes = correction.checked(strokes, (b, n, *size))
            said = correction.evidence(strokes, whole["rgb"], whole["similarity"])
            if self.process.diffusion:
                present = correction.present(said, strokes)
            whole = seen = correction.corrected(said, whole)
            said = jax.tree.map(spread, said)
        if self.sampler.prior_dropout:
            repeated = jax.tree.map(lambda x: jnp.repeat(x, samples, axis=0), prepared)
            seen = self._state(
                repeated, Draws(keys), dropout=self.sampler.prior_dropout
            )
            if said is not None:
                seen = correction.corrected(said, seen)
        condition, mean = apply("condition", facts_of(seen)), seen["mean"]
        if not self.sampler.prior_dropout:
            condition, mean = jax.tree.map(spread, (condition, mean))
        if not self.process.diffusion:
            prob = jax.nn.sigmoid(apply("once", condition).logits)
        else:
            split = jax.vmap(lambda key: jax.random.split(key, (n, 2)))(keys)
            prob = chain.drawn(
                apply,
                condition,
                mean=mean,
                present=None if present is None else spread(present),
                keys=split.reshape(-1, 2),
                process=self.process,
                sampler=self.sampler,
            )
        if said is not None:
            prob = correction.mean(said, prob)
        coarse = prob.reshape(b, samples, n, *prob.shape[1:]).mean(axis=1)
        threshold = decision.THRESHOLDS[self.sampler.threshold](coarse)
        if strokes is not None:
            # What strokes weigh was fitted to masks cut at 1/2, and around a stroke the
            # probability falls off slowly: cut lower, a word reaches too far.
            spoken_of = (strokes.fg + strokes.bg > 0).any(axis=(2, 3))
            threshold = jnp.where(spoken_of, 0.5, threshold)
        prob = images.resize_maps(prob, size).reshape(b, samples, n, *size)
        if strokes is not None:
            prob = correction.honoured(prob, strokes)
        mean_prob = prob.mean(axis=1)
        full = lambda x: images.resize_maps(x, size).reshape(b, n, *size)  # noqa: E731
        maps = {
            "prior_mean": full(whole["mean"]),
            "prior_variance": full(whole["variance"]),
            "uncertainty": jnp.sqrt(jnp.maximum(mean_prob * (1 - mean_prob), 0)),
            "spread": prob.std(axis=1),
            "threshold": threshold,
        }
        return mean_prob, maps

    @property
    def _network(self) -> UQDD:
        settings = dataclasses.asdict(self.decoder)
        del settings["mask_stride"]
        # DQM judges x_t: without diffusion there is none.
        settings["dqm"] = self.decoder.dqm and self.process.diffusion
        return UQDD(**settings)

    def _resolution(self, size: tuple[int, int]) -> tuple[int, int]:
        stride = self.decoder.mask_stride
        if any(x % (8 * stride) for x in size):
            raise DiffUpError(
                f"image size {size[0]}x{size[1]} does not fit decoder.mask_stride="
                f"{stride}: the decoder halves the mask three times, so the size must "
                f"be a multiple of {8 * stride}. Set config.data.image_size or "
                "config.decoder.mask_stride accordingly."
            )
        return size[0] // stride, size[1] // stride

    def _state(
        self,
        prepared: Prepared,
        draws: Draws | None = None,
        *,
        dropout: float = 0.0,
        log_gamma: float = 0.0,
    ) -> dict[str, Array]:
        """Everything the decoder sees, at R, ways folded into the batch [b n ...].

        With `draws` the priors are disturbed first, see methods/disturbance.py.
        """
        made, rgb, target, valid = prepared
        b, n, *r = target.shape
        keep = None
        if draws is not None:
            priors, keep = disturb(
                made.priors, draws, dropout=dropout, log_gamma=log_gamma
            )
            made = made._replace(priors=priors)
        fused = self.prior.fuse(made, keep)
        ways = lambda x: jnp.repeat(x, n, axis=0)  # noqa: E731
        fold = lambda x: x.reshape(b * n, *x.shape[2:])  # noqa: E731
        return {
            "mean": images.resize_maps(fold(fused.mean), tuple(r)),
            "variance": images.resize_maps(fold(fused.variance), tuple(r)),
            "extent": fold(made.extent),
            "layout": images.resize_maps(fold(made.layout), tuple(r)),
            "similarity": ways(made.similarity),
            "rgb": ways(rgb),
            "target": fold(target),
            "valid": ways(valid),
        }
