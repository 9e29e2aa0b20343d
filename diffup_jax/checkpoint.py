"""F6: state, data position and config saved together, and restored exactly.

Orbax writes each checkpoint aside and renames it, so a killed run never leaves a half
one that looks whole. Checkpoints of another run or another model are refused before
anything is lost. The run is told by what config.run_facts answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from diffup_jax import config as configs
from diffup_jax import methods
from diffup_jax.files import read_json
from diffup_jax.types import DiffUpError

# Written by orbax when a checkpoint is complete; an empty folder "8" lacks it.
_COMPLETE = "_CHECKPOINT_METADATA"


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
    run: dict[str, Any],
) -> None:
    """Saves `state` (a tree of arrays), the data position and the run at `step`.

    Raises:
      DiffUpError: if something that is no complete checkpoint stands in its way.
    """
    saved = writer.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            position=ocp.args.JsonSave(position),
            run=ocp.args.JsonSave(run),
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


def restore(workdir: str, step: int, *, template: Any) -> tuple[Any, dict[str, Any]]:
    """State shaped and placed like `template`, and data position, of `step`.

    Raises:
      DiffUpError: if names or shapes of the saved state are not those of `template`.
    """
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
    return found["state"], found["position"]


def trained_params(
    workdir: str, method: methods.Method, example: Any
) -> tuple[dict[str, Any], int]:
    """The averaged trained parts of the newest checkpoint, and its step.

    example: an episode of the shape that the method was trained with.

    Raises:
      DiffUpError: if there is none, or it holds another model.
    """
    step = latest_step(workdir)
    if step is None:
        raise DiffUpError(
            f"no checkpoint in {workdir!r}; expected a folder that train.py wrote with "
            "--workdir. Train first, or use the training-free method with "
            "--config.method=prior."
        )
    # Shapes only: the checkpoint holds the values.
    shapes = jax.eval_shape(method.init, jax.random.key(0), example)
    template = {"average": {name: shapes[name] for name in method.trainable}}
    return restore_part(workdir, step, template=template)["average"], step


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


def saved_run(workdir: str, step: int) -> dict[str, Any]:
    """What config.run_facts answered when the run of a checkpoint began.

    Raises:
      DiffUpError: if there is none, or another version of the method wrote it.
    """
    told = f"The checkpoint {workdir!r} at step {step}"
    again = "Train again in another --workdir, or use the diffup-jax that trained it."
    file = next((_folder(workdir) / str(step) / "run").glob("*metadata*"), None)
    if file is None:
        raise DiffUpError(
            f"{told} does not say what run it is of; an earlier version of this "
            f"program may have written it. {again}"
        )
    run = read_json(file, fix=again)
    configs.check_version(run, told)
    return run


def _folder(workdir: str) -> Path:
    return Path(workdir).absolute() / "checkpoints"


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
            "trained with (the size of its network above all), or another --workdir."
        )
