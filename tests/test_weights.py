"""Weight files and the conversion's bookkeeping: nothing dropped, nothing guessed."""

import builtins

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from diffup_jax import weights
from diffup_jax.types import DiffUpError
from diffup_jax.weights import Row, Table, oihw, same

TABLE = Table(
    "test",
    (Row("conv.weight", "params/conv/kernel", oihw), Row("b", "params/bias", same)),
    (r"head\..*",),
)


def _shapes():
    return {
        "params": {
            "conv": {"kernel": jax.ShapeDtypeStruct((3, 3, 2, 5), np.float32)},
            "bias": jax.ShapeDtypeStruct((5,), np.float32),
        }
    }


def _source():
    rng = np.random.default_rng(0)
    return {
        "conv.weight": rng.normal(size=(5, 2, 3, 3)).astype(np.float32),
        "b": rng.normal(size=5).astype(np.float32),
        "head.weight": np.zeros((7, 5), np.float32),
    }


def _convert(source, table=TABLE):
    return weights.convert(table, source, target_shapes=_shapes(), what="a file")


def _problems(source, table=TABLE) -> str:
    with pytest.raises(DiffUpError) as caught:
        _convert(source, table)
    return str(caught.value)


def test_convert_moves_every_value_to_its_place():
    source = _source()
    params = _convert(source)
    kernel = params["params"]["conv"]["kernel"]
    for o, i, y, x in np.ndindex(5, 2, 3, 3):
        assert kernel[y, x, i, o] == source["conv.weight"][o, i, y, x]
    np.testing.assert_array_equal(params["params"]["bias"], source["b"])


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_convert_gives_float32_whatever_the_file_holds(dtype):
    source = {key: value.astype(dtype) for key, value in _source().items()}
    leaves = jax.tree.leaves(_convert(source))
    assert all(leaf.dtype == np.float32 for leaf in leaves)


def test_every_problem_is_in_one_error():
    source = _source() | {"extra": np.zeros(1, np.float32)}
    source["conv.weight"] = source["conv.weight"][:4]
    del source["b"]
    told = _problems(source)
    assert told.startswith("a file")
    for part in ("extra", "1 missing in the file: b", "conv.weight gives (3, 3, 2, 4)"):
        assert part in told


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"b": np.zeros(5, np.int32)}, r"b (int32)"),
        ({"b": np.full(5, np.nan, np.float32)}, "not finite"),
        ({"conv.weight": np.zeros(90, np.float32)}, "conv.weight gives (90,)"),
    ],
)
def test_wrong_values_are_named(change, part):
    assert part in _problems(_source() | change)


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        (TABLE.rows[:1], "1 filled by no row: params/bias"),
        ((*TABLE.rows, TABLE.rows[1]), "1 filled twice: params/bias"),
        ((*TABLE.rows, Row("b", "params/c", same)), "unknown to the network: params/c"),
    ],
)
def test_a_wrong_table_is_found_out(rows, part):
    assert part in _problems(_source(), TABLE._replace(rows=rows))


def test_one_source_may_feed_two_targets():
    shapes = {k: jax.ShapeDtypeStruct((2,), np.float32) for k in ("q", "k")}
    fused = np.arange(4, dtype=np.float32)
    table = Table(
        "fused",
        (Row("qk", "q", lambda a: a[:2]), Row("qk", "k", lambda a: a[2:])),
        (),
    )
    got = weights.convert(table, {"qk": fused}, target_shapes=shapes, what="x")
    np.testing.assert_array_equal(np.concatenate([got["q"], got["k"]]), fused)


def test_best_table_goes_by_shape_before_name():
    source = _source()
    plain = Table("plain", (TABLE.rows[0]._replace(transform=same), TABLE.rows[1]), ())
    best, fits = weights.best_table((plain, TABLE), source, target_shapes=_shapes())
    assert (best.layout, fits) == ("test", 2)


def test_every_float_type_is_read_and_others_are_named(tmp_path):
    file = tmp_path / "w.safetensors"
    values = np.array([[1.5, -2.0]])
    for dtype in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16):
        safetensors.numpy.save_file({"a": values.astype(dtype)}, file)
        read = weights.read(file)["a"]
        assert read.dtype == dtype
        np.testing.assert_array_equal(read.astype(np.float64), values)
    safetensors.numpy.save_file({"a": values.astype(np.uint16)}, file)
    with pytest.raises(DiffUpError, match="holds a as U16"):
        weights.read(file)


def test_a_mapped_array_can_be_changed_and_the_file_stays(tmp_path):
    file = tmp_path / "w.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, file)
    weights.read(file)["a"][:] = 1
    assert not weights.read(file)["a"].any()


def test_converted_files_are_plain_safetensors_that_xla_takes_over(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"a": (3,), "b": (16, 5), "c": (), "d": (7, 64), "e": (0, 2)}
    params = {k: {"w": rng.normal(size=s).astype("f")} for k, s in shapes.items()}
    file = tmp_path / "w.safetensors"
    weights.save_converted(file, params, digest="0123")
    loaded, digest = weights.load_converted(file)
    assert digest == "0123"
    assert weights.digest(loaded) == weights.digest(params)
    by_library = safetensors.numpy.load_file(file)
    for key, shape in shapes.items():
        np.testing.assert_array_equal(by_library[f"{key}/w"], params[key]["w"])
        assert loaded[key]["w"].shape == shape
        if np.prod(shape) * 4 % 64 == 0:
            assert loaded[key]["w"].ctypes.data % 64 == 0
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DiffUpError, match="damaged"):
        weights.load_converted(file)


@pytest.mark.parametrize("half", [False, True])
def test_save_and_read_round_trip(tmp_path, half):
    params = _convert(_source())
    file = tmp_path / "w.safetensors"
    weights.save(file, params, half=half)
    assert [f.name for f in tmp_path.iterdir()] == ["w.safetensors"]
    table = weights.own_layout(_shapes())
    again = _convert(weights.read(file), table)
    kernel = params["params"]["conv"]["kernel"]
    kept = kernel.astype(np.float16).astype(np.float32) if half else kernel
    np.testing.assert_array_equal(again["params"]["conv"]["kernel"], kept)
    np.testing.assert_array_equal(again["params"]["bias"], params["params"]["bias"])


def test_save_of_broken_values_leaves_the_old_file(tmp_path):
    params = _convert(_source())
    file = tmp_path / "w.safetensors"
    weights.save(file, params, half=True)
    before = file.read_bytes()
    params["params"]["conv"]["kernel"][0, 0, 0, 0] = 1e6  # no float16 is that large
    with pytest.raises(DiffUpError, match="params/conv/kernel.*float16"):
        weights.save(file, params, half=True)
    assert file.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_npz_and_safetensors_read_the_same(tmp_path, monkeypatch):
    source = _source()
    np.savez(tmp_path / "w.npz", **source)
    safetensors.numpy.save_file(source, tmp_path / "w.safetensors")
    monkeypatch.setenv("WEIGHTS_FOLDER", str(tmp_path))
    for name in ("w.npz", "w.safetensors"):
        read = weights.read(f"$WEIGHTS_FOLDER/{name}")
        assert read.keys() == source.keys()
        for key, value in source.items():
            np.testing.assert_array_equal(read[key], value)


def test_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.array([{"code": 1}], dtype=object))
    with pytest.raises(DiffUpError, match="cannot be read"):
        weights.read(tmp_path / "w.npz")


def test_reading_errors_say_what_to_do(tmp_path):
    with pytest.raises(DiffUpError, match=r"absent\.npz.*config\.backbone\.weights="):
        weights.read(tmp_path / "absent.npz")
    for name, told in (("w.h5", r"'\.h5'"), ("w.safetensors", "cannot be read")):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(DiffUpError, match=told):
            weights.read(tmp_path / name)


def test_torch_file_without_torch_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "w.pth").write_bytes(b"")
    ordinary = builtins.__import__

    def without_torch(name, *args, **kwargs):
        if name == "torch":
            raise ImportError(name)
        return ordinary(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(DiffUpError, match=r"diffup-jax\[parity\]"):
        weights.read(tmp_path / "w.pth")


def test_random_is_he_normal_and_seeded():
    shapes = {
        "params": {
            "kernel": jax.ShapeDtypeStruct((3, 3, 32, 64), np.float32),
            "scale": jax.ShapeDtypeStruct((64,), np.float32),
            "bias": jax.ShapeDtypeStruct((64,), np.float32),
        }
    }
    one, same_seed, other = (weights.random(shapes, seed=s) for s in (1, 1, 2))
    assert weights.digest(one) == weights.digest(same_seed) != weights.digest(other)
    kernel = one["params"]["kernel"]
    assert abs(kernel.std() / np.sqrt(2 / (9 * 32)) - 1) < 0.03
    assert (one["params"]["scale"] == 1).all()
    assert (one["params"]["bias"] == 0).all()


def test_digest_sees_values_shapes_paths_and_dtypes_but_not_order():
    base = {"a": np.arange(6, dtype=np.float32), "b": np.ones(2, np.float32)}
    digest = weights.digest(base)
    assert len(digest) == 16
    assert int(digest, 16) >= 0
    assert weights.digest({"b": base["b"], "a": base["a"]}) == digest
    nudged = base["a"].copy()
    nudged[3] = np.nextafter(nudged[3], 9)
    for change in (
        {"a": nudged},
        {"a": base["a"].reshape(2, 3)},
        {"a": base["a"].astype(np.float64)},
        {"c": base["b"]},
    ):
        assert weights.digest(base | change) != digest
