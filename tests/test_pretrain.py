"""Pretraining of the tiny backbone: the whole life of two steps, and that it learns."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from demo import pretrain_tiny, prior_check
from demo.scene_batches import Scenes, crops, draw_scenes
from demo.scene_categories import categories
from diffup_jax import backbones
from diffup_jax.types import DiffUpError


@pytest.fixture(scope="module")
def step_and_state():
    start, step = pretrain_tiny.make_step(20)
    return step, start(0)


def _stripes(images: int) -> Scenes:
    """Half of each image is one flat object of a category, the rest is grey."""
    generator = np.random.default_rng(0)
    pixels = np.full((images, 128, 128, 3), 128, np.uint8)
    labels = np.zeros((images, 128, 128), np.int16)
    for index in range(images):
        pixels[index, :, :64] = generator.integers(0, 256, 3)
        labels[index, :, :64] = 1 + index
    return Scenes(pixels, labels)


def test_two_steps_write_weights_that_load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--scenes", "12", "--steps", "2", "--batch", "4", "--processes", "1"]
    out = tmp_path / "tiny.safetensors"
    assert pretrain_tiny.main(["--out", str(out), *arguments]) == 0
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["tiny.log", "tiny.safetensors"]
    assert out.stat().st_size < 3_000_000

    backbone = backbones.get("tiny", weights=str(out))
    log = (tmp_path / "tiny.log").read_text()
    assert backbone.digest in log and str(tmp_path) not in log
    features = backbone(np.zeros((1, 64, 64, 3), np.uint8))
    assert np.isfinite(features.last).all()
    assert sum(leaf.size for leaf in jax.tree.leaves(backbone.params)) < 1_500_000


def test_loss_falls_on_a_fixed_batch(step_and_state):
    step, state = step_and_state
    scenes = _stripes(4)
    losses = []
    for _ in range(8):
        state, loss = step(state, scenes.images, scenes.labels)
        losses.append(float(loss))
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.7 * losses[0]
    # The running averages have left their start and follow the data.
    means = [np.abs(leaf).max() for leaf in jax.tree.leaves(state.statistics)]
    assert min(means) > 0


def test_crops_are_windows_of_the_scenes():
    y, x = np.mgrid[0:256, 0:256]
    ramp = np.stack([y, x, np.zeros_like(y)], -1).astype(np.uint8)
    scenes = Scenes(ramp[None], (256 * y + x + 1)[None])
    images, labels = crops(np.random.default_rng(0), scenes, batch=5, crop=128)
    assert images.shape == (5, 128, 128, 3) and labels.shape == (5, 128, 128)
    for image, label in zip(images.astype(int), labels, strict=True):
        # Every pixel still carries its own label, whatever the turn and the flip.
        np.testing.assert_array_equal(256 * image[..., 0] + image[..., 1] + 1, label)
        rows = np.unique(image[..., 0]), np.unique(image[..., 1])
        assert all(len(one) == 128 and np.ptp(one) == 127 for one in rows)


def test_scenes_to_train_on_hold_only_pretraining_categories():
    scenes = draw_scenes("pretraining", 6, seed=1, processes=1)
    assert scenes.images.shape == (6, 256, 256, 3)
    assert 0 == scenes.labels.min() < scenes.labels.max() <= 320
    assert not set(categories("pretraining")) & set(categories("evaluated"))


def test_prior_check_tells_perfect_features_from_blind_ones():
    labels = np.zeros((6, 64, 64), np.int16)
    for index in range(6):
        labels[index, 8 * index : 8 * index + 16, 16:32] = 1 + index % 2
        labels[index, 40:56, 40:56] = 2 - index % 2
    colours = np.eye(3, dtype=np.float32)
    pixels = (255 * colours[labels]).astype(np.uint8)
    pairs = prior_check.choose_pairs(np.random.default_rng(0), labels, episodes=8)
    assert (pairs.support != pairs.query).all()
    for scene in (pairs.support, pairs.query):
        assert (labels[scene] == pairs.category[:, None, None]).any((1, 2)).all()

    def perfect(images):
        return [images.astype(np.float32), np.ones_like(images, np.float32)]

    seen, blind, both = prior_check.prior_iou(perfect, (pixels, labels), pairs=pairs)
    everything = prior_check.foreground_iou(labels, pairs=pairs)
    assert seen > 0.85 and both > 0.85
    assert blind <= everything + 1e-6 < 0.2


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (["--steps", "1"], "--steps 1 "),
        (["--seed", "-1"], "--seed -1 "),
        (["--processes", "0"], "--processes 0 "),
        (["--out", "tiny.npz"], "NAME.safetensors"),
        (["--out", "nowhere/tiny.safetensors"], "a folder that exists"),
    ],
)
def test_bad_arguments_are_told_before_any_work(
    tmp_path, monkeypatch, capsys, wrong, word
):
    monkeypatch.chdir(tmp_path)
    assert pretrain_tiny.main(["--out", "tiny.safetensors", *wrong]) == 2
    told = capsys.readouterr().err
    assert word in told and told.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_scenes_without_pairs_are_refused():
    with pytest.raises(DiffUpError, match="no category twice"):
        prior_check.choose_pairs(
            np.random.default_rng(0), np.zeros((2, 8, 8), int), episodes=1
        )
