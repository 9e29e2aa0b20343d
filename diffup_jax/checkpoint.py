"""F5: state, data position and config saved together, and restored exactly.

Orbax writes each checkpoint aside and renames it, so a killed run never leaves a half
one that looks whole. Checkpoints of another run or another decoder are refused before
anything is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from diffup_jax.data import cues
from diffup_jax.files import read_json
from diffup_jax.methods import REVISION
from diffup_jax.types import DiffUpError

# Written by orbax when a checkpoint is complete; an empty folder "8" lacks it.
_COMPLETE = "_CHECKPOINT_METADATA"

# Config keys that a resumed run may change: they alter no number of the training.
_FREE = ("eval", "sampler", "data.workers", "data.test_root", "data.test_split")
_FREE += ("train.log_every", "train.checkpoint_every", "train.keep", "train.val_every")
_FREE += ("train.val_episodes", "train.multi_host", "data.root", "backbone.weights")
# A run that stopped at a damaged file may continue and leave it out.
_FREE += ("data.on_error", "train.prior_cache_dir")
# What a run of before there was such a setting did.
_LATER = {"train.val_classes": 0}


def manager(workdir: str, *, keep: int) -> ocp.CheckpointManager:
    """A manager over WORKDIR/checkpoints that keeps the newest `keep`.

    Saving is asynchronous: the loop goes on while the files are written.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=True, enable_async_checkpointing=True
    )
    folder = _folder(workdir)
    for stray in _incomplete(folder):
        # Only ever an empty shell of a killed run: never delete anything with content.
        stray.rmdir()
    return ocp.CheckpointManager(folder, options=options)


def save(
    writer: ocp.CheckpointManager,
    step: int,
    *,
    state: Any,
    position: dict[str, Any],
    config: dict[str, Any],
) -> None:
    """Saves `state` (a tree of arrays), the data position and the config at `step`.

    Raises:
      DiffUpError: if something that is no complete checkpoint stands in its way.
    """
    saved = writer.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            position=ocp.args.JsonSave(position),
            config=ocp.args.JsonSave({**config, "revision": REVISION}),
        ),
    )
    if not saved:
        # Orbax silently skips a step that is not newer than every folder it sees.
        raise DiffUpError(
            f"the checkpoint of step {step} was not saved: {writer.directory} holds a "
            f"folder {writer.latest_step()} that is no complete checkpoint. Move it "
            "away and start again."
        )


def latest_step(workdir: str) -> int | None:
    """The newest complete checkpoint, or None."""
    folder = _folder(workdir)
    if not folder.is_dir():
        return None
    steps = [
        int(path.name)
        for path in folder.iterdir()
        if path.name.isdigit() and (path / _COMPLETE).exists()
    ]
    return max(steps, default=None)


def restore(
    workdir: str, step: int, *, template: Any
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """State shaped and placed like `template`, data position and config of `step`.

    Raises:
      DiffUpError: if names or shapes of the saved state are not those of `template`;
        as `saved_config` does.
    """
    config = saved_config(workdir, step)
    folder = _folder(workdir) / str(step)
    reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    saved = ocp.PyTreeCheckpointHandler().metadata(folder / "state")
    _check_shapes(saved.tree, template, folder)
    arguments = ocp.checkpoint_utils.construct_restore_args(template)
    with reader:
        found = reader.restore(
            folder,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(template, restore_args=arguments),
                position=ocp.args.JsonRestore(),
            ),
        )
    return found["state"], found["position"], config


def restore_part(workdir: str, step: int, *, template: dict[str, Any]) -> Any:
    """Only the parts of the state named in `template`, on the default device.

    Raises:
      DiffUpError: if names or shapes of these parts differ.
    """
    folder = _folder(workdir) / str(step)
    handler = ocp.PyTreeCheckpointHandler()
    saved = handler.metadata(folder / "state").tree
    _check_shapes({name: saved[name] for name in template}, template, folder)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    arguments = jax.tree.map(
        lambda x: ocp.ArrayRestoreArgs(sharding=device, global_shape=x.shape), template
    )
    with ocp.Checkpointer(handler) as reader:
        return reader.restore(
            folder / "state",
            args=ocp.args.PyTreeRestore(
                template, restore_args=arguments, partial_restore=True
            ),
        )


def saved_config(workdir: str, step: int) -> dict[str, Any]:
    """The config a checkpoint was made with, as plain JSON values.

    Raises:
      DiffUpError: if there is none, or another revision of the method wrote it.
    """
    file = next((_folder(workdir) / str(step) / "config").glob("*metadata*"), None)
    if file is None:
        raise DiffUpError(f"The checkpoint {workdir!r} at step {step} has no config.")
    config = read_json(file, fix="The checkpoint is damaged: use another step or run.")
    revision = config.pop("revision", None)
    if revision != REVISION:
        raise DiffUpError(
            f"The checkpoint {workdir!r} at step {step} was written by revision "
            f"{revision or 1} of the method, this is revision {REVISION}: its "
            "parameters would answer otherwise than they were trained to. Train again "
            "in another --workdir, or use the diffup-jax that trained it."
        )
    return config


def check_same_run(facts: dict[str, Any], saved: dict[str, Any], workdir: str) -> None:
    """A checkpoint is continued only by the config and the weights that made it.

    facts, saved: the config now and then, as `saved_config` answers it.

    Raises:
      DiffUpError: with every value that changed and alters a number of the training.
    """
    now, then = dict(_flat(facts)), {**_LATER, **dict(_flat(saved))}
    # What no cue reads alters nothing; runs from before text cues have no such section.
    free = _FREE if cues.any_text(now["train.cues"]) else (*_FREE, "text")
    changed = [
        f"config.{key}: was {then.get(key)!r}, now {now.get(key)!r}"
        for key in sorted(now.keys() | then.keys())
        if now.get(key) != then.get(key)
        and not any(key == each or key.startswith(each + ".") for each in free)
    ]
    if changed:
        raise DiffUpError(
            f"{workdir!r} holds a run with another config:\n  "
            + "\n  ".join(changed)
            + "\nContinue it with its own values, or choose another --workdir."
        )


def _folder(workdir: str) -> Path:
    return Path(workdir).absolute() / "checkpoints"


def _flat(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flat(value, f"{name}.{key}" if name else key)
    else:
        yield name, tree


def _incomplete(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [
        path
        for path in folder.iterdir()
        if path.name.isdigit() and path.is_dir() and not any(path.iterdir())
    ]


def _check_shapes(saved: Any, template: Any, folder: Path) -> None:
    """All differences in one error."""
    shapes = lambda tree: {  # noqa: E731
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        if leaf is not None and np.ndim(leaf.shape) == 1
    }
    have, want = shapes(saved), shapes(template)
    problems = [f"{name}: missing in the checkpoint" for name in want.keys() - have]
    problems += [f"{name}: not in this model" for name in have.keys() - want]
    problems += [
        f"{name}: saved {have[name]}, expected {want[name]}"
        for name in want.keys() & have.keys()
        if have[name] != want[name]
    ]
    if problems:
        listed = "\n  ".join(sorted(problems)[:8])
        more = f"\n  … and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise DiffUpError(
            f"The checkpoint {folder} holds another model than the config asks for "
            f"({len(problems)} differences):\n  {listed}{more}\nUse the config it was "
            "trained with (decoder.size above all), or another --workdir."
        )
