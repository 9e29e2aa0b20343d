"""F9: models by where they lie: a run, an exported folder, a hub id, or none at all."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from diffup_jax import (
    checkpoint,
    files,
    methods,
    programs,
    sections,
    training_data,
)
from diffup_jax import config as configs
from diffup_jax import weights as weight_files
from diffup_jax.backbones import hub
from diffup_jax.config import Settings
from diffup_jax.methods import Method
from diffup_jax.model import RUN, WEIGHTS, Model
from diffup_jax.types import DiffUpError


def load(
    source: str | os.PathLike,
    *,
    backbone: str = "",
    weights: str = "",
    settings: Mapping[str, Any] | None = None,
) -> Model:
    """A model that answers.

    Args:
      source: the folder of a run (train.py's --workdir), a folder that `Model.save`
        wrote, a Hugging Face id of such a folder, or the name of a training-free
        method, "prior".
      backbone, weights: another frozen network than the one trained with, see `diffup
        backbones list`; no re-training is needed. weights alone: another file of it.
      settings: any further values of the config, by full name:
        {"prior.scales": (0.5, 1.0)}.

    Raises:
      DiffUpError: when there is no such model, and for settings or weights that cannot
        be used.
    """
    programs.keep()
    run, trained, name = _found(source)
    changes = dict(settings or {})
    if backbone:
        changes |= {"backbone.name": backbone, "backbone.weights": weights}
    elif weights:
        changes["backbone.weights"] = weights
    values = run["config"]
    for key, value in changes.items():
        values = _changed(values, key.split("."), value, key)
    found = configs.from_config(values)
    changed = configs.model_changes(found, run["config"]) if trained else []
    if changed:
        listed = "\n  ".join(changed)
        raise DiffUpError(f"The model {name!r} was trained otherwise:\n  {listed}")
    method, network = configs.open_method(found)
    params = {} if network is None else {"backbone": network.params}
    if trained:
        params |= trained(method, found)
    # A swapped backbone stays swapped in what `Model.save` writes.
    return Model(method, params, found, {**run, "config": sections.plain(found)}, name)


def _changed(values: Any, path: list[str], value: Any, name: str) -> dict[str, Any]:
    """Nested values with one of them changed; what is unknown is told later."""
    if not isinstance(values, Mapping):
        raise DiffUpError(f"settings name {name!r}, which is no section of the config.")
    first, *rest = path
    inner = _changed(values.get(first, {}), rest, value, name) if rest else value
    return {**values, first: inner}


def _found(source: str | os.PathLike) -> tuple[dict[str, Any], Any, str]:
    """(what config.run_facts says, trained(method, settings) -> params, a name).

    `trained` is None of a training-free method.
    """
    name = os.path.expandvars(os.fspath(source))
    folder = Path(name).expanduser()
    if not folder.exists() and name in methods.names():
        if methods.get(name).trainable:
            raise DiffUpError(
                f"method {name!r} is trained; name the folder of a run, or 'prior', "
                "which needs no training."
            )
        return {"config": {"method": name}}, None, name
    step = checkpoint.latest_step(str(folder))
    if step is not None:

        def trained(method, settings):
            one = training_data.example(settings)
            return checkpoint.trained_params(str(folder), method, one)[0]

        return checkpoint.saved_run(str(folder), step), trained, f"{name} step {step}"
    if (folder / RUN).is_file() and (folder / WEIGHTS).is_file():
        paths = [folder / RUN, folder / WEIGHTS]
    elif not folder.exists() and hub.ID.fullmatch(name):
        paths = [hub.file(name, each) for each in (RUN, WEIGHTS)]
    else:
        raise DiffUpError(
            f"no model at {name!r}; expected the folder of a run (train.py's "
            "--workdir), one that Model.save wrote, a Hugging Face id, or 'prior' for "
            "the training-free method."
        )
    run = files.read_json(paths[0], fix="Save the model again.")
    if not isinstance(run, dict) or not {"config", "version"} <= run.keys():
        raise DiffUpError(
            f"{name!r} is no model that Model.save wrote. If it is a backbone, name it "
            f"beside a model: backbone=NAME, weights={name!r}."
        )
    configs.check_version(run, f"The model {name!r}")
    return run, functools.partial(_exported, paths[1]), name


def _exported(file: Path, method: Method, settings: Settings) -> dict[str, Any]:
    shapes = jax.eval_shape(
        method.init, jax.random.key(0), training_data.example(settings)
    )
    trained = {name: shapes[name] for name in method.trainable}
    return weight_files.convert(
        weight_files.own_layout(trained),
        weight_files.read(file),
        target_shapes=trained,
        what=f"The model file {str(file)!r}",
    )
