"""What every plain vision transformer promises, over all variants of three families."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from diffup_jax import weights
from diffup_jax.backbones import dinov2, dinov3, transformer, vit
from diffup_jax.types import DiffUpError

NAMES = [(f, name) for f in (vit, dinov2, dinov3) for name in f.VARIANTS]
SMALL = {
    family: family.VARIANTS[name]._replace(
        patch=8, width=24, depth=2, heads=3, hidden=40, positions=side
    )
    for family, name, side in (
        (vit, "vit_s16", 3),
        (dinov2, "dinov2_g14_reg", 3),
        (dinov3, "dinov3_s16", 0),
    )
}


@functools.cache
def _shapes(family, name):
    """Parameters and answer of a full-size variant for 2 images of 3 x 5 patches."""
    recipe = family.recipe(name, dtype=jnp.float32)
    size = (3 * recipe.multiple_of, 5 * recipe.multiple_of)
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)

    init = recipe.module.init_with_output
    answer, params = jax.eval_shape(init, jax.random.key(0), images)
    return recipe, params, answer


def _random(family, dtype=jnp.float32):
    """A tiny module and parameters none of which is at its default."""
    module = family.recipe_of(SMALL[family], dtype=dtype).module
    image = jax.ShapeDtypeStruct((1, 24, 24, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)
    generator = np.random.default_rng(0)
    params = weights.random(shapes, seed=0)
    return module, jax.tree.map(
        lambda x: x + generator.normal(0, 0.2, x.shape).astype("float32"), params
    )


def _images(*size: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(*size, 3)).astype("float32")


@pytest.mark.parametrize(("family", "name"), NAMES)
def test_levels_are_what_was_announced(family, name):
    recipe, _, answer = _shapes(family, name)
    variant = family.VARIANTS[name]
    assert [level.name for level in recipe.levels] == [
        f"block{j}" for j in range(variant.depth)
    ]
    assert answer.levels.keys() == {level.name for level in recipe.levels}
    for level in recipe.levels:
        assert level.stride == recipe.multiple_of == variant.patch
        assert answer.levels[level.name].shape == (2, 3, 5, level.channels)
    assert answer.last.shape == (2, 3, 5, variant.width)
    assert answer.joint is None
    assert recipe.hub and recipe.licence
    assert recipe.text is None


@pytest.mark.parametrize(("family", "name"), NAMES)
def test_every_layout_fills_every_parameter_once(family, name):
    recipe, params, _ = _shapes(family, name)
    wanted = flatten_dict(params, sep="/").keys()
    for table in recipe.tables:
        targets = [row.target for row in table.rows]
        assert len(targets) == len(set(targets))
        assert set(targets) == wanted
        # A source may feed several targets, each with a piece of its own.
        assert len({(r.source, str(r.transform)) for r in table.rows}) == len(targets)


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [
        (12, (5, 7, 9, 11)),
        (24, (11, 15, 19, 23)),
        (40, (19, 26, 33, 39)),
        (2, (0, 1)),
        (1, (0,)),
    ],
)
def test_prior_levels_are_at_half_two_thirds_five_sixths_and_the_end(depth, blocks):
    variant = SMALL[vit]._replace(depth=depth)
    recipe = vit.recipe_of(variant, dtype=jnp.float32)
    assert recipe.prior_levels == tuple(f"block{j}" for j in blocks)


@pytest.mark.parametrize("family", SMALL)
def test_bfloat16_is_close_and_keeps_parameters_in_float32(family):
    module, params = _random(family)
    half, _ = _random(family, jnp.bfloat16)
    images = _images(2, 24, 40)
    image = jax.ShapeDtypeStruct(images.shape, jnp.float32)
    own = jax.eval_shape(half.init, jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(own)} == {jnp.dtype("float32")}
    want, got = (jax.jit(m.apply)(params, images) for m in (module, half))
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        assert b.dtype == jnp.bfloat16
        error = np.abs(a - b.astype(jnp.float32)).max() / np.abs(a).max()
        assert error < 0.05


@pytest.mark.parametrize("family", SMALL)
def test_an_answer_does_not_depend_on_the_rest_of_the_batch(family):
    module, params = _random(family)
    first, second = _images(2, 24, 40), _images(2, 24, 40)
    second[1] = 0
    one, two = (jax.jit(module.apply)(params, x).last for x in (first, second))
    np.testing.assert_array_equal(one[0], two[0])
    assert np.abs(one[1] - two[1]).max() > 0.1


@pytest.mark.parametrize("family", SMALL)
def test_positions_tell_patches_apart(family):
    """A blank image has equal patches, so only positions can make cells differ."""
    module, params = _random(family)
    last = jax.jit(module.apply)(params, np.ones((1, 24, 40, 3), "float32")).last
    cells = np.asarray(last).reshape(15, -1)
    apart = np.abs(cells[:, None] - cells[None]).max(-1) + np.eye(15)
    assert apart.min() > 1e-4


@pytest.mark.parametrize("size", [(24, 41), (30, 24)])
def test_a_size_that_does_not_fit_is_named(size):
    module, params = _random(vit)
    with pytest.raises(DiffUpError, match=rf"{size[0]} x {size[1]}.*multiples of 8"):
        jax.eval_shape(module.apply, params, _images(1, *size))


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("old", "new"), [(5, 5), (5, 12), (12, 5), (37, 27), (3, 4)])
def test_resizing_keeps_constants_and_mirrors(old, new, antialias):
    matrix = transformer.cubic_weights(old, new, antialias=antialias)
    assert matrix.shape == (new, old)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-12)
    if old == new:
        np.testing.assert_allclose(matrix, np.eye(old), atol=1e-12)


@pytest.mark.parametrize("grid", [(9, 4), (4, 9), (20, 21)])
def test_antialiased_resizing_is_that_of_jax(grid):
    table = np.random.default_rng(2).normal(size=(7, 8, 3)).astype("float32")
    got = transformer.resize_positions(jnp.asarray(table), grid, antialias=True)
    want = jax.image.resize(table, (*grid, 3), "cubic", antialias=True)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_plain_resizing_has_the_kernel_with_minus_three_quarters():
    """At a quarter of a cell; the border cell stands for those beyond it."""
    taps = [-0.10546875, 0.87890625, 0.26171875, -0.03515625]
    matrix = transformer.cubic_weights(6, 12, antialias=False)
    np.testing.assert_allclose(matrix[5], [0, *taps, 0], atol=1e-12)
    np.testing.assert_allclose(matrix[1], [sum(taps[:2]), *taps[2:], 0, 0, 0])
    # Shrinking without antialias still looks at four cells only.
    sparse = transformer.cubic_weights(30, 6, antialias=False)
    assert (np.count_nonzero(sparse, axis=1) <= 4).all()


def test_rotary_products_depend_on_the_offset_only():
    """Turned by place a and b, two vectors have a product that a - b decides."""
    grid, size = (4, 6), 16
    cosines, sines = transformer.rotary(grid, prefix=3, size=size, base=100.0)
    assert cosines.shape == sines.shape == (3 + 24, size)
    generator = np.random.default_rng(3)
    query, key = generator.normal(size=(2, size))

    def turned(x, place):
        row = 3 + place[0] * grid[1] + place[1]
        swapped = np.concatenate([-x[size // 2 :], x[: size // 2]])
        return x * cosines[row] + swapped * sines[row]

    def product(a, b):
        return turned(query, a) @ turned(key, b)

    base = product((0, 1), (2, 2))
    for shift in ((1, 0), (1, 3), (0, 2)):
        moved = [(y + shift[0], x + shift[1]) for y, x in ((0, 1), (2, 2))]
        np.testing.assert_allclose(product(*moved), base, atol=1e-5)
    assert abs(product((0, 1), (2, 3)) - base) > 1e-3
    assert abs(product((0, 1), (3, 2)) - base) > 1e-3


def test_rotary_spans_the_image_whatever_its_size_and_leaves_the_prefix():
    cosines, sines = transformer.rotary((3, 5), prefix=2, size=8, base=100.0)
    for tokens in ([0, 1], [2 + 7]):  # cls and a register; the middle of the image
        np.testing.assert_array_equal(cosines[tokens], 1)
        np.testing.assert_allclose(sines[tokens], 0, atol=1e-6)
    # Three times as fine, every middle cell is where the coarse cell was.
    fine = transformer.rotary((9, 15), prefix=0, size=8, base=100.0)[1]
    fine = fine.reshape(9, 15, 8)[1::3, 1::3].reshape(-1, 8)
    np.testing.assert_allclose(sines[2:], fine, atol=1e-6)


def test_configs_without_a_form_here_are_refused():
    base = {"model_type": "vit", "hidden_size": 24, "num_attention_heads": 3}
    for change, named in (
        ({"num_channels": 1}, "num_channels 1"),
        ({"hidden_act": "mish"}, "mish.*quick_gelu"),
        ({"patch_size": [16, 8]}, r"patch_size \[16, 8\].*square"),
        ({"num_attention_heads": 5}, "hidden_size 24 for 5 heads"),
    ):
        with pytest.raises(DiffUpError, match=named):
            vit.from_config(base | change)
    with pytest.raises(DiffUpError, match="times 4"):
        dinov3.from_config(base | {"model_type": "dinov3_vit", "hidden_size": 18})
