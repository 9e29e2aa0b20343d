"""Batches through shared memory: whole, on their own then, nothing left behind."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import pytest

from diffup_jax.data import shared


class Batch(NamedTuple):
    pictures: np.ndarray
    places: np.ndarray
    more: tuple


@pytest.fixture
def prefix():
    found = shared.new_prefix()
    yield found
    shared.sweep(found)


def pieces(prefix):
    return [name for name in os.listdir(shared.FOLDER) if name.startswith(prefix)]


def batch():
    generator = np.random.default_rng(0)
    return Batch(
        generator.integers(0, 256, (3, 201, 200, 3)).astype(np.uint8),
        np.arange(3),
        ("told", {"masks": generator.random((77, 1000)) < 0.5, "count": 3}, ()),
    )


def test_a_batch_arrives_as_it_was(prefix):
    sent = batch()
    parcel = shared.pack(prefix, sent)
    assert len(pieces(prefix)) == 1
    found = shared.unpack(parcel)
    assert not pieces(prefix)
    assert type(found) is Batch and found.more[0] == "told" and found.more[2] == ()
    for one, other in (
        (sent.pictures, found.pictures),
        (sent.places, found.places),
        (sent.more[1]["masks"], found.more[1]["masks"]),
    ):
        assert one.dtype == other.dtype and (one == other).all()
    # Each array owns its memory: none holds the others, or the piece.
    assert found.pictures.base is None and found.more[1]["masks"].base is None


def test_what_is_small_needs_no_piece(prefix):
    small = (np.arange(5), "text")
    assert shared.pack(prefix, small) is small and not pieces(prefix)
    assert shared.unpack(small) is small


def test_parcels_that_nobody_opens_are_swept(prefix):
    first, second = (shared.pack(prefix, batch()) for _ in range(2))
    other = shared.new_prefix()
    kept = shared.pack(other, batch())
    assert len(pieces(prefix)) == 2
    shared.sweep(prefix)
    assert not pieces(prefix) and len(pieces(other)) == 1
    shared.unpack(kept)
    for gone in (first, second):
        with pytest.raises(FileNotFoundError):
            shared.unpack(gone)
