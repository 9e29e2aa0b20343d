"""Tokenizers on vocabularies made here: marks, padding, cutting, files, errors.

CLIP's real vocabulary is compared with transformers in tests/parity/test_tokenizer.py.
"""

import gzip
import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from diffup_jax.backbones import tokenizer
from diffup_jax.types import DiffUpError

MERGES = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>"), ("a", "b")]


@pytest.fixture
def original(tmp_path):
    """A folder with a vocabulary in the form of OpenAI's release."""
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
    path = tmp_path / "original" / "bpe_simple_vocab_16e6.txt.gz"
    path.parent.mkdir()
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(lines))
    return path.parent


def _vocabulary():
    tokens = tokenizer._byte_letters()
    tokens = [*tokens, *(t + "</w>" for t in tokens), *("".join(m) for m in MERGES)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}


START, END = 517, 518
CAT, DOG, S = 513, 515, 256 + ord("s") - 0x21


def test_clip_merges_marks_pads_and_cuts(original):
    tokenize = tokenizer.get("clip", folder=original, length=6)
    ids = tokenize(["Cat  dogs", "", "cat cat cat cat cat cat cat"])
    assert ids.dtype == np.int32
    assert ids.shape == (3, 6)
    do = _vocabulary()["do"]
    g = ord("g") - 0x21
    assert ids.tolist() == [
        [START, CAT, do, g, S, END],
        [START, END, END, END, END, END],
        [START, CAT, CAT, CAT, CAT, END],
    ]


def test_clip_merges_a_word_end_only_at_the_end(original):
    """ "dog" inside "dogs" is not the word "dog": g and g</w> are different letters."""
    tokenize = tokenizer.get("clip", folder=original, length=8)
    assert DOG in tokenize(["dog"])
    assert DOG not in tokenize(["dogs"])
    assert tokenize(["dog's"])[0, 1] == DOG


def test_clip_marks_in_a_text_are_marks(original):
    tokenize = tokenizer.get("clip", folder=original, length=5)
    told = tokenize(["cat<|endoftext|>dog"])[0].tolist()
    assert told == [START, CAT, END, DOG, END]


def test_clip_reads_every_kind_of_file_alike(original, tmp_path):
    vocabulary = _vocabulary()
    pair, whole, old = (tmp_path / name for name in ("pair", "whole", "old"))
    for folder in (pair, whole, old):
        folder.mkdir()
    (pair / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(m) for m in MERGES), ""]
    (pair / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    for folder, merges in ((whole, MERGES), (old, [" ".join(m) for m in MERGES])):
        model = {"model": {"vocab": vocabulary, "merges": merges}}
        (folder / "tokenizer.json").write_text(json.dumps(model), encoding="utf-8")
    texts = ["a Cat", "dogs, cabs & dog", "naïve \U0001f408 猫", "x" * 50]
    want, *others = (
        tokenizer.get("clip", folder=folder, length=20)(texts)
        for folder in (original, pair, whole, old)
    )
    assert len(np.unique(want)) > 20
    for got in others:
        np.testing.assert_array_equal(got, want)


def test_gemma_lowers_marks_pads_and_cuts(tmp_path):
    letters = ["▁", *"abcdefgh"]
    vocabulary = {t: i for i, t in enumerate(["<pad>", "<eos>", "<bos>", *letters])}
    engine = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    engine.normalizer = normalizers.Replace(" ", "▁")
    engine.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    # Whatever the file says of padding and length, the weights were trained with 64.
    engine.enable_padding(length=3, direction="left")
    engine.enable_truncation(2)
    engine.save(str(tmp_path / "tokenizer.json"))
    tokenize = tokenizer.get("gemma", folder=tmp_path, length=6)
    a, b, space = (vocabulary[t] for t in ("a", "b", "▁"))
    assert tokenize(["A b", "", "aaaaaaaaa"]).tolist() == [
        [a, space, b, 1, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [a, a, a, a, a, 1],
    ]
    assert tokenize(["a"]).dtype == np.int32


def test_words_are_looked_up(tmp_path):
    words = ["a", "photo", "of", "cat", "2"]
    (tmp_path / "small.json").write_text(json.dumps({"words": words}))
    tokenize = tokenizer.get("small.json", folder=tmp_path, length=8)
    ids = tokenizer.word_ids(words)
    assert sorted(ids.values()) == [4, 5, 6, 7, 8]
    told = tokenize(["A photo, of: 2 unicorns!", "", "cat " * 20])
    assert told.tolist() == [
        [2, 4, 5, 6, 8, 1, 3, 0],
        [2, 3, 0, 0, 0, 0, 0, 0],
        [2, 7, 7, 7, 7, 7, 7, 3],
    ]


@pytest.mark.parametrize("words", [["cat", "cat"], ["Cat"], ["two words"], [3], [""]])
def test_word_lists_that_text_cannot_reach_are_refused(words):
    with pytest.raises(DiffUpError, match="word list"):
        tokenizer.word_ids(words)


@pytest.mark.parametrize(
    ("name", "told"),
    [("clip", "vocab.json"), ("gemma", "tokenizer.json"), ("small.json", "small.json")],
)
def test_missing_files_are_named_with_their_folder(tmp_path, name, told):
    with pytest.raises(DiffUpError, match=told) as caught:
        tokenizer.get(name, folder=tmp_path, length=8)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "file", "text"),
    [
        ("clip", "tokenizer.json", "{"),
        ("clip", "tokenizer.json", '{"model": {"vocab": {}, "merges": ["a"]}}'),
        ("clip", "bpe_simple_vocab_16e6.txt.gz", "not gzip"),
        ("gemma", "tokenizer.json", "{}"),
        ("small.json", "small.json", "[]"),
    ],
)
def test_damaged_files_are_told(tmp_path, name, file, text):
    (tmp_path / file).write_text(text)
    told = "cannot be read|not valid JSON"
    with pytest.raises(DiffUpError, match=rf"({told}).*fetch it again"):
        tokenizer.get(name, folder=tmp_path, length=8)


def test_unknown_names_and_things_that_are_no_texts(original):
    with pytest.raises(DiffUpError, match=r"'bert'; known: clip, gemma"):
        tokenizer.get("bert", folder=original, length=8)
    tokenize = tokenizer.get("clip", folder=original, length=8)
    for strange in ("a photo of a cat", ["cat", None], [b"cat"]):
        with pytest.raises(DiffUpError, match="list of texts"):
            tokenize(strange)
    assert tokenize([]).shape == (0, 8)
