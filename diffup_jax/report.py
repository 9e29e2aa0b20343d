"""F4: the report of an evaluation.

    Evaluation and its setting --row--> results.json and the printed tables

The results file holds what was measured and under which setting, and no time, so that
running the same evaluation twice writes the same bytes. Keys of a row, in this order:

    dataset .. settings         the setting, see `Setting`
    miou, miou_ci95, fb_iou     percent; the interval is a 95 % bootstrap
    prior_miou, prior_threshold the prior mean alone at its best threshold; null of a
                                method without one
    per_class                   class_id, name, iou, episodes
    everything_foreground       mIoU of predicting foreground everywhere
    auroc                       of error, by each map that says where the method is
                                unsure; null where a map orders nothing
    ece, ece_foreground         expected calibration error of the probability, over all
                                pixels and where p >= 1/16 (metrics/calibration.py)
    reliability                 for each of 16 equal bins of p: confidence (mean p),
                                frequency (share of foreground), share of all pixels
    absent_classes, skipped     classes without an episode; episodes left out
    weights                     of the trained part
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from diffup_jax.evaluation import Evaluation
from diffup_jax.files import write_whole
from diffup_jax.metrics import Reliability

# The keys of a row of the results file, in their order.
ROW_KEYS = (
    *("dataset", "fold", "protocol", "image_size", "backbone", "weights_digest"),
    *("cue", "convention", "shots", "ways", "episodes", "episodes_sha", "seed"),
    *("method", "settings"),
    *("miou", "miou_ci95", "fb_iou", "prior_miou", "prior_threshold", "per_class"),
    *("everything_foreground", "auroc"),
    *("ece", "ece_foreground", "reliability"),
    *("absent_classes", "skipped", "weights"),
)


class Setting(NamedTuple):
    """Under what a number was measured; without all of it a number says nothing.

    `weights_digest` identifies the backbone's weights ("" without a backbone),
    `episodes_sha` the evaluation list, `convention` says what the cue means
    (data/cues.py), `method` names the method and `settings` those of its settings that
    evaluation may change, `weights` its trained part (the checkpoint).
    """

    dataset: str
    fold: int
    protocol: str
    image_size: int
    backbone: str
    weights_digest: str
    cue: str
    convention: str
    shots: int
    ways: int
    episodes_sha: str
    seed: int
    method: str
    settings: str
    weights: str


def row(
    result: Evaluation, setting: Setting, *, names: Mapping[int, str]
) -> dict[str, Any]:
    """One row of the results file: the setting, the scores, and every class by name.

    `names`: class index -> name, for every class of the fold. IoU in percent, null
    where a score does not exist.
    """
    scores = result.scores
    per_class = [
        {
            "class_id": int(class_id),
            "name": names[int(class_id)],
            "iou": float(iou),
            "episodes": int(episodes),
        }
        for class_id, iou, episodes in zip(
            result.state.classes, scores.per_class, scores.episodes, strict=True
        )
    ]
    facts = {
        **setting._asdict(),
        "episodes": len(result.ious),
        "miou": scores.miou,
        "miou_ci95": list(result.interval),
        "fb_iou": scores.fb_iou,
        "prior_miou": scores.prior_miou,
        "prior_threshold": scores.prior_threshold,
        "per_class": per_class,
        "everything_foreground": scores.everything_foreground,
        "auroc": scores.auroc,
        "ece": scores.ece,
        "ece_foreground": scores.ece_foreground,
        "reliability": _reliability(scores.reliability),
        "absent_classes": [names[class_id] for class_id in scores.absent],
        "skipped": {"empty": result.empty, "damaged": len(result.damaged)},
    }
    return {name: facts[name] for name in ROW_KEYS}


def write_results(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write {"rows": [...]} as JSON, whole or not at all; the folder is made."""
    text = json.dumps({"rows": list(rows)}, indent=2, allow_nan=False)
    write_whole(path, text + "\n")


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print two tables per setting, cue by shots: the masks, and how sure they are.

    Rows measured under different settings never share a table; the setting is the
    caption of its first one. "prior" is the prior mean alone at the threshold that
    suits these very episodes best.
    """
    console = Console()
    varying = ("cue", "convention", "shots", "episodes", "episodes_sha")
    shared = [name for name in Setting._fields if name not in varying]
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for each in rows:
        groups.setdefault(tuple(each[name] for name in shared), []).append(each)
    for setting, members in groups.items():
        facts = dict(zip(shared, setting, strict=True))
        _print(console, _masks(members), members, caption=_caption(facts, members))
        _print(console, _sureness(members), members, caption=_SURENESS_CAPTION)


def _masks(members: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Heading -> cell of every row."""
    cells: dict[str, list[str]] = {}
    for each in members:
        low, high = each["miou_ci95"]
        found = {
            "prior": _prior(each),
            "mIoU": f"[bold]{each['miou']:.1f}[/] ({low:.1f}-{high:.1f})",
            "FB-IoU": f"{each['fb_iou']:.1f}",
            "episodes": str(each["episodes"]),
            "list": each["episodes_sha"],
        }
        for heading, cell in found.items():
            cells.setdefault(heading, []).append(cell)
    if all(cell == "-" for cell in cells["prior"]):
        del cells["prior"]
    return cells


def _prior(each: Mapping[str, Any]) -> str:
    if each["prior_miou"] is None:
        return "-"
    return f"{each['prior_miou']:.1f} @ {each['prior_threshold']:.2f}"


def _sureness(members: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    number = lambda value, form: "-" if value is None else format(value, form)  # noqa: E731
    cells = {
        "ECE": [number(each["ece"], ".3f") for each in members],
        "ECE fg": [number(each["ece_foreground"], ".3f") for each in members],
    }
    for name in dict.fromkeys(name for each in members for name in each["auroc"]):
        found = [number(each["auroc"].get(name), ".2f") for each in members]
        cells[name.replace("_", " ")] = found
    return cells


_SURENESS_CAPTION = (
    "ECE of the probability p over all pixels and (fg) where p >= 1/16; then the AUROC "
    "of error of each map, - where there is none"
)


def _print(console: Console, cells, members, *, caption: str) -> None:
    table = Table(
        caption=escape(caption),
        caption_justify="left",
        box=None,
        header_style="bold underline",
        padding=(0, 1, 0, 0),
    )
    for name in ("cue", "shots", *cells):
        right = name not in ("cue", "list")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for each, *found in zip(members, *cells.values(), strict=True):
        table.add_row(escape(each["cue"]), str(each["shots"]), *found)
    # Numbers are never cut short: a narrower terminal wraps the lines itself.
    needed = Measurement.get(console, console.options.update(width=999), table)
    console.width = max(console.width, needed.maximum)
    console.print(table, end="\n\n")


def _caption(facts: Mapping[str, Any], members: Sequence[Mapping[str, Any]]) -> str:
    backbone = ""
    if facts["backbone"]:
        backbone = f"{facts['backbone']} (weights {facts['weights_digest']}); "
    setting = (
        f"{facts['dataset']} fold {facts['fold']}, protocol {facts['protocol']}, "
        f"{facts['image_size']} px, {facts['ways']}-way; {backbone}{method(facts)}, "
        f"weights {facts['weights']}, seed {facts['seed']}; interval: 95 % bootstrap"
    )
    lines = [setting]
    told = dict.fromkeys(each["convention"] for each in members if each["convention"])
    if told:
        lines.append(f"cues: {'; '.join(told)}")
    absent = sorted({name for each in members for name in each["absent_classes"]})
    if absent:
        lines.append(f"classes without an episode count as 0: {', '.join(absent)}")
    for name, why in (("empty", "empty queries"), ("damaged", "damaged episodes")):
        most = max(each["skipped"][name] for each in members)
        if most:
            lines.append(f"{why} left out: {most}")
    return "\n".join(lines)


def method(facts: Mapping[str, Any]) -> str:
    """How the masks of a row were made, in words."""
    told = f" ({facts['settings']})" if facts["settings"] else ""
    return f"method {facts['method']}{told}"


def _reliability(table: Reliability) -> list[dict[str, float | None]]:
    """One entry per bin; what an empty bin does not have is null."""
    return [
        {
            name: None if np.isnan(value) else float(value)
            for name, value in zip(table._fields, row, strict=True)
        }
        for row in zip(*table, strict=True)
    ]
