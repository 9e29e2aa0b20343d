"""CLIP's tokenizer on its real vocabulary, against transformers and its description.

Needs the vocabulary of OpenAI's release in the folder of real data (`clip/`). The
second reference is written here from the description of byte-pair encoding: both others
run on the same engine.
"""

import functools
import unicodedata

import numpy as np
import pytest
import regex
from transformers import CLIPTokenizer

from diffup_jax.backbones import tokenizer

LENGTH = 77
PIECES = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]"
    r"|[^\s\p{L}\p{N}]+"
)
HARD = [
    "",
    " ",
    "\t\n  \u00a0 ",
    "a photo of a cat",
    "A PHOTO   of\ta\nCat!",
    "it's they're I'd we'll you've don't I'm",
    "\U0001f408 \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "cat\U0001f408cat",
    "naïve café Ångström Straße ŒUVRE İstanbul ΟΔΥΣΣΕΥΣ",
    "cafe\u0301 A\u030angstro\u0308m",
    "猫の写真 고양이 사진 قطة кошка",
    "1234567890 3.14 ½ Ⅷ ٣",
    "<|startoftext|> a <|endoftext|> b",
    "<|endoftext|>" * 3,
    "!!! ??? ... --- === \\ / @ # $ %^&*()_+`~",
    "under_score hy-phen dot.dot",
    "a" * 400,
    "word " * 200,
    "\U0001f408" * 100,
    "\x00\x7f\x85 control",
]


@pytest.fixture(scope="module")
def folder(realdata):
    path = realdata / "clip"
    if not (path / "bpe_simple_vocab_16e6.txt.gz").is_file():
        pytest.skip("no bpe_simple_vocab_16e6.txt.gz in the folder of real data")
    return path


@pytest.fixture(scope="module")
def texts():
    """1 000 of them: the hard ones, and mixtures of pieces of many scripts."""
    generator = np.random.default_rng(0)
    alphabets = [
        list("abcdefghijklmnopqrstuvwxyz"),
        list("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"),
        list("àéîõüçñßøåæœÀÉÎÕÜÇÑẞØÅÆŒıİ"),
        list("!?.,;:'\"()[]{}<>|/\\@#$%^&*-_=+~`"),
        [chr(c) for c in range(0x1F300, 0x1F6FF)],
        [chr(c) for c in range(0x4E00, 0x4F00)],
        [chr(c) for c in range(0x0391, 0x0451) if chr(c).isalpha()],
        list("\u0301\u0308\u200d\ufe0f\u00a0\u3000 \t\n"),
    ]
    words = ["a", "photo", "of", "the", "cat", "it's", "don't", "unbelievably"]
    made = list(HARD)
    while len(made) < 1000:
        parts = []
        for _ in range(generator.integers(1, 30)):
            if generator.random() < 0.4:
                parts.append(str(generator.choice(words)))
            else:
                letters = alphabets[generator.integers(len(alphabets))]
                parts.append(
                    "".join(generator.choice(letters, generator.integers(1, 9)))
                )
        made.append(generator.choice(["", " "]).join(parts))
    return made


def test_equal_to_transformers(folder, texts):
    vocabulary, merges = tokenizer._clip_vocabulary(folder)
    assert len(vocabulary) == 49408
    reference = CLIPTokenizer(vocab=vocabulary, merges=merges)
    want = reference(texts, padding="max_length", truncation=True, max_length=LENGTH)[
        "input_ids"
    ]
    got = tokenizer.get("clip", folder=folder, length=LENGTH)(texts)
    np.testing.assert_array_equal(got, want)
    assert (got[:, 0] == 49406).all()
    assert (got == 49407).any(axis=1).all()


def test_equal_to_the_description(folder, texts):
    vocabulary, merges = tokenizer._clip_vocabulary(folder)
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letter = {byte: chr(byte) for byte in printable}
    letter |= {byte: chr(0x100 + i) for i, byte in enumerate(others)}

    @functools.cache
    def encode(piece):
        if piece in ("<|startoftext|>", "<|endoftext|>"):
            return (vocabulary[piece],)
        tokens = [letter[byte] for byte in piece.encode()]
        tokens[-1] += "</w>"
        while len(tokens) > 1:
            pairs = list(zip(tokens, tokens[1:], strict=False))
            best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
            if best not in ranks:
                break
            joined, i = [], 0
            while i < len(tokens):
                if tuple(tokens[i : i + 2]) == best:
                    joined.append("".join(best))
                    i += 2
                else:
                    joined.append(tokens[i])
                    i += 1
            tokens = joined
        return tuple(vocabulary[token] for token in tokens)

    def row(text):
        # Letter by letter: a whole word's lower case has a final sigma.
        text = "".join(c.lower() for c in unicodedata.normalize("NFC", text))
        ids = [i for piece in PIECES.findall(text) for i in encode(piece)]
        ids = [49406, *ids[: LENGTH - 2], 49407]
        return ids + [49407] * (LENGTH - len(ids))

    got = tokenizer.get("clip", folder=folder, length=LENGTH)(texts)
    for text, ids in zip(texts, got, strict=True):
        assert ids.tolist() == row(text), text
