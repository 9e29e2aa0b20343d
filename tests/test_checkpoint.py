"""Checkpoints: what is saved comes back bit for bit, and nothing else is one."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax import checkpoint, methods
from diffup_jax.types import DiffUpError
from tests import runs

VERSION = methods.get("diffup").version
RUN = {
    "config": {"method": "diffup", "train": {"cues": ["mask", "box"]}},
    "identity": {"seed": 0},
    "version": VERSION,
}


def tree(seed, width=3):
    rng = np.random.default_rng(seed)
    array = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "step": jnp.asarray(seed, jnp.int32),
        "params": {"kernel": array(2, width), "bias": array(width)},
        "average": {"kernel": array(2, width), "bias": array(width)},
    }


def save(workdir, *steps, keep=5):
    writer = checkpoint.manager(str(workdir), keep=keep)
    try:
        for step in steps:
            checkpoint.save(
                writer, step, state=tree(step), position={"next": step}, run=RUN
            )
    finally:
        writer.wait_until_finished()
        writer.close()


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_round_trip(tmp_path):
    assert checkpoint.latest_step(str(tmp_path)) is None
    save(tmp_path, 2, 4, 6, keep=2)
    assert checkpoint.latest_step(str(tmp_path)) == 6
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["4", "6"]
    for step in (4, 6):
        state, position = checkpoint.restore(str(tmp_path), step, template=tree(0))
        assert_same(state, tree(step))
        assert position == {"next": step}
    assert checkpoint.saved_run(str(tmp_path), 6) == RUN


def test_another_version_of_the_method_is_refused(tmp_path):
    """Names and shapes fit, so nothing else would tell."""
    save(tmp_path, 6)
    (file,) = (tmp_path / "checkpoints/6/run").glob("*metadata*")
    file.write_text(json.dumps({**RUN, "version": VERSION - 1}))
    told = rf"written by version \d+ of the method diffup, this is version {VERSION}"
    with pytest.raises(DiffUpError, match=f"{told}.*Train again"):
        checkpoint.saved_run(str(tmp_path), 6)


def test_a_checkpoint_of_a_method_that_is_not_here_is_told(tmp_path):
    save(tmp_path, 6)
    (file,) = (tmp_path / "checkpoints/6/run").glob("*metadata*")
    file.write_text(json.dumps({**RUN, "config": {"method": "mine"}}))
    with pytest.raises(DiffUpError, match=r"unknown method 'mine'.*--config"):
        checkpoint.saved_run(str(tmp_path), 6)


def test_a_part_is_restored_alone(tmp_path):
    save(tmp_path, 2)
    template = jax.eval_shape(lambda: {"average": tree(0)["average"]})
    part = checkpoint.restore_part(str(tmp_path), 2, template=template)
    assert_same(part, {"average": tree(2)["average"]})
    assert part["average"]["bias"].devices() == {jax.devices()[0]}


@pytest.mark.parametrize("devices", [1, 2])
def test_a_state_goes_where_the_template_is(tmp_path, devices):
    """A run may be continued on another number of devices."""
    save(tmp_path, 2)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    template = jax.device_put(tree(0), everywhere)
    state, _ = checkpoint.restore(str(tmp_path), 2, template=template)
    assert_same(state, tree(2))
    assert all(x.sharding == everywhere for x in jax.tree.leaves(state))


def test_another_width_is_refused_with_every_difference(tmp_path):
    save(tmp_path, 2)
    wide = tree(0, width=4)
    wide["params"]["scale"] = wide["params"].pop("bias")
    with pytest.raises(DiffUpError) as caught:
        checkpoint.restore(str(tmp_path), 2, template=wide)
    told = str(caught.value)
    assert "(5 differences)" in told and "size of its network" in told
    assert "params/kernel: saved (2, 3), expected (2, 4)" in told
    assert "params/bias: not in this model" in told
    assert "params/scale: missing in the checkpoint" in told
    part = {"average": wide["average"]}
    with pytest.raises(DiffUpError, match=r"average/bias: saved \(3,\), expected \(4,"):
        checkpoint.restore_part(str(tmp_path), 2, template=part)


def test_an_empty_folder_is_no_checkpoint(tmp_path):
    save(tmp_path, 2)
    (tmp_path / "checkpoints" / "8").mkdir()
    assert checkpoint.latest_step(str(tmp_path)) == 2
    save(tmp_path, 4)  # and it does not keep anything from being saved
    assert checkpoint.latest_step(str(tmp_path)) == 4


def test_a_folder_with_other_content_is_told_and_kept(tmp_path):
    save(tmp_path, 2)
    mine = tmp_path / "checkpoints" / "8" / "mine"
    mine.parent.mkdir()
    mine.write_text("dear")
    assert checkpoint.latest_step(str(tmp_path)) == 2
    with pytest.raises(DiffUpError, match=r"step 4 was not saved.*folder 8.*Move it"):
        save(tmp_path, 4)
    assert mine.read_text() == "dear"


def test_a_save_cut_off_is_not_there(tmp_path):
    """Orbax writes aside; without its rename there is nothing to restore."""
    save(tmp_path, 2, 4)
    folder = tmp_path / "checkpoints"
    (folder / "4").rename(folder / "4.orbax-checkpoint-tmp")
    assert checkpoint.latest_step(str(tmp_path)) == 2
    save(tmp_path, 4)
    assert checkpoint.latest_step(str(tmp_path)) == 4


def test_a_saved_state_is_not_what_became_of_its_buffers(tmp_path):
    """Saving is asynchronous, and the next step reuses the memory of the state."""
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    state = {"x": jnp.zeros((1000, 1000))}
    writer = checkpoint.manager(str(tmp_path), keep=9)
    for number in range(1, 6):
        state = {"x": step(state["x"])}
        checkpoint.save(writer, number, state=state, position={}, run={})
    writer.wait_until_finished()
    writer.close()
    for number in range(1, 6):
        (saved,) = runs.saved_state(tmp_path, number).values()
        np.testing.assert_array_equal(saved, number)


def test_a_checkpoint_of_an_earlier_program_is_told(tmp_path):
    (tmp_path / "checkpoints" / "3" / "config").mkdir(parents=True)
    with pytest.raises(DiffUpError, match="step 3 does not say what run it is of"):
        checkpoint.saved_run(str(tmp_path), 3)
