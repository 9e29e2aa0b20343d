"""F2: text to token ids, for the text towers of the backbones.

Three tokenizers, by the name a `TextRecipe` gives:

- "clip": lower-cased byte-pair encoding with a start and an end mark (arXiv
  2103.00020), padded with the end mark, cut to fit with the end mark kept. Its pipeline
  is the one of transformers' CLIPTokenizer, on the same engine (the `tokenizers`
  library, which transformers brings along): importing that engine takes a fraction of
  the time of importing transformers, and it warns of no missing torch.
- "gemma": SigLIP 2's. Lower-cased byte-pair encoding of Gemma's 256 000 tokens, no
  start mark, an end mark, padded with <pad> to the context length (as it was trained),
  cut to fit with the end mark kept.
- a name that ends in ".json": a word list for our own small text towers. The file is
  `{"words": [...]}`; ids 0 to 3 are padding, unknown word, start, end, and the words
  follow in order. Text is lower-cased and cut into runs of letters and digits.

The vocabularies are not part of this project. They lie beside the weights: a Hugging
Face folder of CLIP has `tokenizer.json`, or `vocab.json` and `merges.txt`; OpenAI's
release has `bpe_simple_vocab_16e6.txt.gz`; a SigLIP 2 folder has `tokenizer.json`.
`FILES` lists what to fetch.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from diffup_jax.files import read_json, read_text
from diffup_jax.types import DiffUpError

# Files a tokenizer can be built from; a download asks for them besides the weights.
FILES = {
    "clip": (
        "tokenizer.json",
        "vocab.json",
        "merges.txt",
        "bpe_simple_vocab_16e6.txt.gz",
    ),
    "gemma": ("tokenizer.json",),
}
# Ids of a word list's marks; its words start at the next one.
PAD, UNKNOWN, START, END = range(4)
_MARKS = 4

Tokenize = Callable[[Sequence[str]], np.ndarray]

_FETCH = "The file is damaged or of another kind; fetch it again."
_START, _END = "<|startoftext|>", "<|endoftext|>"
_CLIP_PIECES = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
# OpenAI's file holds more merges than the 49 408 tokens use: 512 bytes and 2 marks.
_CLIP_MERGES = 49408 - 512 - 2
_WORD = re.compile(r"[a-z0-9]+")


def get(name: str, *, folder: str | Path, length: int) -> Tokenize:
    """The tokenizer `name` as a function: texts -> ids [n length], int32.

    `folder` holds its files. Raises DiffUpError when the name is not known, or the
    files are missing or damaged; the function raises it for anything but texts.
    """
    folder = Path(folder)
    if name.endswith(".json"):
        encode = _words(folder / name, length)
    elif name == "clip":
        encode = _engine(_clip(folder, length))
    elif name == "gemma":
        encode = _gemma(folder, length)
    else:
        raise DiffUpError(
            f"Unknown tokenizer {name!r}; known: {', '.join(FILES)}, and word lists "
            "(a name that ends in .json)."
        )

    # Annotated loosely: what is no text gets this room's own message.
    def tokenize(texts: Sequence[Any]) -> np.ndarray:
        strange = [t for t in texts if not isinstance(t, str)]
        if isinstance(texts, str) or strange:
            raise DiffUpError(
                f"A tokenizer was given {strange[0] if strange else texts!r}; it wants "
                'a list of texts, as in ["a photo of a cat"].'
            )
        if not texts:
            return np.zeros((0, length), np.int32)
        return np.asarray(encode(list(texts)), np.int32)

    return tokenize


def word_ids(words: Sequence[Any]) -> dict[str, int]:
    """Ids of a word list. Raises DiffUpError for a word that text cannot contain
    (anything but lower-case letters a-z and digits) and for one that occurs twice."""
    ids = {word: _MARKS + index for index, word in enumerate(words)}
    strange = [w for w in words if not isinstance(w, str) or not _WORD.fullmatch(w)]
    if strange or len(ids) != len(words):
        found = f"holds {strange[:5]}" if strange else "has words that occur twice"
        raise DiffUpError(
            f"A word list {found}; expected different words of a-z and 0-9."
        )
    return ids


# --- CLIP -----------------------------------------------------------------------------


def _clip(folder: Path, length: int) -> Tokenizer:
    vocabulary, merges = _clip_vocabulary(folder)
    engine = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=_END,
        )
    )
    engine.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    marks = [
        AddedToken(mark, normalized=False, special=True) for mark in (_START, _END)
    ]
    engine.add_special_tokens(marks)
    start, end = (engine.token_to_id(mark) for mark in (_START, _END))
    engine.post_processor = processors.RobertaProcessing(
        (_END, end), (_START, start), trim_offsets=False, add_prefix_space=False
    )
    engine.enable_truncation(length)
    engine.enable_padding(length=length, pad_id=end, pad_token=_END)
    return engine


def _engine(engine: Tokenizer) -> Callable[[list[str]], list[list[int]]]:
    return lambda texts: [found.ids for found in engine.encode_batch(texts)]


def _clip_vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(token -> id, merges in order) from the first known file of the folder."""
    whole, names, pairs, original = (folder / name for name in FILES["clip"])
    try:
        if names.is_file() and pairs.is_file():
            lines = read_text(pairs, fix=_FETCH).split("\n")
            return read_json(names, fix=_FETCH), _pairs(
                line for line in lines if line and not line.startswith("#version")
            )
        if whole.is_file():
            model = read_json(whole, fix=_FETCH)["model"]
            return model["vocab"], _pairs(model["merges"])
        if original.is_file():
            with gzip.open(original, "rt", encoding="utf-8") as file:
                lines = file.read().split("\n")[1 : 1 + _CLIP_MERGES]
            return _vocabulary_of(_pairs(lines))
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise _damaged("CLIP", folder, error) from error
    raise _missing("CLIP", folder, FILES["clip"])


def _vocabulary_of(merges: list[tuple[str, str]]):
    """Ids as OpenAI's release numbers them: bytes, bytes that end a word, merges."""
    letters = _byte_letters()
    tokens = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *("".join(pair) for pair in merges),
        _START,
        _END,
    ]
    return {token: index for index, token in enumerate(tokens)}, merges


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte, in the vocabulary's order: the
    printable bytes of Latin-1 as themselves, then the others as U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = 256 - len(printable)
    return [chr(code) for code in (*printable, *range(0x100, 0x100 + others))]


def _pairs(merges) -> list[tuple[str, str]]:
    """Merges given as "a b" or as ["a", "b"]."""
    found = [tuple(m.split(" ") if isinstance(m, str) else m) for m in merges]
    if any(len(pair) != 2 for pair in found):
        raise ValueError("a merge is not a pair of tokens")
    return found


# --- Gemma (SigLIP 2) -----------------------------------------------------------------


def _gemma(folder: Path, length: int) -> Callable[[list[str]], list[list[int]]]:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise _missing("SigLIP 2", folder, FILES["gemma"])
    try:
        engine = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise _damaged("SigLIP 2", folder, error) from error
    pad, end = (engine.token_to_id(mark) for mark in ("<pad>", "<eos>"))
    if pad is None or end is None:
        raise _damaged("SigLIP 2", folder, "it has no <pad> or no <eos>")
    # Marks, padding and length are set here whatever the file says of them: files
    # differ, the weights do not.
    engine.no_padding()
    engine.no_truncation()
    lower = normalizers.Lowercase()

    def encode(texts: list[str]) -> list[list[int]]:
        lowered = [lower.normalize_str(text) for text in texts]
        batch = engine.encode_batch(lowered, add_special_tokens=False)
        rows = [[*found.ids[: length - 1], end] for found in batch]
        return [row + [pad] * (length - len(row)) for row in rows]

    return encode


# --- Word lists -----------------------------------------------------------------------


def _words(path: Path, length: int) -> Callable[[list[str]], list[list[int]]]:
    if not path.is_file():
        raise _missing("This backbone", path.parent, (path.name,))
    try:
        words = list(read_json(path, fix=_FETCH)["words"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged("This backbone", path.parent, error) from error
    ids = word_ids(words)

    def encode(texts: list[str]) -> list[list[int]]:
        rows = []
        for text in texts:
            inner = [ids.get(word, UNKNOWN) for word in _WORD.findall(text.lower())]
            row = [START, *inner[: length - 2], END]
            rows.append(row + [PAD] * (length - len(row)))
        return rows

    return encode


def _missing(what: str, folder: Path, names: Sequence[str]) -> DiffUpError:
    return DiffUpError(
        f"{what} has a text tower, and {str(folder)!r} has no vocabulary for it; "
        f"expected {' or '.join(names)}. Put the file that came with the weights there."
    )


def _damaged(what: str, folder: Path, error: Any) -> DiffUpError:
    return DiffUpError(
        f"The vocabulary of {what} in {str(folder)!r} cannot be read: {error}. {_FETCH}"
    )
