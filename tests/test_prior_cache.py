"""Kept episodes: what is read is what was made, once, whole, in a known order."""

from __future__ import annotations

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax import config as configs
from diffup_jax import (
    methods,
    multi_backbone,
    prior_cache,
    sections,
    training,
    training_data,
)
from diffup_jax.arrays import Arrays
from diffup_jax.data import sources
from diffup_jax.types import DiffUpError
from tests import datasets, runs

EPISODES = 10
FACTS = {"seed": 0, "episodes": EPISODES}
EXAMPLE = {
    "maps": jax.ShapeDtypeStruct((1, 3, 4), jnp.float32),
    "valid": jax.ShapeDtypeStruct((1, 3), bool),
    "empty": jax.ShapeDtypeStruct((1, 0), jnp.float32),
}


def rows(first: int, count: int) -> dict[str, np.ndarray]:
    """Row r holds numbers that only row r holds."""
    number = np.arange(first, first + count)
    return {
        "maps": np.broadcast_to(number[:, None, None] / 16, (count, 3, 4)),
        "valid": (number[:, None] + np.arange(3)) % 2 == 0,
        "empty": np.zeros((count, 0), np.float32),
    }


def open_cache(folder, make=None, facts=FACTS, episodes=EPISODES):
    def by_four(first):
        for start in range(first, episodes, 4):
            yield rows(start, 4)  # the last one is longer than what is missing

    return prior_cache.open_or_make(
        folder, facts=facts, example=EXAMPLE, episodes=episodes, make=make or by_four
    )


def unwanted(first):
    raise AssertionError(f"made again from row {first}")


def test_rows_come_back_in_the_order_asked_for(tmp_path):
    cache = open_cache(tmp_path)
    assert cache.episodes == EPISODES
    wanted = np.array([7, 0, 7, 3])
    got = cache.batch(wanted)
    for place, row in enumerate(wanted):
        for name, value in rows(row, 1).items():
            np.testing.assert_array_equal(got[name][place], value[0])
    assert got["maps"].dtype == np.float32 and got["valid"].dtype == bool


def test_a_whole_cache_is_not_made_again(tmp_path):
    open_cache(tmp_path)
    again = open_cache(tmp_path, make=unwanted)
    assert again.batch(np.array([4]))["maps"][0, 0, 0] == 4 / 16


def test_other_facts_are_another_cache(tmp_path):
    open_cache(tmp_path)
    with pytest.raises(AssertionError, match="made again from row 0"):
        open_cache(tmp_path, make=unwanted, facts={**FACTS, "seed": 1})


def test_an_interrupted_cache_is_not_whole_and_goes_on(tmp_path):
    def cut(first):
        yield rows(first, 4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_cache(tmp_path, make=cut)
    assert not list(tmp_path.glob("*.arrays"))
    seen = []

    def rest(first):
        seen.append(first)
        yield rows(first, EPISODES - first)

    cache = open_cache(tmp_path, make=rest)
    assert seen == [4]
    everything = cache.batch(np.arange(EPISODES))
    np.testing.assert_array_equal(everything["maps"], rows(0, EPISODES)["maps"])


def test_too_few_episodes_are_no_cache(tmp_path):
    with pytest.raises(DiffUpError, match="4 of 10 episodes"):
        open_cache(tmp_path, make=lambda first: iter([rows(0, 4)]))
    assert not list(tmp_path.glob("*.arrays"))


def test_a_full_disk_is_told_before_any_work(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(prior_cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiffUpError, match=r"10 episodes takes .* GB, but .* Lower"):
        open_cache(tmp_path, make=unwanted)


def flip(content):
    """One bit of the kept row 7."""
    at = content.index(rows(7, 1)["maps"].astype(np.float16).tobytes())
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (flip, r"the array \"\['maps'\]\" has another digest"),
        (lambda content: content[:-1], "bytes, not"),
        (lambda content: content[:-200], "bytes, not"),
        (lambda content: content[:100], "its head has not its digest"),
        (lambda content: b"", "does not begin with"),
    ],
)
def test_a_damaged_cache_is_made_again_aloud(tmp_path, damage, told):
    open_cache(tmp_path)
    (path,) = tmp_path.glob("*.arrays")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with pytest.warns(
        RuntimeWarning, match=rf"arrays is damaged and made again.*{told}"
    ):
        cache = open_cache(tmp_path)
    everything = cache.batch(np.arange(EPISODES))
    np.testing.assert_array_equal(everything["maps"], rows(0, EPISODES)["maps"])
    assert path.read_bytes() == whole
    open_cache(tmp_path, make=unwanted)


def test_a_cache_of_another_program_is_refused(tmp_path):
    """The same facts, other arrays: a program whose revision was not raised."""
    open_cache(tmp_path)
    other = {name: leaf for name, leaf in EXAMPLE.items() if name != "empty"}
    with pytest.raises(DiffUpError, match=r"other arrays .*'empty'.*Delete the file"):
        prior_cache.open_or_make(
            tmp_path, facts=FACTS, example=other, episodes=EPISODES, make=unwanted
        )


def test_every_epoch_walks_all_rows_in_an_order_of_its_own():
    def walk(first, steps, seed=0):
        return np.concatenate(
            [
                prior_cache.rows_of_step(s, 4, episodes=EPISODES, seed=seed)
                for s in range(first, first + steps)
            ]
        )

    whole = walk(0, 5)  # 20 places, two epochs; batch 2 has rows of both
    first, second = whole[:EPISODES], whole[EPISODES:]
    assert sorted(first) == sorted(second) == list(range(EPISODES))
    assert list(first) != list(second)
    np.testing.assert_array_equal(walk(3, 2), whole[12:])  # no state
    assert list(walk(0, 5, seed=1)) != list(whole)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return datasets.write_label_maps(tmp_path_factory.mktemp("cached"), train=40)


def recipe_of(config):
    """What the training episodes of a run on all its base images are made of."""
    settings = configs.from_config(config)
    source = sources.open_split(settings.data, "train", shots=1)
    base = sources.fold_classes(source, settings.data.fold, role="base")
    return training_data.recipe_of(settings, source, base)


@pytest.mark.parametrize("fewest", [1, 20])
def test_a_run_draws_as_many_points_as_its_config_says(root, fewest):
    config = runs.get_config(str(root))
    config.train.cues = ("point",)
    config.train.fewest_points = fewest
    config.augment.scale = (1.0, 1.0)
    drawn = training_data.batches(recipe_of(config), steps=8)
    marked = np.concatenate([b.episode.support.fg.sum((1, 2, 3, 4)) for b in drawn])
    assert (marked == 20).all() if fewest == 20 else len(set(marked.tolist())) > 5


def test_the_loss_of_a_kept_episode_is_the_loss_of_the_episode(root, tmp_path):
    """To the 16 bits that are kept; first epoch, rows put back in their order."""
    config = runs.get_config(str(root))
    config.train.prior_cache = 6
    settings, recipe = configs.from_config(config), recipe_of(config)
    (turn,) = multi_backbone.open_turns(settings, recipe.source)
    method = turn.method
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    tx = training.optimiser(settings.train)
    state, frozen = training.init_state(method, tx, settings, mesh)
    kept = multi_backbone.cached_batches(
        (turn,), (frozen,), mesh, recipe, workdir=str(tmp_path)
    )
    whole = training_data.batches(recipe, steps=2)
    order = np.concatenate(
        [prior_cache.rows_of_step(s, 2, episodes=6, seed=0) for s in range(3)]
    )
    place = int(np.flatnonzero(order == 3)[0])  # of episode 3 = row 1 of batch 1
    tree, damaged = kept[place // 2]
    assert damaged == ()
    one = jax.tree.map(lambda x: x[place % 2 :][:1], tree)
    episode = jax.tree.map(lambda x: x[1:], whole[1].episode)
    keys = jax.random.split(jax.random.key(5), 1)
    params = {**frozen, **state.params}
    cached, _ = jax.jit(method.loss_prepared)(params, keys, one)
    expected, terms = jax.jit(method.loss)(params, keys, episode)
    assert float(cached) == pytest.approx(float(expected), rel=2e-3)
    assert float(terms["bce"]) > 0


def test_a_run_on_a_cache_stops_goes_on_and_ends_the_same(root, tmp_path, monkeypatch):
    """Two runs on one cache; the second is cut and continued. Bit for bit the same."""
    config = runs.get_config(str(root))
    config.train.steps = 6
    config.train.prior_cache = 6
    config.train.prior_cache_dir = str(tmp_path / "kept")
    config.train.val_every = 100
    config.train.checkpoint_every = 3

    straight = training.train(config, str(tmp_path / "straight"))
    (whole,) = (tmp_path / "kept").glob("*.arrays")
    made_at = whole.stat().st_mtime_ns
    # Priors of another version of the method, or of other settings, are another cache.
    facts = Arrays(str(whole), whole.stem).facts
    assert facts["method"] == ["diffup", methods.get("diffup").version]
    settings = configs.from_config(config)
    kept = sections.fields_with(settings, sections.Role.KEPT)
    assert facts["kept"] == {
        key: value for key, value in kept.items() if not key.startswith("prior.text.")
    }
    assert facts["seed"] == 0 and facts["episodes"] == 6 and len(facts["classes"]) == 6
    runs.train_until(5, config, tmp_path / "cut", monkeypatch)
    resumed = training.train(config, str(tmp_path / "cut"))

    (whole,) = (tmp_path / "kept").glob("*.arrays")
    assert whole.stat().st_mtime_ns == made_at
    for one, two in zip(
        jax.tree.leaves(straight), jax.tree.leaves(resumed), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))
