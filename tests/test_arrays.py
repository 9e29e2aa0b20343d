"""A store of arrays: what comes back is what was written, and damage is found."""

from __future__ import annotations

import json
import pickle
import warnings

import numpy as np
import pytest

from diffup_jax import arrays
from diffup_jax.arrays import RowWriter, Spec
from diffup_jax.types import DiffUpError

ARRAYS = {
    "a": np.arange(7, dtype=np.int16),
    "empty": np.zeros((0, 2), np.float64),
    "text": np.array([b"one", b"three"]),
    "table": np.arange(6.0).reshape(2, 3),
    "turned": np.arange(6).reshape(2, 3).T,
}
FACTS = {"fact": [1, "b"]}


def unwanted():
    raise AssertionError("made again")


def kept(path, key="k", make=None):
    def write():
        arrays.write(path, key, ARRAYS, facts=FACTS)

    return arrays.open_or_make(path, key, make or write)


def test_arrays_come_back_as_they_were(tmp_path):
    stored = kept(tmp_path / "new" / "store")
    opened = kept(tmp_path / "new" / "store", make=unwanted)
    for one in (stored, opened, pickle.loads(pickle.dumps(stored))):
        assert one.facts == FACTS
        assert one.nbytes == sum(array.nbytes for array in ARRAYS.values())
        for name, array in ARRAYS.items():
            assert one.specs[name] == (array.dtype, array.shape)
            assert one[name].dtype == array.dtype
            np.testing.assert_array_equal(one[name], array)
            assert one[name].ctypes.data % 64 == 0 or not array.size
            with pytest.raises(ValueError, match="read-only"):
                one[name][...] = array
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["store"]


def test_every_flipped_byte_and_every_cut_is_found(tmp_path):
    path = tmp_path / "store"
    kept(path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.warns(RuntimeWarning, match=r"store is damaged and made again"):
            kept(path)
        assert path.read_bytes() == whole
    for length in (0, 10, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.warns(RuntimeWarning, match=r"store is damaged and made again"):
            kept(path)


def test_damage_is_told_with_its_array(tmp_path):
    path = tmp_path / "store"
    kept(path)
    content = path.read_bytes().replace(b"three", b"thref")
    path.write_bytes(content)
    with pytest.warns(RuntimeWarning, match="'text' has another digest"):
        kept(path)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.warns(RuntimeWarning, match=rf"{len(content) + 1} bytes, not"):
        kept(path)
    with pytest.warns(RuntimeWarning, match="its key is 'k', not 'other'"):
        kept(path, key="other")


def test_a_worker_is_told_what_became_of_the_file(tmp_path):
    sent = pickle.dumps(kept(tmp_path / "store"))
    kept_again = (tmp_path / "store").read_bytes()
    (tmp_path / "store").unlink()
    (tmp_path / "store").write_bytes(kept_again[:-1])
    with pytest.raises(DiffUpError, match=r"store is not .*bytes, not .*Start again"):
        pickle.loads(sent)
    (tmp_path / "store").unlink()
    with pytest.raises(DiffUpError, match="No such file"):
        pickle.loads(sent)


# --- Row by row -----------------------------------------------------------------------

ROWS = 5
SPECS = {
    "maps": Spec(np.dtype(np.float16), (ROWS, 3, 2)),
    "valid": Spec(np.dtype(bool), (ROWS,)),
    "empty": Spec(np.dtype(np.float16), (ROWS, 0)),
}


def rows(first, count):
    number = np.arange(first, first + count)
    return {
        "maps": np.broadcast_to(number[:, None, None] / 16, (count, 3, 2)),
        "valid": number % 2 == 0,
        "empty": np.zeros((count, 0)),
    }


def writer(path, facts=FACTS):
    return RowWriter(path, "k", facts=facts, specs=SPECS)


def finished(one):
    one.append(rows(one.done, 3))
    one.append(rows(one.done, 3))  # the last one is longer than what is missing
    one.finish()


def test_rows_are_the_store_that_is_written_at_once(tmp_path):
    finished(writer(tmp_path / "rows"))
    whole = {n: rows(0, ROWS)[n].astype(spec.dtype) for n, spec in SPECS.items()}
    arrays.write(tmp_path / "once", "k", whole, facts=FACTS)
    assert (tmp_path / "rows").read_bytes() == (tmp_path / "once").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["once", "rows"]


def test_a_stopped_writer_goes_on_and_ends_the_same(tmp_path):
    finished(writer(tmp_path / "straight"))
    one = writer(tmp_path / "cut")
    assert one.done == 0
    one.append(rows(0, 2))
    with pytest.raises(ValueError, match="2 of 5 rows"):
        one.finish()
    assert not (tmp_path / "cut").exists()
    one = writer(tmp_path / "cut")
    assert one.done == 2
    one.append(rows(2, 3))
    writer(tmp_path / "cut").finish()  # stopped once more, after the last row
    straight = (tmp_path / "straight").read_bytes()
    assert (tmp_path / "cut").read_bytes() == straight


@pytest.mark.parametrize("how", ["flipped", "cut", "gone", "progress", "facts"])
def test_a_part_that_is_not_what_was_left_is_begun_again(tmp_path, how):
    writer(tmp_path / "store").append(rows(0, 4))
    part, progress = tmp_path / "store.part", tmp_path / "store.part.json"
    content = part.read_bytes()
    if how == "flipped":
        at = content.index(rows(1, 1)["maps"].astype(np.float16).tobytes())
        part.write_bytes(content[:at] + b"?" + content[at + 1 :])
    elif how == "cut":
        part.write_bytes(content[:100])
    elif how == "gone":
        part.unlink()
    elif how == "progress":
        progress.write_text(progress.read_text()[:-9])
    with pytest.warns(RuntimeWarning, match=r"store.part .*made from the start"):
        one = writer(tmp_path / "store", facts={} if how == "facts" else FACTS)
    assert one.done == 0
    finished(one)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stored = arrays.open_or_make(tmp_path / "store", "k", unwanted)
    np.testing.assert_array_equal(stored["maps"], rows(0, ROWS)["maps"])
    assert json.loads(json.dumps(stored.facts)) == ({} if how == "facts" else FACTS)
