"""F8: a training run, told from top to bottom: data, model, state, step, restore, loop.

A run is a pure function of its config: episode i and its random draws depend on (seed,
i) only, so a run that was killed and started again ends bit for bit where an
uninterrupted one does, and the number of devices changes nothing but rounding.
`make_step` is the only place with a mesh, `shard_map` and `pmean`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from diffup_jax import (
    checkpoint,
    evaluation,
    methods,
    multi_backbone,
    sections,
    training_data,
)
from diffup_jax import config as configs
from diffup_jax.config import Settings, TrainSettings
from diffup_jax.data import cues, pipeline, protocols, sources
from diffup_jax.methods import Method
from diffup_jax.runlog import Log
from diffup_jax.types import DiffUpError


class TrainState(NamedTuple):
    """What a checkpoint holds: trained parts only, never the frozen backbone."""

    step: Array
    params: dict[str, Any]
    average: dict[str, Any]
    optimiser: Any


def train(config: Any, workdir: str) -> TrainState:
    """Trains, or continues, the run of `config` in `workdir`.

    Writes WORKDIR/checkpoints, metrics.jsonl, TensorBoard events and config.json.

    Raises:
      DiffUpError: for a config, data, weights or checkpoint that cannot be used, before
        training starts; for a non-finite loss, leaving the last good checkpoint.
    """
    settings = configs.from_config(config)
    if not methods.get(settings.method).trainable:
        raise DiffUpError(
            f"config.method={settings.method!r} has nothing to train; it is scored "
            "with eval.py. Use --config.method=diffup."
        )
    options = settings.train
    multi_backbone.require_text(settings)
    if options.multi_host:
        jax.distributed.initialize()
    devices = jax.device_count()
    if options.batch_size % devices:
        raise DiffUpError(
            f"config.train.batch_size={options.batch_size} does not divide among the "
            f"{devices} devices of this machine; use a multiple of {devices}."
        )

    # Data: base classes; some training images are kept aside for validation.
    source = sources.open_split(settings.data, "train", shots=options.max_shots)
    base = sources.fold_classes(source, settings.data.fold, role="base")
    training, held_out = sources.hold_out(source, settings.data.val_fraction)
    if settings.data.skip_small_classes:
        base = sources.classes_with_images(training, base, shots=options.max_shots)
    base, left_out = sources.leave_out(source, base, options.val_classes)
    validated = "left-out base classes" if left_out else "base classes"
    validation = training_data.validation_draws(
        held_out, left_out or base, options.val_episodes, settings.seed
    )

    # Model and state. A folder with another run is refused before anything is built.
    over = multi_backbone.open_turns(settings, source)
    recipe = multi_backbone.recipe_of(over, training, base)
    dataset = training_data.batches(recipe, steps=options.steps)
    run = configs.run_facts(settings, multi_backbone.digests(over))
    done = checkpoint.latest_step(workdir)
    if done is not None:
        then = checkpoint.saved_run(workdir, done)
        configs.check_same_run(settings, then, run, workdir)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    tx = optimiser(options)
    state, frozen = init_state(over[0].method, tx, settings, mesh)
    frozen = [frozen, *(multi_backbone.frozen(turn, mesh) for turn in over[1:])]
    losses = [turn.method.loss for turn in over]
    workers = settings.data.workers
    if options.prior_cache:
        dataset = multi_backbone.cached_batches(
            over, frozen, mesh, recipe, workdir=workdir
        )
        losses, workers = [turn.method.loss_prepared for turn in over], 0
    batches = pipeline.iterate(dataset, workers=workers)
    steps = [
        make_step(loss, tx, mesh, ema_decay=options.ema_decay, seed=settings.seed)
        for loss in losses
    ]

    # Restore: the newest complete checkpoint of this very run, if there is one.
    if done is not None:
        state, position = checkpoint.restore(workdir, done, template=state)
        batches.set_state(position)
    if done == options.steps:
        print(f"{workdir} is finished: step {done} of {done}. Nothing to do.")
        return state
    first = done or 0
    writer = checkpoint.manager(workdir, keep=options.keep)
    log = Log(
        workdir,
        config=sections.plain(settings),
        start=first,
        steps=options.steps,
        batch_size=options.batch_size,
        log_every=options.log_every,
    )
    log.say(_summary(settings, over, state, training, base, left_out, first))

    # Loop: read metrics one step late, so the device never waits for the host.
    ask = [jax.jit(functools.partial(methods.asked, turn.method)) for turn in over]
    late: tuple[int, Any] | None = None
    try:
        with log.progress() as bar:
            for number in range(first + 1, options.steps + 1):
                episode = training_data.place(next(batches), mesh)
                for message in batches.news():
                    bar.write(f"damaged, another episode takes its place: {message}")
                turn = (number - 1) % len(over)
                state, metrics = steps[turn](state, frozen[turn], episode)
                if late is not None:
                    log.metrics(*late, bar)
                late = (number, metrics)
                last = number == options.steps
                saving = number % options.checkpoint_every == 0 or last
                validating = validation and (number % options.val_every == 0 or last)
                if saving or validating:
                    log.metrics(*late, bar)  # never save a spoilt state
                    late = None
                if validating:
                    for each, answer, rest in zip(over, ask, frozen, strict=True):
                        score = _validate(
                            answer,
                            {**rest, **state.average},
                            held_out,
                            validation,
                            settings,
                            each.texts,
                        )
                        log.validation(
                            number, score, bar, classes=validated, over=each.name
                        )
                if saving:  # last: whatever a checkpoint follows is on record
                    checkpoint.save(
                        writer,
                        number,
                        state=state,
                        position=batches.get_state(),
                        run=run,
                    )
    finally:
        batches.close()
        if batches.damaged:
            count, files = batches.damaged.total(), len(batches.damaged)
            print(f"{count} training episodes replaced, damaged: {files}", flush=True)
        writer.wait_until_finished()
        writer.close()
        log.close()
    return state


def optimiser(options: TrainSettings) -> optax.GradientTransformation:
    """AdamW with linear warm-up, cosine decay to zero and clipping by global norm."""
    rate = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=options.learning_rate,
        warmup_steps=min(options.warmup_steps, options.steps - 1),
        decay_steps=options.steps,
    )
    # Norms and biases are not decayed: only kernels have two or more axes.
    kernels = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)  # noqa: E731
    return optax.chain(
        optax.clip_by_global_norm(options.clip_norm),
        optax.adamw(rate, weight_decay=options.weight_decay, mask=kernels),
    )


def init_state(
    method: Method,
    tx: optax.GradientTransformation,
    settings: Settings,
    mesh: Mesh,
) -> tuple[TrainState, dict[str, Any]]:
    """Fresh state and the frozen parts, both on every device."""
    one = training_data.example(settings)
    params = method.init(jax.random.key(settings.seed), one)
    trained = {name: params[name] for name in method.trainable}
    frozen = {name: params[name] for name in params if name not in trained}

    @jax.jit  # one program; leaf by leaf, hundreds of small ones would be compiled
    def fresh(trained):
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=trained,
            average=jax.tree.map(jnp.copy, trained),
            optimiser=tx.init(trained),
        )

    state = fresh(trained)
    return jax.device_put((state, frozen), NamedSharding(mesh, P()))


def make_step(
    loss: Callable[[dict, Array, Any], tuple[Array, dict[str, Array]]],
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    ema_decay: float,
    seed: int,
) -> Callable[[TrainState, dict, Any], tuple[TrainState, dict[str, Array]]]:
    """The compiled update: episodes are spread over the mesh, gradients averaged.

    `loss(params, keys, batch)` is a method's, of episodes or of what a prior cache
    keeps of them (DiffUp.loss_prepared).

    Every episode of the global batch has its own key from (seed, step, place), so one
    device and many draw the same. The state's buffers are reused.
    """

    def local(params, frozen, keys, batch):
        def whole(params):
            return loss({**frozen, **params}, keys, batch)

        (value, metrics), grads = jax.value_and_grad(whole, has_aux=True)(params)
        return jax.lax.pmean((grads, {"loss": value, **metrics}), "data")

    spread = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P(), P(), P("data"), P("data")),
        out_specs=P(),
        # pmean makes the results equal on all devices; the checker cannot follow
        # custom rules through the scanned sampler, so it is left off.
        check_vma=False,
    )

    def step(state, frozen, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        keys = jax.random.split(key, len(jax.tree.leaves(batch)[0]))
        grads, metrics = spread(state.params, frozen, keys, batch)
        updates, opt = tx.update(grads, state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
        # A young average forgets its random start faster.
        count = state.step.astype(jnp.float32) + 1
        decay = jnp.minimum(ema_decay, count / (count + 9))
        average = jax.tree.map(
            lambda a, p: a + (1 - decay) * (p - a), state.average, params
        )
        # The new parameters are in it, so a step that spoils them is told at once.
        metrics["grad_norm"] = optax.tree.norm(grads)
        metrics["param_norm"] = optax.tree.norm(params)
        return TrainState(state.step + 1, params, average, opt), metrics

    return jax.jit(step, donate_argnums=0)


def _validate(ask, params, source, draws, settings, texts) -> dict[str, float]:
    # One device is enough, and compiles the very program that eval.py runs.
    params = jax.tree.map(lambda x: x.addressable_data(0), params)
    protocol = protocols.get("clean")
    batches = pipeline.evaluation_batches(
        source,
        draws,
        numbers=range(len(draws)),
        cue=_validation_cue(settings.train.cues),
        protocol=protocol,
        data=settings.data,
        batch_size=settings.eval.batch_size,
        seed=settings.seed,
        texts=texts,
        workers=0,
    )
    result = evaluation.evaluate(
        lambda keys, episode: ask(params, keys, episode),
        jax.random.key(settings.seed),
        batches,
        classes=sorted({draw.class_ids[0] for draw in draws}),
        episodes=len(draws),
        frame=protocol.frame,
        seed=settings.seed,
        resamples=1,
    )
    found = {"val_miou": result.scores.miou}
    if result.scores.prior_miou is not None:
        found["val_prior_miou"] = result.scores.prior_miou
    return found


def _validation_cue(trained: tuple[str, ...]) -> str:
    """The surest there is: a mask, the first cue that marks pixels, or text."""
    known = cues.marking(trained)
    return "mask" if "mask" in known else (known or trained)[0]


def _summary(settings, over, state, source, classes, left_out, first) -> str:
    count = sum(x.size for x in jax.tree.leaves(state.params))
    lines = [
        *multi_backbone.in_words(over),
        f"method {settings.method}, {count / 1e6:.2f} M trained parameters",
        f"data {source.root}: {len(classes)} base classes of fold "
        f"{settings.data.fold}, images {settings.data.image_size} x "
        f"{settings.data.image_size}",
        f"{jax.device_count()} device(s): {jax.devices()[0].device_kind}",
    ]
    if left_out:
        names = ", ".join(source.class_names[c] for c in left_out)
        lines.append(f"left out of the training, for validation: {names}")
    if first:
        lines.append(f"continuing after step {first}")
    return "\n".join(lines)
