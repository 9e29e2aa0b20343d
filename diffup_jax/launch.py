"""F9: from a command line to one function call, and from an error to one message.

`--config FILE[:ARGUMENT]` is a Python file with `get_config`; without it, where a
workdir is named, its checkpoint has the config. Any of its values can be set with
`--config.a.b=value`. A DiffUpError or a wrong flag is printed as one message and the
process exits with status 2.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from diffup_jax import checkpoint, programs
from diffup_jax import config as configs
from diffup_jax.types import DiffUpError


def run(main: Callable[[Any], None], *, of_workdir: bool) -> None:
    """Parses `--config` and the caller's flags and calls `main(config)`.

    Flags are defined by the caller before. of_workdir: without --config the config is
    that of the newest checkpoint in --workdir.
    """
    workdir = _value(sys.argv[1:], "workdir") if of_workdir else None
    named = _value(sys.argv[1:], "config")
    if named is None and workdir is None and not _asks_for_help(sys.argv[1:]):
        trained = ", or a trained run with --workdir=FOLDER" if of_workdir else ""
        fail(f"no config is named; give one with --config=FILE (configs/){trained}.")
    if workdir is None or named is not None:
        config = config_flags.DEFINE_config_file(
            "config", None, "Python file with get_config; see configs/."
        )
        flags.mark_flag_as_required("config")
    else:
        try:
            config = config_flags.DEFINE_config_dict("config", _saved(workdir))
        except DiffUpError as error:
            fail(str(error))
    programs.keep()

    def guarded(_: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # orbax tells every file it writes
        try:
            main(config.value)
        except DiffUpError as error:
            fail(str(error))

    app.run(guarded, flags_parser=_parse)


def _saved(workdir: str) -> ConfigDict:
    """The config of the newest checkpoint of a run."""
    step = checkpoint.latest_step(workdir)
    if step is None:
        raise DiffUpError(
            f"no checkpoint in {workdir!r}; expected a folder that train.py wrote, or "
            "--config=FILE beside it. Train first, or score the training-free prior "
            "with --config=FILE --config.method=prior."
        )
    run = checkpoint.saved_run(workdir, step)
    return ConfigDict(configs.values(configs.from_config(run["config"])))


def _asks_for_help(arguments: Sequence[str]) -> bool:
    return any(argument.startswith(("--help", "-help", "-?")) for argument in arguments)


def _value(arguments: Sequence[str], flag: str) -> str | None:
    """The value of a flag before flags are parsed; None without it."""
    for place, argument in enumerate(arguments):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == flag:
            return value if equals else next(iter(arguments[place + 1 :]), None)
    return None


def fail(message: str) -> None:
    """Prints one error and exits with status 2."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)


def _parse(arguments: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(arguments)
        flags.FLAGS.config.keys()  # a config that cannot be loaded raises here
    except flags.Error as error:
        fail(_last_line(str(error)))
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections raises these for unknown keys and files that do not load.
        fail(_config_error(str(error), arguments))
    if len(rest) > 1:
        fail(f"unexpected arguments {rest[1:]}; flags start with --")
    return rest


def _config_error(text: str, arguments: list[str]) -> str:
    """ml_collections' words with the flag they are about."""
    text = " ".join(text.replace("\\'", "'").replace("\\n", " ").split()).strip("'\"")
    unknown = re.match(r"'?(\w+)'?\s*(Did you mean.*)?$", text)
    if unknown:
        key, hint = unknown.groups()
        flag = re.compile(rf"^--config\.(.*\.)?{key}(=|\.|$)")
        named = [argument for argument in arguments if flag.search(argument)]
        if named:
            return f"unknown config key in {named[0]!r}. {hint or _KNOWN}"
    return f"the config cannot be used: {text}"


_KNOWN = "`diffup config` lists every key."


def _last_line(text: str) -> str:
    """A traceback inside a flag's error shortened to its first and last line."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
