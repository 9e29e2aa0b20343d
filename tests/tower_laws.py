"""What the tests of CLIP, its residual networks and SigLIP share: values and laws."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from diffup_jax import weights


def image_shapes(recipe):
    size = (1, 2 * recipe.multiple_of, 3 * recipe.multiple_of, 3)
    image = jax.ShapeDtypeStruct(size, jnp.float32)
    return jax.eval_shape(recipe.module.init, jax.random.key(0), image)


def text_shapes(text):
    ids = jax.ShapeDtypeStruct((1, text.context_length), jnp.int32)
    return jax.eval_shape(text.module.init, jax.random.key(0), ids)


def filled(shapes, *, seed):
    """Values with which nothing is neutral: no zero bias, no unit scale."""
    generator = np.random.default_rng(seed)
    made = {}
    for path, like in sorted(flatten_dict(shapes, sep="/").items()):
        values = generator.normal(size=like.shape).astype(np.float32)
        leaf = path.rpartition("/")[2]
        if leaf == "kernel":
            values /= np.sqrt(np.prod(like.shape[:-1]))
        elif leaf in ("scale", "var"):
            values = 1 + 0.2 * np.tanh(values)
        elif leaf not in ("embedding", "class_token", "probe"):
            values *= 0.3
        made[path] = values
    return unflatten_dict(made, sep="/")


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def run(module, params, *args, method=None):
    """The module compiled as a whole: op by op, every op is compiled alone."""
    return module.apply(params, *args, method=method)


def assert_answers_its_levels(recipe, shapes):
    """Names, grids and channels as announced; joint has the text tower's length."""
    m = recipe.multiple_of
    image = jax.ShapeDtypeStruct((2, 3 * m, 2 * m, 3), jnp.float32)
    answer = jax.eval_shape(recipe.module.apply, shapes, image)
    assert answer.levels.keys() == {level.name for level in recipe.levels}
    assert len(answer.levels) == len(recipe.levels)
    for level in recipe.levels:
        grid = (3 * m // level.stride, 2 * m // level.stride)
        assert answer.levels[level.name].shape == (2, *grid, level.channels)
    assert answer.last.shape == answer.levels[recipe.levels[-1].name].shape
    known = [level.name for level in recipe.levels]
    assert [n for n in known if n in recipe.prior_levels] == list(recipe.prior_levels)
    embed = functools.partial(recipe.module.apply, method="embed")
    one = jax.eval_shape(embed, shapes, image)
    text = recipe.text
    ids = jax.ShapeDtypeStruct((5, text.context_length), jnp.int32)
    texts = jax.eval_shape(text.module.apply, text_shapes(text), ids)
    d = one.shape[-1]
    assert one.shape == (2, d)
    assert texts.shape == (5, d)
    assert answer.joint.shape == (*answer.last.shape[:3], d)
    assert {one.dtype, texts.dtype, answer.joint.dtype} == {jnp.dtype(jnp.float32)}


def assert_books_balance(recipe, shapes):
    """Every table fills its tower once, and ignores exactly the other tower."""
    text = recipe.text
    pairs = [(recipe.tables, shapes), (text.tables, text_shapes(text))]
    for tables, targets in pairs:
        for table in tables:
            filled_paths = [row.target for row in table.rows]
            assert sorted(filled_paths) == sorted(flatten_dict(targets, sep="/"))
    by_layout = {table.layout: table for table in text.tables}
    assert by_layout.keys() == {table.layout for table in recipe.tables}
    for image_table in recipe.tables:
        text_table = by_layout[image_table.layout]
        for own, other in ((image_table, text_table), (text_table, image_table)):
            assert all(_ignored(own, row.source) for row in other.rows)
            assert not any(_ignored(own, row.source) for row in own.rows)


def _ignored(table, key):
    return any(re.fullmatch(pattern, key) for pattern in table.ignore)


def assert_bfloat16_is_close(recipe_of, variant):
    """Both towers: parameters stay float32, unit vectors point the same way."""
    wide, narrow = (recipe_of(variant, dtype=d) for d in (jnp.float32, jnp.bfloat16))
    params, text_params = (
        filled(s, seed=i)
        for i, s in enumerate((image_shapes(narrow), text_shapes(narrow.text)))
    )
    m = wide.multiple_of
    images = np.random.default_rng(2).normal(size=(2, 2 * m, m, 3)).astype(np.float32)
    ids = np.random.default_rng(3).integers(
        0, 30, (3, narrow.text.context_length), dtype=np.int32
    )
    assert {x.dtype for x in jax.tree.leaves(image_shapes(narrow))} == {
        jnp.dtype(jnp.float32)
    }

    (a, s), (b, t) = (
        (run(r.module, params, images), run(r.text.module, text_params, ids))
        for r in (wide, narrow)
    )
    assert b.last.dtype == jnp.bfloat16
    for exact, near in ((a.joint, b.joint), (s, t)):
        assert near.dtype == jnp.float32
        np.testing.assert_allclose((exact * near).sum(-1), 1, atol=2e-2)
        assert np.abs(exact - near).max() > 0


def convert(tables, source, *, target_shapes):
    """What `backbones.get` does with a file: choose the layout, convert."""
    table, _ = weights.best_table(tables, source, target_shapes=target_shapes)
    params = weights.convert(table, source, target_shapes=target_shapes, what="test")
    return table.layout, params
