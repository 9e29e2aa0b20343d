"""The embedded image-text backbones: their captions, their training, their files."""

from __future__ import annotations

import json
from importlib.resources import files

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from demo import caption_training as training
from demo import joint_check, prior_check, scene_captions
from demo import pretrain_tiny_clip as program
from demo.scene_batches import Scenes, draw_scenes
from demo.scene_categories import COLOURS, SHAPES, TEXTURES, categories
from diffup_jax import backbones
from diffup_jax.backbones import clip, prompts, tokenizer
from diffup_jax.backbones.towers import Tower
from diffup_jax.types import DiffUpError

NAME = program.NAMES[0]
HERE = files(backbones)


def _small() -> clip.Variant:
    variant = clip.VARIANTS[NAME]
    tower = Tower(16, 1, 2, 16, "gelu_pytorch_tanh", 1e-5)
    return variant._replace(vision=tower, text=variant.text._replace(tower=tower))


def _flat(images: int) -> Scenes:
    """The left half of each image is one flat object, the rest is grey."""
    generator = np.random.default_rng(0)
    pixels = np.full((images, 256, 256, 3), 128, np.uint8)
    labels = np.zeros((images, 256, 256), np.int16)
    for index in range(images):
        pixels[index, :, :128] = generator.integers(0, 256, 3)
        labels[index, :, :128] = 1 + index % 20
    return Scenes(pixels, labels)


def _words(length: int) -> tokenizer.Tokenize:
    text = clip.VARIANTS[NAME].text
    return tokenizer.get(text.tokenizer, folder=str(HERE), length=length)


# --- Captions -------------------------------------------------------------------------


def test_the_word_list_of_the_text_tower_is_the_one_of_the_captions():
    words = scene_captions.words()
    assert tuple(json.loads((HERE / "tiny_clip.json").read_text())["words"]) == words
    for name in program.NAMES:
        text = clip.VARIANTS[name].text
        assert text.vocabulary == len(tokenizer.word_ids(words)) + 4
        assert text.eos == tokenizer.END


def test_captions_know_the_words_of_evaluated_names_and_none_of_the_names():
    evaluated = {one.name for one in categories("evaluated")}
    known = {word for name in scene_captions.WHOLE for word in name.split()}
    assert {word for name in evaluated for word in name.split()} == known
    assert known == {*SHAPES, *TEXTURES, *COLOURS}

    labels = np.random.default_rng(1).integers(0, 321, (40, 6, 6)).repeat(9, axis=2)
    said = [scene_captions.scene_name(one) for one in labels]
    assert all(" and a " in name for name in said)
    parts = {part for name in said for part in name.split(" and a ")}
    assert parts <= set(scene_captions.WHOLE) and not parts & evaluated


def test_no_sentence_is_cut_and_no_word_unknown():
    tokenize = _words(40)
    longest = max(scene_captions.WHOLE, key=lambda name: len(name.split()))
    ground = prompts.BACKGROUNDS["default"]
    for template in prompts.MORE_TEMPLATES:
        for names, room in (
            ((*scene_captions.WHOLE, *sum(scene_captions.PARTS, ()), *ground), 12),
            ([" and a ".join([longest] * 3)], 24),
        ):
            ids = tokenize([template.replace("{name}", name) for name in names])
            assert not (ids == tokenizer.UNKNOWN).any()
            assert ((ids[:, :room] == tokenizer.END).sum(axis=1) == 1).all()
    assert (scene_captions.NAME_TOKENS, scene_captions.SCENE_TOKENS) == (12, 24)


def test_a_scene_without_objects_is_not_described():
    labels = np.zeros((2, 128, 128), np.int16)
    labels[1, :40, :40] = 7
    found = training.draw_captions(np.random.default_rng(0), _words(77), labels)
    assert found.described.tolist() == [0.0, 1.0]
    assert found.names.shape == (320 + 23, scene_captions.NAME_TOKENS)
    assert found.scenes.shape == (2, scene_captions.SCENE_TOKENS)


# --- Training -------------------------------------------------------------------------


def test_dense_loss_is_the_equation():
    generator = np.random.default_rng(0)
    total = training.BACKGROUNDS + 343

    def unit(*shape):
        values = generator.normal(size=shape).astype(np.float32)
        return values / np.linalg.norm(values, axis=-1, keepdims=True)

    cells, vectors = unit(2, 3, 4, 8), unit(total, 8)
    classes = generator.integers(0, 6, (4, 2, 3, 4))
    weight = generator.random((2, 3, 4)).astype(np.float32)
    found = training._dense(
        jnp.asarray(cells),
        jnp.asarray(vectors),
        jnp.float32(5.0),
        jnp.asarray(classes),
        jnp.asarray(weight),
    )
    z = 5.0 * np.einsum("bpqd,nd->bpqn", cells.astype(np.float64), vectors)
    ground = np.log(np.exp(z[..., : training.BACKGROUNDS]).mean(-1, keepdims=True))
    wanted, start = 0.0, training.BACKGROUNDS
    for count, target in zip((320, 10, 5, 8), np.minimum(classes, 9), strict=True):
        logits = np.concatenate([ground, z[..., start : start + count]], axis=-1)
        share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        own = np.take_along_axis(share, target[..., None], axis=-1)[..., 0]
        wanted += (weight * -np.log(own)).sum() / weight.sum() / 4
        start += count
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_cells_have_the_class_of_their_middle_and_the_weight_of_its_share():
    labels = np.zeros((1, 16, 16), np.int16)
    labels[0, :8, :6] = 5  # three quarters of the first cell
    classes, weight = training._cells(jnp.asarray(labels), 8)
    one = categories("pretraining")[4]
    wanted = [5, one.shape + 1, one.texture + 1, one.colour + 1]
    assert classes[:, 0, 0, 0].tolist() == wanted
    assert np.asarray(classes).reshape(4, 4)[:, 1:].max() == 0
    np.testing.assert_allclose(weight[0], [[0.75, 0.25], [0.25, 0.25]])


def test_a_window_of_positions_is_what_a_part_of_a_large_image_has():
    grid, side = 24, training.PATCHES
    table = np.arange(1 + grid * grid, dtype=np.float32)[:, None]
    found = training._window(
        {"params": {"positions": jnp.asarray(table)}}, grid, jnp.array([3, 5])
    )["params"]["positions"]
    wanted = table[1:].reshape(grid, grid)[3 : 3 + side, 5 : 5 + side]
    assert found[0] == 0 and found.shape == (1 + side * side, 1)
    np.testing.assert_array_equal(found[1:, 0], wanted.ravel())


def test_loss_falls_on_a_fixed_batch():
    variant = _small()
    start, step = training.make_step(variant, steps=20)
    state = start(0)
    batch = program._batch(np.random.default_rng(0), _flat(4), _words(77), variant, 4)
    losses = []
    for _ in range(12):
        state, loss = step(state, *batch)
        losses.append(float(loss))
    assert np.isfinite(losses).all() and losses[-1] < 0.85 * losses[0]
    # Everything is taught: an Adam moment of zero is a parameter nothing reads. Keys'
    # biases cannot matter (a softmax ignores them), rows of absent words need not.
    moments = optax.tree.get(state.optimizer, "nu")
    for path, leaf in jax.tree_util.tree_leaves_with_path(moments):
        assert "key" in str(path) or np.asarray(leaf).max() > 0, path


def test_the_whole_life_of_two_steps(tmp_path, monkeypatch):
    monkeypatch.setitem(clip.VARIANTS, NAME, _small())
    monkeypatch.setattr(program, "draw_scenes", lambda *_, **__: _flat(100))
    monkeypatch.setattr(program, "_EPISODES", 20)
    out = tmp_path / "x.safetensors"
    arguments = ["--name", NAME, "--scenes", "12", "--steps", "2", "--batch", "4"]
    assert program.main([*arguments, "--out", str(out)]) == 0
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["tiny_clip.json", "x.log", "x.safetensors"]
    backbone = backbones.get(NAME, weights=str(out))
    log = out.with_suffix(".log").read_text()
    assert backbone.digest in log and str(tmp_path) not in log


def test_a_mistake_is_one_line(tmp_path, capsys):
    out = str(tmp_path / "nowhere" / "x.safetensors")
    for arguments in (["--out", out], ["--steps", "1"]):
        assert program.main(["--name", NAME, *arguments]) == 2
        assert capsys.readouterr().err.count("\n") == 1


# --- The files ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes():
    drawn = draw_scenes("pretraining", 24, seed=12345, processes=1)
    return program.shrunk(drawn, 192)


@pytest.fixture(scope="module", params=program.NAMES)
def packaged(request):
    return backbones.get(request.param, weights="")


def test_the_packaged_file_is_small_and_the_one_of_its_log(packaged):
    file = HERE / f"{packaged.name}.safetensors"
    assert len(file.read_bytes()) < 3_000_000
    log = (HERE / f"{packaged.name}.log").read_text()
    assert packaged.digest in log and f"--name {packaged.name}" in log
    assert "/" not in log


def test_joint_space_tells_colours_and_objects(packaged, scenes):
    features = packaged(scenes.images)
    middle = scenes.labels[:, 4::8, 4::8]
    cells = np.asarray(features.joint)[middle > 0]
    truth = [categories("pretraining")[label - 1] for label in middle[middle > 0]]
    texts = packaged.encode_text([f"a photo of a {colour} thing" for colour in COLOURS])
    told = (cells @ np.asarray(texts).T).argmax(axis=1)
    right = told == [one.colour for one in truth]
    assert right.mean() > 0.7
    np.testing.assert_allclose(np.linalg.norm(cells, axis=-1), 1, rtol=1e-4)


def test_dense_text_beats_everything_foreground(packaged, scenes):
    generator = np.random.default_rng(0)
    kinds = [np.unique(label[label > 0])[0] for label in scenes.labels]
    query = np.arange(len(kinds))
    pairs = prior_check.Pairs(generator.permutation(query), query, np.array(kinds))
    names = scene_captions.WHOLE
    text = joint_check.text_iou(packaged, scenes, names, pairs=pairs)
    everything = prior_check.foreground_iou(scenes.labels, pairs=pairs)
    assert text > everything + 0.25


def test_other_sizes_run_and_a_wrong_one_is_told(packaged):
    features = packaged(np.zeros((1, 64, 256, 3), np.uint8))
    assert features.joint.shape[1:3] == (8, 32)
    with pytest.raises(DiffUpError, match="multiples of 8"):
        packaged(np.zeros((1, 100, 96, 3), np.uint8))
