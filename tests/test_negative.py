"""Negative examples: what is not the class lowers the mean where it is seen again."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

from diffup_jax.methods import prior
from diffup_jax.methods.prior.options import TextSettings
from tests import toy
from tests.episodes_made import changed, episode_of, rows_at, shots_at
from tests.test_baft import GRID, episode, make
from tests.test_operators import TAU, unit
from tests.toy import METHOD, PARAMS, cells

PINK = (0.9, 0.1, 0.5)
RED = (0.9, 0.1, 0.1)
BLUE = (0.1, 0.1, 0.9)


def with_negatives(case, shots, *, region=False):
    """The case with these shots negative: everywhere, or in one corner."""
    shots = jnp.asarray(shots)
    here = jnp.zeros_like(case["bg"][:, :, shots])
    here = here.at[..., :12, :8].set(1) if region else here + 1
    return {
        **case,
        "fg": case["fg"].at[:, :, shots].set(0),
        "bg": case["bg"].at[:, :, shots].set(here),
    }


def slow_rejected(case, shows, negative, *, alike=None):
    """Equation (7), level by level and cell by cell; alike: m+ without a shot."""
    levels = []
    for query, support in zip(case["query"], case["support"], strict=True):
        b, p, q, _ = query.shape
        found = np.zeros((b, p, q))
        for i in range(b):
            middle = np.asarray(query[i]).mean(axis=(0, 1))
            own, others = (unit(np.asarray(x) - middle) for x in (query[i], support[i]))
            fg, bg = (
                np.asarray(case[x][i, 0]).reshape(-1, p, 24 // p, q, 24 // q)
                for x in ("fg", "bg")
            )
            fg, bg = fg.mean((2, 4)), bg.mean((2, 4))
            mine = [others[0, k][fg[k] >= fg[k].max() / 2] for k in shows]
            not_mine = np.concatenate([others[0, k][bg[k] > 0] for k in negative])
            for y, x in np.ndindex(p, q):
                like = alike
                if mine:
                    like = (np.concatenate(mine) @ own[y, x]).max()
                unlike = (not_mine @ own[y, x]).max()
                found[i, y, x] = max(np.tanh((unlike - like) / (2 * TAU)), 0)
        levels.append(jax.image.resize(found, (b, *GRID), "linear"))
    return np.mean(levels, axis=0)


@pytest.mark.parametrize("region", [False, True])
@pytest.mark.parametrize("shows", [[0, 1, 2], [1], []])
def test_what_is_rejected_is_its_equation(shows, region):
    negative = [k for k in range(4) if k not in shows]
    case = with_negatives(episode(4), negative, region=region)
    got = np.asarray(make(case).rejected)[:, 0]
    expected = slow_rejected(case, shows, negative, alike=0.5)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert got.max() > 0.1 and got.min() >= 0 and got.max() <= 1


@pytest.mark.parametrize("k", [3, 7])
def test_a_negative_example_is_no_shot(k):
    """All else is what it would be if it were padding."""
    case = with_negatives(episode(k), [k - 1])
    told = make(case)
    without = make(case, valid=case["valid"].at[:, :, k - 1].set(False))
    for name in ("maps", "valid", "reliability", "share"):
        np.testing.assert_array_equal(getattr(told, name), getattr(without, name))
    assert not bool(told.valid[..., k - 1].any())
    assert float(told.rejected.max()) > 0 and not without.rejected.any()


def picture_of(*colours, seed=0):
    return toy.picture(np.random.default_rng(seed), *colours)


def shown(b=1, *, unlike=PINK):
    """Red and pink in the query; shots: a red one, and one of pink that is negative."""
    (query, masks), (image, mask) = picture_of(RED, unlike), picture_of(RED, seed=1)
    other, spot = picture_of(unlike, seed=2)
    images, fg = np.stack([image, other]), np.stack([mask[0], 0 * mask[0]])
    bg = np.stack([1 - mask[0], spot[0]])
    repeat = lambda x, *axes: np.broadcast_to(x, (b, *axes, *x.shape))  # noqa: E731
    case = episode_of(
        repeat(query), repeat(masks[:1]), repeat(images, 1), repeat(fg, 1),
        bg=repeat(bg, 1),
    )  # fmt: skip
    return case, [cells(mask) for mask in masks]


@functools.partial(jax.jit, static_argnames="method")
def memory_and_mean(case, method=METHOD):
    memory = method.encode(PARAMS, case.support)
    priors, _ = method.priors(PARAMS, case.query.image, memory)
    return memory, method.fuse(priors, memory.floor)


def padded(case, shot=1):
    return changed(case, valid=case.support.valid.at[:, :, shot].set(False))


def test_the_mean_falls_where_the_query_looks_like_the_negative():
    case, (red, pink) = shown()
    memory, fused = memory_and_mean(case)
    bare, plain = memory_and_mean(padded(case))
    mean, before = (np.asarray(x.mean[0, 0]) for x in (fused, plain))
    assert (mean <= before).all()
    assert before[pink].min() > 0.9 and mean[pink].max() < 0.2
    np.testing.assert_array_equal(mean[red], before[red])
    np.testing.assert_array_equal(fused.variance, plain.variance)
    # It counts as no shot.
    for name in ("extent", "floor", "text_valid"):
        np.testing.assert_array_equal(getattr(memory, name), getattr(bare, name))
    for name in ("share", "reliability", "shows"):
        np.testing.assert_array_equal(
            getattr(memory.examples, name), getattr(bare.examples, name)
        )
    assert memory.examples.negative.tolist() == [[[False, True]]]


def test_a_negative_of_the_rest_of_the_picture_rejects_no_class():
    """Noise all over: what is red is more like the class."""
    case, (red, _) = shown()
    image, _ = picture_of(seed=3)
    case = changed(
        case,
        images=case.support.images.at[:, :, 1].set(image),
        bg=case.support.bg.at[:, :, 1].set(1.0),
    )
    mean, before = (
        np.asarray(memory_and_mean(x)[1].mean[0, 0]) for x in (case, padded(case))
    )
    np.testing.assert_array_equal(mean[red], before[red])
    assert (mean <= before).all() and mean[~red].mean() < before[~red].mean()


@pytest.mark.parametrize("what", ["padding", "says nothing"])
def test_what_is_no_negative_changes_no_bit(what):
    case, _ = shown()
    if what == "padding":
        idle = padded(case)
    else:
        idle = changed(case, bg=case.support.bg.at[:, :, 1].set(0))
    other = changed(idle, images=idle.support.images.at[:, :, 1].set(0.7))
    alone = memory_and_mean(shots_at(case, [0]))[1]
    for got, same, one in zip(
        memory_and_mean(idle)[1], memory_and_mean(other)[1], alone, strict=True
    ):
        np.testing.assert_array_equal(got, same)
        np.testing.assert_allclose(got, one, atol=1e-6)


def test_another_episode_of_the_batch_may_have_one():
    case, _ = shown(b=2)
    one = changed(case, valid=case.support.valid.at[0, :, 1].set(False))
    mixed, none = memory_and_mean(one)[1].mean, memory_and_mean(padded(case))[1].mean
    np.testing.assert_array_equal(mixed[0], none[0])
    assert float((none[1] - mixed[1]).max()) > 0.3
    alone = memory_and_mean(rows_at(case, [1]))[1].mean
    np.testing.assert_allclose(mixed[1:], alone, atol=1e-6)


def test_text_alone_and_a_negative():
    """What is asked for is red or blue; it is shown that blue is not meant."""
    text = TextSettings(templates=("{name}",), backgrounds=("green",))
    method = prior.Prior(
        toy.backbone(), msgspec.structs.replace(toy.settings(), text=text)
    )
    case, (red, blue) = shown(unlike=BLUE)
    case = shots_at(case, [1])
    words = jnp.asarray(method.embed_text(["red blue"]))[None]
    case = changed(case, text=words, text_valid=jnp.ones((1, 1), bool))
    memory, fused = memory_and_mean(case, method)
    _, plain = memory_and_mean(padded(case, 0), method)
    mean, before = (np.asarray(x.mean[0, 0]) for x in (fused, plain))
    assert (mean <= before).all()
    assert before[blue].min() > 0.8 and mean[blue].max() < 0.05
    np.testing.assert_array_equal(mean[red], before[red])
    assert mean[red].min() > 0.8
    np.testing.assert_array_equal(memory.extent, 0)
    assert float(memory.floor[0, 0]) == pytest.approx(0.03)  # that of text
