"""What training does to priors: order and range stay, histograms do not."""

import jax
import jax.numpy as jnp
import numpy as np

from diffup_jax.methods.diffup.disturbance import Draws, disturb
from diffup_jax.methods.prior.baft import Priors

LEVELS, OPERATORS = 3, 4
SD = 0.3


def priors(b, values, *, texts=0):
    """The same values in every map of every episode."""
    row = jnp.asarray(values, jnp.float32)[None]
    kinds = (b, 1, LEVELS, OPERATORS, 1)
    return Priors(
        maps=jnp.broadcast_to(row, (*kinds, *row.shape)),
        valid=jnp.ones(kinds, bool),
        reliability=jnp.zeros(kinds),
        share=jnp.ones((b, 1, 1)),
        text_maps=jnp.broadcast_to(row, (b, 1, texts, *row.shape)),
        text_valid=jnp.ones((b, 1, texts), bool),
        text_reliability=jnp.zeros((b, 1, texts)),
        rejected=jnp.zeros((b, 1, *row.shape)),
    )


def disturbed(b, values, *, texts=0, dropout=0.0, log_gamma=SD):
    draws = Draws(jax.random.split(jax.random.key(0), b))
    after, keep = jax.jit(
        lambda x: disturb(x, draws, dropout=dropout, log_gamma=log_gamma)
    )(priors(b, values, texts=texts))
    return after, np.asarray(keep)


def log_gammas(maps):
    """Of P^gamma at P = 1/2, [b m]."""
    found = np.log(np.log(np.asarray(maps)[..., 0, 0]) / np.log(0.5))
    return found.reshape(len(found), -1)


def test_a_distortion_is_monotone_and_keeps_the_ends():
    values = np.linspace(0, 1, 11)
    maps = np.asarray(disturbed(8, values, texts=2)[0].maps)[..., 0, :]
    assert (np.diff(maps, axis=-1) > 0).all()
    np.testing.assert_array_equal(maps[..., 0], 0)
    np.testing.assert_allclose(maps[..., -1], 1, atol=1e-6)


def test_each_map_is_distorted_by_itself():
    after, _ = disturbed(500, [0.5, 1.0], texts=2)
    for maps in (after.maps, after.text_maps):
        found = log_gammas(maps)
        assert abs(found.mean()) < 0.03
        np.testing.assert_allclose(found.std(), SD, rtol=0.1)
        # No map tells what another's distortion is.
        apart = np.corrcoef(found[:, 0], found[:, 1])[0, 1]
        assert abs(apart) < 0.15


def test_without_distortion_nothing_changes():
    values = [0.0, 0.3, 1.0]
    after, keep = disturbed(2, values, texts=2, log_gamma=0.0)
    before = priors(2, values, texts=2)
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
    assert keep.all()


def test_pairs_are_left_out_but_never_all():
    _, keep = disturbed(2000, [0.5, 1.0], dropout=0.2)
    np.testing.assert_allclose(keep.mean(), 0.8, atol=0.02)
    _, keep = disturbed(200, [0.5, 1.0], dropout=1.0)
    np.testing.assert_array_equal(keep.sum(axis=(1, 2)), 1)


def test_an_episode_does_not_depend_on_its_batch():
    keys = jax.random.split(jax.random.key(4), 3)
    whole, kept = disturb(priors(3, [0.5, 1.0]), Draws(keys), dropout=0.5, log_gamma=SD)
    alone, only = disturb(
        priors(1, [0.5, 1.0]), Draws(keys[2:]), dropout=0.5, log_gamma=SD
    )
    np.testing.assert_allclose(whole.maps[2:], alone.maps, atol=1e-6)
    np.testing.assert_array_equal(kept[2:], only)


def test_text_is_left_out_as_visual_priors_are():
    """One of its operators always stays where there was text; none comes anew."""
    before = priors(400, [0.5, 1.0], texts=2)
    known = (jnp.arange(400) >= 100)[:, None, None]
    before = before._replace(text_valid=before.text_valid & known)
    draws = Draws(jax.random.split(jax.random.key(0), 400))
    after, _ = disturb(before, draws, dropout=0.2, log_gamma=SD)
    valid = np.asarray(after.text_valid)[:, 0]
    assert not valid[:100].any() and valid[100:].any(axis=1).all()
    # Of two, each left out in a fifth of the draws, but never both.
    np.testing.assert_allclose(valid[100:].mean(), 1 - 0.2 + 0.2**2 / 2, atol=0.04)
    # Whatever is done to priors, what was rejected stays so.
    np.testing.assert_array_equal(after.rejected, before.rejected)
