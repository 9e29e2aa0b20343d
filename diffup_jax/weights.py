"""F1: weight files in and out, and their conversion by a table with double-entry books.

A conversion is data: rows (source key, target path, transform). The bookkeeping accepts
a file only when every source key is used by a row or named by an ignore pattern, every
target is filled exactly once, shapes agree and all values are finite; every problem
found is told in one error. So a silent partial load cannot happen.

Files: safetensors (memory-mapped: what is not touched is not read), npz (never with
pickled objects), and `.pth`/`.pt` when torch is installed (weights only, no code is
run). Targets are nested dictionaries; their paths are written with "/", as in
`params/stem_conv/kernel`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
from flax.traverse_util import flatten_dict, unflatten_dict

from diffup_jax.files import whole_or_absent
from diffup_jax.types import DiffUpError

PROVIDE = (
    "Give the file with --config.backbone.weights=PATH, or ask for untrained values by "
    'name with --config.backbone.weights=random (weights="random").'
)
READABLE = (".safetensors", ".npz", ".pth", ".pt")
# What safetensors calls the element types that weights come in.
_TYPES = {
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("int64"),
    "I32": np.dtype("int32"),
    "U8": np.dtype("uint8"),
    "BOOL": np.dtype("bool"),
}
# XLA takes an array over without a copy only from such an address.
_ALIGNED = 64
# An error shows this many problems of each kind; a wrong file can have hundreds.
_SHOWN = 5


def same(array: np.ndarray) -> np.ndarray:
    """Transform of a row whose source already has our layout."""
    return array


def oihw(array: np.ndarray) -> np.ndarray:
    """Transform of a convolution kernel [o i h w], as torch and Caffe keep it."""
    return array.transpose(2, 3, 1, 0)


class Row(NamedTuple):
    """One entry: the array at `source`, transformed, fills `target` ("a/b/c")."""

    source: str
    target: str
    transform: Callable[[np.ndarray], np.ndarray]


class Table(NamedTuple):
    """One file layout. `ignore` holds patterns (full match) of keys left unused."""

    layout: str
    rows: tuple[Row, ...]
    ignore: tuple[str, ...]


def own_layout(target_shapes: Mapping[str, Any]) -> Table:
    """The table of files written by `save`: keys are the target paths themselves."""
    paths = flatten_dict(target_shapes, sep="/")
    return Table("diffup-jax", tuple(Row(path, path, same) for path in paths), ())


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All arrays of a weights file by key, as the file names them.

    Environment variables in `path` are expanded. Raises DiffUpError when the file is
    missing, of an unknown kind, damaged, or needs torch and torch is not installed.
    """
    file = Path(os.path.expandvars(path)).expanduser()
    if not file.is_file():
        raise DiffUpError(f"No weights file at {str(file)!r}. {PROVIDE}")
    if file.suffix not in READABLE:
        raise DiffUpError(
            f"Weights file {str(file)!r} ends with {file.suffix!r}; this program reads "
            f"{', '.join(READABLE)}. {PROVIDE}"
        )
    try:
        if file.suffix == ".safetensors":
            return _mapped(file)[0]
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        return _read_torch(file)
    except DiffUpError:
        raise
    # Each reader has its own family of errors for a damaged file (zip, pickle, header).
    except Exception as error:
        raise DiffUpError(
            f"Weights file {str(file)!r} cannot be read as {file.suffix}: {error}. "
            "The file is damaged or of another kind; fetch it again."
        ) from error


def save(path: str | os.PathLike, params: Mapping[str, Any], *, half: bool) -> None:
    """Write `params` as safetensors in our own layout; the old file stays until done.

    `half` keeps arrays of two or more axes as float16. Vectors (norm statistics,
    biases) stay float32: they weigh nothing, and a variance may leave float16's range.
    """
    arrays = {}
    for key, value in flatten_dict(params, sep="/").items():
        array = np.asarray(value, dtype=np.float32)
        if half and array.ndim >= 2:
            with np.errstate(over="ignore"):  # told below, with the array's name
                array = array.astype(np.float16)
        if not np.isfinite(array).all():
            raise DiffUpError(
                f"{key} holds values that are not finite{' in float16' * half}; "
                f"{str(path)!r} was not written. Save a healthy state, or without half."
            )
        arrays[key] = array
    _write(Path(path), arrays, {})


def save_converted(
    path: str | os.PathLike, params: Mapping[str, Any], *, digest: str
) -> None:
    """Write float32 `params`, known to be sound, for `load_converted`."""
    _write(Path(path), flatten_dict(params, sep="/"), {"digest": digest})


def load_converted(path: str | os.PathLike) -> tuple[dict[str, Any], str]:
    """(params, digest) of a file by `save_converted`, memory-mapped: no value is read
    before it is used, so this takes milliseconds for any size.

    Raises DiffUpError when the file is damaged.
    """
    try:
        arrays, facts = _mapped(Path(path))
        return unflatten_dict(arrays, sep="/"), facts["digest"]
    except Exception as error:  # as in `read`
        raise DiffUpError(f"{str(path)!r} is damaged ({error}); delete it.") from error


def best_table(
    tables: tuple[Table, ...],
    source: Mapping[str, np.ndarray],
    *,
    target_shapes: Mapping[str, Any],
) -> tuple[Table, int]:
    """The layout that most keys of the file fit, by name and shape, and their number.

    Between equals the layout that knows more names is taken, then the first one.
    """
    wanted = flatten_dict(target_shapes, sep="/")
    scores = []
    for table in tables:
        named = [r for r in table.rows if r.source in source and r.target in wanted]
        fits = {
            row.source
            for row in named
            if _shape(row, source[row.source]) == tuple(wanted[row.target].shape)
        }
        scores.append((len(fits), len(named)))
    best = max(range(len(tables)), key=scores.__getitem__)
    return tables[best], scores[best][0]


def convert(
    table: Table,
    source: Mapping[str, np.ndarray],
    *,
    target_shapes: Mapping[str, Any],
    what: str,
) -> dict[str, Any]:
    """Source arrays to a nested dictionary of float32, shaped like `target_shapes`.

    `target_shapes` is a nested dictionary of anything with a `shape`; `what` opens the
    error message and says which file was read for which network. A source may feed
    several targets (a fused projection), a target is filled exactly once. Raises one
    DiffUpError that lists every problem of the bookkeeping.
    """
    wanted = flatten_dict(target_shapes, sep="/")
    found: dict[str, np.ndarray] = {}
    problems: dict[str, list[str]] = {
        "missing in the file": [],
        "not used by the network and not on the ignore list": [],
        "of another shape": [],
        "not finite floating-point numbers": [],
        "filled twice": [],
        "unknown to the network": [],
        "filled by no row": [],
    }
    for row in table.rows:
        if row.target not in wanted:
            problems["unknown to the network"].append(row.target)
        elif row.target in found:
            problems["filled twice"].append(row.target)
        elif row.source not in source:
            problems["missing in the file"].append(row.source)
            found[row.target] = np.zeros(0, np.float32)
        else:
            found[row.target] = _fill(row, source, wanted[row.target].shape, problems)
    problems["filled by no row"] = sorted(wanted.keys() - found.keys())
    used = {row.source for row in table.rows}
    problems["not used by the network and not on the ignore list"] = [
        key
        for key in source
        if key not in used and not any(re.fullmatch(p, key) for p in table.ignore)
    ]
    if any(problems.values()):
        raise DiffUpError(
            f"{what}: the weights do not fit (layout {table.layout!r}).\n"
            + "\n".join(_tell(k, v) for k, v in problems.items() if v)
        )
    return unflatten_dict(found, sep="/")


def random(target_shapes: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
    """Untrained values by numpy: kernels He-normal over their fan-in (arXiv
    1502.01852), other arrays of two or more axes (positions, embeddings) normal with
    deviation 0.02, `scale` and `var` one, everything else zero.

    Made here rather than by the module's own initialisers because compiling those takes
    many seconds for a deep network.
    """
    generator = np.random.default_rng(seed)
    made = {}
    for path, like in sorted(flatten_dict(target_shapes, sep="/").items()):
        leaf = path.rpartition("/")[2]
        if leaf == "kernel" or len(like.shape) >= 2:
            fan = np.prod(like.shape[:-1])
            deviation = np.sqrt(2.0 / fan) if leaf == "kernel" else 0.02
            made[path] = np.float32(deviation) * generator.standard_normal(
                like.shape, dtype=np.float32
            )
        else:
            fill = 1.0 if leaf in ("scale", "var") else 0.0
            made[path] = np.full(like.shape, fill, np.float32)
    return unflatten_dict(made, sep="/")


def digest(params: Mapping[str, Any]) -> str:
    """16 hexadecimal digits over the sorted paths, shapes, dtypes and bytes."""
    state = hashlib.sha256()
    for path, value in sorted(flatten_dict(params, sep="/").items()):
        array = np.asarray(value)
        state.update(f"{path} {array.shape} {array.dtype}\n".encode())
        state.update(array.tobytes())
    return state.hexdigest()[:16]


def _mapped(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays, metadata) of a safetensors file. The arrays are views of the mapped
    file, writable without changing it.
    """
    with safetensors.safe_open(file, framework="numpy") as checked:
        del checked  # opening it has judged the header against the file's size
    with open(file, "rb") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(start - 8))
    metadata = header.pop("__metadata__", {})
    data = np.memmap(file, dtype=np.uint8, mode="c")
    arrays = {}
    for key, entry in header.items():
        first, last = (start + offset for offset in entry["data_offsets"])
        dtype = _TYPES.get(entry["dtype"])
        if dtype is None:
            raise DiffUpError(
                f"Weights file {str(file)!r} holds {key} as {entry['dtype']}; expected "
                f"one of {', '.join(_TYPES)}. Save it as F32."
            )
        arrays[key] = np.asarray(data[first:last]).view(dtype).reshape(entry["shape"])
    return arrays, metadata


def _write(target: Path, arrays: Mapping[str, Any], metadata: dict[str, str]) -> None:
    """A safetensors file that is whole or absent.

    Written here, not by the library, to place arrays where XLA can take them over as
    they lie: those of a whole number of blocks first, behind a padded header.
    """
    names = {np.dtype(dtype): name for name, dtype in _TYPES.items()}
    arrays = {key: np.asarray(arrays[key], order="C") for key in sorted(arrays)}
    keys = sorted(arrays, key=lambda key: (arrays[key].nbytes % _ALIGNED != 0, key))
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for key in keys:
        array = arrays[key]
        header[key] = {
            "dtype": names[array.dtype],
            "shape": array.shape,
            "data_offsets": (offset, offset + array.nbytes),
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNED)
    with whole_or_absent(target) as partial, open(partial, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for key in keys:
            stream.write(arrays[key].reshape(-1).view(np.uint8))


def _fill(row: Row, source, shape: tuple[int, ...], problems) -> np.ndarray:
    array = source[row.source]
    # By name: bfloat16 is an extension type, which np.floating does not cover.
    if "float" not in array.dtype.name:
        problems["not finite floating-point numbers"].append(
            f"{row.source} ({array.dtype})"
        )
        return array
    given = _shape(row, array)
    if given != tuple(shape):
        problems["of another shape"].append(
            f"{row.source} gives {given}, {row.target} needs {tuple(shape)}"
        )
        return array
    array = np.asarray(row.transform(array.astype(np.float32)), order="C")
    if not np.isfinite(array).all():
        problems["not finite floating-point numbers"].append(row.source)
    return array


def _shape(row: Row, array: np.ndarray) -> tuple[int, ...]:
    """Shape after the row's transform, or the source's own where that cannot apply."""
    try:
        return row.transform(array).shape
    except ValueError:  # the transform expects another number of axes
        return array.shape


def _tell(kind: str, items: list[str]) -> str:
    more = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"  {len(items)} {kind}: {', '.join(items[:_SHOWN])}{more}"


def _read_torch(file: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise DiffUpError(
            f"Weights file {str(file)!r} is a torch file and torch is not installed. "
            "Install it (pip install 'diffup-jax[parity]'), or use the same weights as "
            ".safetensors."
        ) from error
    state = torch.load(file, map_location="cpu", weights_only=True)
    strange = [key for key, value in dict(state).items() if not torch.is_tensor(value)]
    if strange:
        raise DiffUpError(
            f"Weights file {str(file)!r} is not a flat state dict: {strange[:_SHOWN]} "
            "are not tensors. Save the network's own state_dict() in it."
        )
    return {
        key: (value.float() if value.is_floating_point() else value).numpy()
        for key, value in state.items()
    }
