"""F0: how a section of a config is declared, read and compared. No jax import.

A section is a frozen struct in the file it configures: every field has its type, its
range, its default and its role there, once.

    class TrainSettings(Section):
        steps: Annotated[int, AtLeast(1)] = 60_000
        log_every: Annotated[int, AtLeast(1), FREE] = 50

A field's role says what depends on it. A run that is continued must have every value it
was begun with but the FREE ones; what a prior cache keeps depends on those that are
KEPT; evaluation must have those of the MODEL too, whose parameters mean something else
with another value.
"""

from __future__ import annotations

import difflib
import enum
import json
import operator
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec


class Role(enum.Flag):
    """What depends on a field; see above. RUN is the default."""

    FREE = 0
    RUN = 1
    KEPT = 2
    MODEL = 4


FREE = Role.FREE
KEPT = Role.RUN | Role.KEPT
MODEL = Role.RUN | Role.MODEL


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of every section. `problems` may add what no single field can say."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """(name of a field, what was expected) of values that do not go together."""
        return iter(())


def AtLeast(least: int | float) -> msgspec.Meta:
    """A number of at least `least`."""
    return msgspec.Meta(ge=least)


def Above(least: int | float) -> msgspec.Meta:
    """A number above `least`."""
    return msgspec.Meta(gt=least)


def Within(least: int | float, most: int | float) -> msgspec.Meta:
    """A number from `least` to `most`, both allowed."""
    return msgspec.Meta(ge=least, le=most)


class OneOf:
    """A word of a list that is data elsewhere."""

    def __init__(self, *words: str):
        self.words = words


def read(kind: type, values: Any, name: str, problems: list[str]) -> Any:
    """An instance of the section `kind`, None if there were problems.

    values: a mapping, or anything with `items` (a ConfigDict). Every problem is added
    to `problems` as one sentence that begins with its full name, `name`.field.
    """
    before = len(problems)
    hints = typing.get_type_hints(kind, include_extras=True)
    given = dict(values.items())
    for key in sorted(given.keys() - hints.keys()):
        close = difflib.get_close_matches(key, hints, n=1)
        hint = f"did you mean {name}.{close[0]}?" if close else f"known: {list(hints)}"
        problems.append(f"{name}.{key}: unknown key; {hint}")
    fields = {
        key: _field(given[key], hint, f"{name}.{key}", problems)
        for key, hint in hints.items()
        if key in given
    }
    if len(problems) > before:
        return None
    found = kind(**fields)
    for key, expected in found.problems():
        value = operator.attrgetter(key)(found)
        problems.append(f"{name}.{key}: got {value!r}, expected {expected}")
    return None if len(problems) > before else found


def plain(section: Section) -> dict[str, Any]:
    """A section as JSON values: every field by name, tuples as lists."""
    return _json(section)


def flat(tree: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    found = {}
    for key, value in tree.items():
        full = f"{name}.{key}" if name else key
        found |= flat(value, full) if isinstance(value, Mapping) else {full: value}
    return found


def fields_with(section: Section, role: Role, name: str = "") -> dict[str, Any]:
    """Full name -> JSON value of every field that has all of `role`."""
    found = {}
    for key, hint in typing.get_type_hints(type(section), include_extras=True).items():
        value, full = getattr(section, key), f"{name}.{key}" if name else key
        if isinstance(value, Section):
            found |= fields_with(value, role, full)
        elif isinstance(value, dict) and role in role_of(hint):
            for word, part in value.items():
                found |= fields_with(part, role, f"{full}.{word}")
        elif role in role_of(hint):
            found[full] = _json(value)
    return found


def lines(section: Section, name: str) -> Iterator[tuple[str, str, str]]:
    """(full name, its value, what it may be) of every field of a section."""
    for key, hint in typing.get_type_hints(type(section), include_extras=True).items():
        value, full = getattr(section, key), f"{name}.{key}"
        if isinstance(value, Section):
            yield from lines(value, full)
        else:
            yield full, json.dumps(_json(value)), _may_be(hint)


def _may_be(hint: Any) -> str:
    """A type with its range, in words."""
    marks = getattr(hint, "__metadata__", ())
    bare = typing.get_args(hint)[0] if marks else hint
    if typing.get_origin(bare) is typing.Literal:
        return " or ".join(typing.get_args(bare))
    words = [word for mark in marks if isinstance(mark, OneOf) for word in mark.words]
    if words:
        return ", ".join(words)
    args = typing.get_args(bare)
    if typing.get_origin(bare) is dict:
        return "sections by name"
    if args:
        most = "" if args[-1] is ... else f" ({len(args)})"
        return f"several{most}: {_may_be(args[0])}"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{sign} {getattr(mark, bound)}"
        for mark in marks
        if isinstance(mark, msgspec.Meta)
        for bound, sign in signs.items()
        if getattr(mark, bound) is not None
    ]
    return " ".join([bare.__name__, *bounds])


def role_of(hint: Any) -> Role:
    """The role that an annotation states."""
    stated = [x for x in getattr(hint, "__metadata__", ()) if isinstance(x, Role)]
    return stated[0] if stated else Role.RUN


def _json(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def _field(value: Any, hint: Any, where: str, problems: list[str]) -> Any:
    annotated = typing.get_origin(hint) is typing.Annotated
    bare = typing.get_args(hint)[0] if annotated else hint
    if typing.get_origin(bare) is dict:
        return _named(value, typing.get_args(bare)[1], where, problems)
    if isinstance(bare, type) and issubclass(bare, Section):
        if not hasattr(value, "items"):  # a ConfigDict is no Mapping
            problems.append(f"{where}: expected a section, got {value!r}")
            return None
        return read(bare, value, where, problems)
    if isinstance(bare, types.GenericAlias):
        value = _listed(value, typing.get_args(bare)[0])
    try:
        found = msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        expected = str(error).split(" - at")[0].split(", got")[0].replace("`", "")
        if typing.get_origin(bare) is typing.Literal:
            expected = f"one of {', '.join(map(repr, typing.get_args(bare)))}"
        expected = expected.removeprefix("Expected ").replace("array", "values")
        problems.append(f"{where}: got {value!r}, expected {expected}")
        return None
    for marker in getattr(hint, "__metadata__", ()):
        if isinstance(marker, OneOf):
            words = found if isinstance(found, tuple) else (found,)
            if not set(words) <= set(marker.words):
                known = ", ".join(marker.words)
                problems.append(f"{where}: got {value!r}, expected some of {known}")
    return found


def _named(value: Any, kind: type, where: str, problems: list[str]) -> dict[str, Any]:
    """Sections of one kind, each under a name of the user's choice."""
    found = {}
    if not hasattr(value, "items"):
        problems.append(f"{where}: expected sections by name, got {value!r}")
        return found
    for key, part in value.items():
        found[key] = _field(part, kind, f"{where}.{key}", problems)
    return found


def _listed(value: Any, inner: Any) -> Any:
    """What a command line gives for a tuple, as a tuple: "mask,box" is two words."""
    if not isinstance(value, list | tuple):
        value = (value,)
    base = typing.get_args(inner)[0] if typing.get_args(inner) else inner
    if base is str and all(isinstance(item, str) for item in value):
        parts = (part.strip() for item in value for part in item.split(","))
        value = tuple(part for part in parts if part)
    return value
