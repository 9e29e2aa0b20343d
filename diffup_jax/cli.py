"""F10: the command line: `diffup COMMAND ...`, one row of COMMANDS each.

    diffup predict --model M --example A --mask A.png --query Q --out DIR
    diffup doctor DATA [--kind KIND] [--split SPLIT]
    diffup config [METHOD]
    diffup backbones list [NAME ...]
    diffup backbones fetch NAME [--weights WEIGHTS]

A command is a function that adds its arguments to a parser and one that runs and
answers the exit status. It imports what it needs when it runs: no command waits for a
library that only another one uses. A DiffUpError or a wrong argument is printed as one
message and the process exits with status 2; with 130 when the user interrupts it, and
quietly with 141 when the reader of its output goes away (`diffup ... | head`), as a
shell has it for any program.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence

from diffup_jax import __version__, predict
from diffup_jax.types import DiffUpError


@dataclasses.dataclass(frozen=True)
class Command:
    """What one word does: its help, its arguments, and the function behind it."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status. None = the arguments of the process."""
    try:
        try:
            return _run(arguments)
        finally:
            print(end="", flush=True)  # a reader that is gone is found here, not later
    except BrokenPipeError:
        # What Python still holds back for the reader has to go somewhere at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 130


def _run(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="diffup", description="Few-shot semantic segmentation with DiffUp."
    )
    parser.add_argument("--version", action="version", version=__version__)
    _add_words(parser, COMMANDS, into="command")
    options = parser.parse_args(arguments)
    try:
        return COMMANDS[options.command].run(options)
    except DiffUpError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2


def _add_words(parser, commands: dict[str, Command], *, into: str) -> None:
    words = parser.add_subparsers(dest=into, required=True, metavar=into.upper())
    for name, command in commands.items():
        command.arguments(
            words.add_parser(name, help=command.help, description=command.help)
        )


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="folder of the data set")
    parser.add_argument(
        "--kind",
        help="its layout, a value of config.data.source; recognised when not given",
    )
    parser.add_argument("--split", help="only this split; all of them when not given")


def _doctor(options: argparse.Namespace) -> int:
    from diffup_jax.data import doctor

    report = doctor.examine(options.data, kind=options.kind, split=options.split)
    print(report.text())
    return 1 if report.problems else 0


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "method", nargs="?", default="diffup", help="whose sections; diffup"
    )


def _config(options: argparse.Namespace) -> int:
    from diffup_jax import config, sections

    settings = config.settings_type(options.method)(method=options.method)
    rows = list(sections.lines(settings, "config"))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, may_be in rows:
        print(f"{name:{widths[0]}}  {value:{min(widths[1], 34)}}  {may_be}")
    return 0


def _backbones_arguments(parser: argparse.ArgumentParser) -> None:
    _add_words(parser, BACKBONES, into="action")


def _backbones(options: argparse.Namespace) -> int:
    return BACKBONES[options.action].run(options)


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names",
        metavar="NAME",
        nargs="*",
        help="only these, with all their levels; all, with those of their priors, when "
        "not given",
    )


def _list(options: argparse.Namespace) -> int:
    from diffup_jax.backbones import catalogue

    print(catalogue.text(catalogue.entries(options.names)))
    return 0


def _fetch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="see: diffup backbones list")
    parser.add_argument(
        "--weights",
        help="a folder, a file, or a Hugging Face id; its default weights when not "
        "given",
    )


def _fetch(options: argparse.Namespace) -> int:
    from diffup_jax import backbones

    source = backbones.locate(options.name, weights=options.weights)
    backbone = backbones.get(options.name, weights=options.weights)
    files = "\n".join(f"  {file}" for file in source.files)
    print(f"{backbone.name}: {backbone.weights} ({backbone.digest})\n{files}")
    return 0


BACKBONES = {
    "list": Command(
        "Name, size, levels, text tower, default weights and licence of each backbone.",
        _list_arguments,
        _list,
    ),
    "fetch": Command(
        "Download a backbone's weights and convert them.", _fetch_arguments, _fetch
    ),
}

COMMANDS = {
    "predict": Command(
        "Segment your own pictures: examples and pictures in, masks out.",
        predict.arguments,
        predict.run,
    ),
    "doctor": Command(
        "Check every file of a data set and list every problem (exit status 1).",
        _doctor_arguments,
        _doctor,
    ),
    "config": Command(
        "Every value of a config: its default, and what it may be.",
        _config_arguments,
        _config,
    ),
    "backbones": Command(
        "The networks that see: list them, fetch their weights.",
        _backbones_arguments,
        _backbones,
    ),
}
