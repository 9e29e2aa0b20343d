"""How sections are declared and read, on small ones; and that every field has a role.

Messages are laws here: a user sees nothing else of a config that cannot be used.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
import pytest
from ml_collections import ConfigDict
from msgspec import Meta

from diffup_jax import config, methods, sections
from diffup_jax.sections import (
    FREE,
    KEPT,
    MODEL,
    Above,
    AtLeast,
    OneOf,
    Role,
    Section,
    Within,
)


class Inner(Section):
    size: Annotated[Literal["S", "B"], MODEL] = "S"
    share: Annotated[float, Within(0, 1)] = 0.5

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.size == "B" and self.share < 0.2:
            yield "share", "at least 0.2 with size B"


class Outer(Section):
    steps: Annotated[int, AtLeast(1)] = 10
    rate: Annotated[float, Above(0), FREE] = 0.1
    words: Annotated[tuple[str, ...], Meta(min_length=1), OneOf("a", "b"), KEPT] = (
        "a",
    )
    pair: Annotated[tuple[float, float], KEPT] = (0.5, 1.0)
    loud: Annotated[bool, FREE] = False
    inner: Inner = Inner()
    more: dict[str, Inner] = {}


def read(values) -> tuple[Outer | None, list[str]]:
    problems: list[str] = []
    return sections.read(Outer, values, "config", problems), problems


def test_what_is_left_out_has_its_default():
    found, problems = read({"steps": 3, "inner": {"share": 1}})
    assert found == Outer(steps=3, inner=Inner(share=1.0)) and not problems
    assert type(found.inner.share) is float


@pytest.mark.parametrize("words", ["a,b", ("a, b",), ["a", "b"], ("a", "b")])
def test_words_of_a_command_line_are_a_tuple(words):
    """`--config.words=a,b` arrives as one word, and `--config.pair` as a tuple."""
    for values in ({"words": words}, ConfigDict({"words": words})):
        found, problems = read(values)
        assert found.words == ("a", "b") and not problems


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"steps": "many"}, "config.steps: got 'many', expected int"),
        ({"steps": True}, "config.steps: got True, expected int"),
        ({"steps": 2.5}, "config.steps: got 2.5, expected int"),
        ({"steps": 0}, "config.steps: got 0, expected int >= 1"),
        ({"rate": "1e-3"}, "config.rate: got '1e-3', expected float"),
        ({"rate": 0.0}, "config.rate: got 0.0, expected float > 0"),
        ({"rate": float("nan")}, "config.rate: got nan, expected float > 0"),
        ({"loud": 1}, "config.loud: got 1, expected bool"),
        ({"words": ()}, "config.words: got (), expected values of length >= 1"),
        ({"words": ("a", "c")}, "config.words: got ('a', 'c'), expected some of a, b"),
        ({"pair": (0.5,)}, "config.pair: got (0.5,), expected values of length 2"),
        ({"inner": 3}, "config.inner: expected a section, got 3"),
        ({"inner": {"share": 2}}, "config.inner.share: got 2, expected float <= 1.0"),
        (
            {"inner": {"size": "L"}},
            "config.inner.size: got 'L', expected one of 'S', 'B'",
        ),
        (
            {"inner": {"size": "B", "share": 0.1}},
            "config.inner.share: got 0.1, expected at least 0.2 with size B",
        ),
        ({"more": 3}, "config.more: expected sections by name, got 3"),
        ({"more": {"x": 3}}, "config.more.x: expected a section, got 3"),
        (
            {"more": {"x": {"sizes": "S"}}},
            "config.more.x.sizes: unknown key; did you mean config.more.x.size?",
        ),
        ({"stepz": 1}, "config.stepz: unknown key; did you mean config.steps?"),
        ({"xyz": 1}, "config.xyz: unknown key; known: ['steps', 'rate', 'words', "),
    ],
)
def test_a_value_that_cannot_be_is_told_by_its_full_name(values, told):
    found, problems = read(values)
    assert found is None and len(problems) == 1
    assert problems[0].startswith(told)


def test_every_problem_is_told_at_once():
    _, problems = read({"steps": 0, "loud": 2, "inner": {"share": 3}, "words": "c"})
    assert [text.split(":")[0] for text in problems] == [
        "config.steps",
        "config.words",
        "config.loud",
        "config.inner.share",
    ]


def test_fields_are_chosen_by_their_role():
    section = Outer(more={"x": Inner(share=0.25)})
    assert sections.fields_with(section, KEPT) == {"words": ["a"], "pair": [0.5, 1.0]}
    # What is in sections by name has at most the role of their field.
    assert sections.fields_with(section, MODEL) == {"inner.size": "S"}
    assert sections.fields_with(section, Role.RUN) == {
        "steps": 10,
        "words": ["a"],
        "pair": [0.5, 1.0],
        "inner.size": "S",
        "inner.share": 0.5,
        "more.x.size": "S",
        "more.x.share": 0.25,
    }


def test_plain_and_flat_are_json_values():
    plain = sections.plain(Outer())
    assert plain["words"] == ["a"] and plain["inner"] == {"size": "S", "share": 0.5}
    assert sections.flat(plain)["inner.share"] == 0.5
    assert sections.flat({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}


def every_section() -> dict[str, type[Section]]:
    """Every section class that a config may hold, by its name."""
    found: dict[str, type[Section]] = {}

    def walk(kind):
        found[kind.__name__] = kind
        for hint in typing.get_type_hints(kind).values():
            for part in (hint, *typing.get_args(hint)):
                if isinstance(part, type) and issubclass(part, Section):
                    walk(part)

    for name in methods.names():
        walk(config.settings_type(name))
    return found


def test_every_field_of_every_section_has_a_default_and_a_known_role():
    found = every_section()
    assert {"TrainSettings", "DataSettings", "Augment", "PriorSettings"} < found.keys()
    for name, kind in found.items():
        kind()  # raises where a default is missing
        defaults = [field for field in msgspec.structs.fields(kind) if field.required]
        assert not defaults, name
        for field, hint in typing.get_type_hints(kind, include_extras=True).items():
            stated = [x for x in getattr(hint, "__metadata__", ()) if type(x) is Role]
            assert len(stated) <= 1, f"{name}.{field}"
            role = sections.role_of(hint)
            # A cache or a model that depends on a field is of one run; but files move.
            if Role.MODEL in role:
                assert Role.RUN in role, f"{name}.{field}"


def test_every_default_is_within_its_own_range():
    for kind in every_section().values():
        problems: list[str] = []
        values = msgspec.structs.asdict(kind())
        plain = {k: v for k, v in values.items() if not isinstance(v, Section)}
        assert sections.read(kind, plain, "config", problems) == kind()
        assert not problems
