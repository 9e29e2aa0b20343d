"""The command line that all preparations of a benchmark share, and its report.

A preparation is a function `prepare(root, **options)` that answers rows: what there
should be, whether it is there, and the facts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from diffup_jax.types import DiffUpError


class Row(NamedTuple):
    """One line of a summary: what, "there" | "missing" | "wrong", and the facts."""

    what: str
    state: str
    facts: str


def parser(
    name: str, description: str, *, root: str, archives: str | None, subset: str | None
) -> argparse.ArgumentParser:
    """The parser of `python -m data_prep.NAME` with --root and, where the benchmark has
    them, --archives (their help) and --subset (what a part of is accepted).
    """
    made = argparse.ArgumentParser(
        prog=f"python -m data_prep.{name}", description=description
    )
    made.add_argument("--root", type=Path, required=True, help=root)
    if archives:
        made.add_argument("--archives", type=Path, help=f"{archives} (ROOT/archives)")
    if subset:
        made.add_argument(
            "--subset",
            action="store_true",
            help=f"not all of {subset}: any counts will do",
        )
    return made


def run(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str],
    prepare: Callable[..., list[Row]],
    *,
    title: str,
) -> int:
    """Prepares and prints the summary. Exit status 0: all there, 1: not all, 2: a
    user's mistake, told in one line.
    """
    options = vars(parser.parse_args(arguments))
    root = options.pop("root")
    if "archives" in options:
        options["archives"] = options["archives"] or root / "archives"
    try:
        rows = prepare(root, **options)
    except DiffUpError as error:
        print(f"{parser.prog.rpartition('.')[2]}: {error}", file=sys.stderr)
        return 2
    return summary(f"{title} in {root}", rows)


def summary(title: str, rows: Sequence[Row]) -> int:
    """Prints what is there and what is not; answers an exit status, 0 = all there."""
    print(title)
    wide = max((len(row.what) for row in rows), default=0)
    for row in rows:
        mark = row.state if row.state == "there" else row.state.upper()
        print(f"  {mark:<8}{row.what:<{wide}}  {row.facts}".rstrip())
    lacking = [row for row in rows if row.state != "there"]
    if lacking:
        print(f"{len(lacking)} of {len(rows)} items are missing or wrong.")
    else:
        print("Everything is there.")
    sys.stdout.flush()
    return 1 if lacking else 0
