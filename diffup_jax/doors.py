"""F6: from a command line to one function call, and from an error to one message.

`--config FILE[:ARGUMENT]` is a Python file with `get_config`; any of its values can be
set with `--config.a.b=value`. A DiffUpError or a wrong flag is printed as one message
and the process exits with status 2.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from diffup_jax.types import DiffUpError


def run(main: Callable[[Any], None]) -> None:
    """Parses `--config` and the caller's flags and calls `main(config)`.

    Flags are defined by the caller before. Compiled programs are kept between runs in
    JAX_COMPILATION_CACHE_DIR (default: .cache/jax in the working folder).
    """
    config = config_flags.DEFINE_config_file(
        "config", None, "Python file with get_config; see configs/."
    )
    flags.mark_flag_as_required("config")
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.abspath(".cache/jax"))
    jax.config.update("jax_compilation_cache_dir", cache)
    # A bounded cache is a locked cache: two runs never read a half-written entry.
    jax.config.update("jax_compilation_cache_max_size", 2 << 30)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

    def guarded(_: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # orbax tells every file it writes
        try:
            main(config.value)
        except DiffUpError as error:
            fail(str(error))

    app.run(guarded, flags_parser=_parse)


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


_KNOWN = "configs/common.py lists every key."


def _last_line(text: str) -> str:
    """A traceback inside a flag's error shortened to its first and last line."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
