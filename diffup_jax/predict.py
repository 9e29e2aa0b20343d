"""F9: `diffup predict`: examples and pictures named on the command line, files out.

An option that says something of an example (--mask, --box, ...) belongs to the
--example before it, so any number of examples and cues can be mixed in one line.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diffup_jax.types import DiffUpError

# What is taken for a picture in a folder.
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")

_USE = """\
an example with its cue:
  --example a.jpg --mask a.png            (a mask picture; --mask-label VALUE chooses)
  --example b.jpg --box 10,20,200,180     (x0,y0,x1,y1 in pixels; may be repeated)
  --example c.jpg --point 120,80 --not-point 30,40
  --example d.jpg --scribble drawn.png --background ground.png
  --example e.jpg --negative              (what is not meant; with a cue: that region)
  --text "a red star"                     (where the backbone reads text)
several labels: --label NAME before their examples
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _USE
    parser.add_argument(
        "--model",
        required=True,
        help="folder of a run (train.py's --workdir), an exported folder, a Hugging "
        "Face id, or 'prior', which needs no training",
    )
    parser.add_argument(
        "--query",
        required=True,
        action="append",
        help="picture, or folder of pictures, to segment; may be repeated",
    )
    parser.add_argument("--out", required=True, help="folder for what is written")
    said = parser.add_argument_group("examples")
    for option, kind in _OF_EXAMPLES.items():
        takes = {"metavar": kind.form} if kind.form else {"nargs": 0}
        said.add_argument(f"--{option}", action=_Said, help=kind.help, **takes)
    parser.set_defaults(said=[])
    seen = parser.add_argument_group("the model")
    seen.add_argument("--backbone", default="", help="another one than trained with")
    seen.add_argument("--weights", default="", help="of the backbone")
    seen.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another value of the config, such as prior.scales=[0.5,1.0] (JSON)",
    )


def run(options: argparse.Namespace) -> int:
    """Segments every picture; the exit status: 1 if some could not be read.

    Raises:
      DiffUpError: for examples, a model or pictures that are not there, before any
        work.
    """
    # Before jax is loaded: what can be wrong with the words themselves.
    described = examples_of(options.said)
    queries = list(_pictures(options.query))
    out = Path(options.out)
    _require_writable(out)
    _require_apart(out, queries, described)
    settings = dict(map(_setting, options.set))

    import diffup_jax

    model = diffup_jax.load(
        options.model,
        backbone=options.backbone,
        weights=options.weights,
        settings=settings,
    )
    task = model.fit([diffup_jax.Example(**values) for values in described])
    counts = ", ".join(f"{label}" for label in task.labels)
    print(f"{model.name}: {counts}; {len(described)} examples, {len(queries)} pictures")
    failed, began = 0, time.monotonic()
    for path, stem in zip(queries, _stems(queries), strict=True):
        try:
            result = task.predict(path)
        except DiffUpError as error:
            failed += 1
            print(f"{path}: {error}", file=sys.stderr, flush=True)
            continue
        result.save(out / stem)
        found = ", ".join(
            f"{label} {100 * mask.mean():.1f} % of the picture, score {score:.2f}"
            for label, mask, score in zip(
                result.labels, result.masks, result.scores, strict=True
            )
        )
        print(f"{path}: {found}", flush=True)
    seconds = time.monotonic() - began
    done = len(queries) - failed
    print(f"{done} of {len(queries)} pictures in {seconds:.1f} s, in {out}")
    return 1 if failed else 0


def examples_of(said: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """The examples that a command line describes, as the fields of `Example`.

    Raises DiffUpError for a cue before any example, one that cannot be read, and for no
    example at all.
    """
    found: list[dict[str, Any]] = []
    label = None
    for option, value in said:
        kind = _OF_EXAMPLES[option]
        if option == "label":
            label = value
        elif option in ("example", "text"):
            field = "image" if option == "example" else "text"
            found.append({field: value} | ({"label": label} if label else {}))
        elif not found or "image" not in found[-1]:
            raise DiffUpError(
                f"--{option} {value} has no example before it; name its picture first: "
                f"--example PICTURE --{option} {kind.form}".rstrip()
            )
        else:
            _add(found[-1], option, value)
    if not found:
        raise DiffUpError(
            "there is no example; show what is meant: --example PICTURE --mask FILE, "
            '--box x0,y0,x1,y1, --point x,y or --scribble FILE, or --text "PHRASE".'
        )
    return found


@dataclasses.dataclass(frozen=True)
class _Option:
    form: str
    help: str


_OF_EXAMPLES = {
    "example": _Option("PICTURE", "a picture that shows what is meant"),
    "mask": _Option("FILE", "its mask"),
    "mask-label": _Option("VALUE", "the value of the object in that mask"),
    "box": _Option("x0,y0,x1,y1", "a box around the object"),
    "point": _Option("x,y", "a point on the object"),
    "not-point": _Option("x,y", "a point beside it"),
    "scribble": _Option("FILE", "a picture of what was drawn on the object"),
    "background": _Option("FILE", "a picture of what was drawn beside it"),
    "negative": _Option("", "the example shows what is not meant"),
    "text": _Option("PHRASE", "what is meant, in words"),
    "label": _Option("NAME", "what the examples after it are of"),
}


class _Said(argparse.Action):
    """Keeps the order in which options about examples come."""

    def __call__(self, parser, namespace, values, option_string=None):
        value = values if isinstance(values, str) else ""
        namespace.said = [*namespace.said, (option_string.lstrip("-"), value)]


def _add(example: dict[str, Any], option: str, value: str) -> None:
    if option == "box":
        example.setdefault("box", []).append(_numbers(option, value, 4))
    elif option in ("point", "not-point"):
        example.setdefault("points", []).append(_numbers(option, value, 2))
        example.setdefault("point_labels", []).append(int(option == "point"))
    elif option == "negative":
        example["negative"] = True
    elif option == "mask-label":
        if not value.isdecimal():
            raise DiffUpError(f"--mask-label {value}: expected a whole number.")
        example["mask_label"] = int(value)
    elif option in example:
        raise DiffUpError(
            f"--{option} is given twice for {example['image']}; expected one."
        )
    else:
        example[option] = value


def _numbers(option: str, value: str, count: int) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in value.split(","))
    except ValueError:
        found = ()
    if len(found) != count:
        raise DiffUpError(
            f"--{option} {value}: expected {_OF_EXAMPLES[option].form}, {count} "
            "numbers with commas."
        )
    return found


def _setting(text: str) -> tuple[str, Any]:
    import json

    key, equals, value = text.partition("=")
    if not equals:
        raise DiffUpError(f"--set {text}: expected KEY=VALUE.")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value  # a word needs no quotes


def _pictures(named: Sequence[str]) -> Iterator[str]:
    """Every picture, folders in the order of their names."""
    for name in named:
        path = Path(name)
        if path.is_dir():
            inside = sorted(
                each
                for each in path.iterdir()
                if each.suffix.lower() in ENDINGS and not each.name.startswith(".")
            )
            if not inside:
                raise DiffUpError(
                    f"the folder {name!r} holds no picture ({', '.join(ENDINGS)})."
                )
            yield from map(os.fspath, inside)
        elif path.is_file():
            yield name
        else:
            raise DiffUpError(f"there is no picture or folder {name!r} to segment.")


def _stems(queries: Sequence[str]) -> list[str]:
    """A name for each picture's files; equal names in two folders get numbers."""
    stems, seen = [], set()
    for query in queries:
        stem = first = Path(query).stem
        number = 2
        while stem in seen:
            stem, number = f"{first}-{number}", number + 1
        seen.add(stem)
        stems.append(stem)
    return stems


def _require_apart(
    out: Path, queries: Sequence[str], described: Sequence[dict[str, Any]]
) -> None:
    """Answers never lie among what was given: one could replace a mask drawn by hand.

    Raises DiffUpError otherwise.
    """
    given = [Path(query) for query in queries]
    for example in described:
        files = [v for k, v in example.items() if k not in ("text", "label")]
        given += [Path(value) for value in files if isinstance(value, str)]
    for path in given:
        if path.resolve().parent == out.resolve():
            raise DiffUpError(
                f"--out {str(out)!r} is the folder of {str(path)!r}; name another, so "
                "that no answer takes the place of a file of yours."
            )


def _require_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError("no permission to write")
    except OSError as error:
        raise DiffUpError(
            f"--out {str(out)!r} cannot be written to ({error.strerror or error}); "
            "name another folder."
        ) from error
