"""Packs any data set into ArrayRecord shards, for fast and for remote disks.

    python -m data_prep.array_records --source KIND --root DIR --split S --out OUT

makes the folder OUT/S, which `config.data.source = "array_record"` with
`config.data.root = OUT` reads back with the same image ids, class lists, pixels, masks
and instances, so with the same episodes (`diffup_jax/data/readers/packed.py` says what
a record holds). The images keep their original bytes. The folder is a
tensorflow-datasets one: `tfds.data_source` and `tfds.builder_from_directory` read it
too. No TensorFlow needed.

Idempotent: a folder that was packed from these very files with these options is left
alone. The shards are made in a folder aside, which is renamed when it is whole; what an
interrupted command leaves is removed by the next. Room needed meanwhile: twice the
images on disk, and 1 GB of memory.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from diffup_jax.data.readers import coco, packed
from diffup_jax.data.sources import KINDS, Source, open_source
from diffup_jax.files import left_aside, whole_or_absent
from diffup_jax.types import DiffUpError

# Part of what a folder was made from: a change of the records must change it.
_VERSION = "1.0.0"
# Images encoded by one process at a time: bounds what waits in memory.
_CHUNK = 64


def pack(
    source: Source, out: Path, *, split: str, asked: dict[str, Any], processes: int
) -> bool:
    """Makes OUT/`split` from a source; False when it already is what it should be.

    asked: the options that made the source, "min_area" among them. Raises DiffUpError
    when OUT/`split` is something else, or the source breaks the contract of `Source`.
    """
    folder = out / split
    names = sorted(
        {i for c in range(len(source.class_names)) for i in source.image_ids(c)}
    )
    if not names:
        raise DiffUpError(f"{source.name} in {source.root} has no labelled image.")
    if "/" in split or split.startswith("."):
        raise DiffUpError(f"split {split!r} cannot be the name of a folder.")
    made_from = {**asked, "version": _VERSION, "content": _content(source, names, out)}
    if _is_already(folder, made_from):
        return False
    for left in left_aside(folder):
        shutil.rmtree(left, ignore_errors=True)
    with whole_or_absent(folder) as partial:
        made = _write(source, names, partial, processes)
        shares = made.pop("shares")
        numbers = {name: number for number, name in enumerate(names)}
        facts = {
            "made_by": "data_prep.array_records",
            "made_from": made_from,
            "min_area": asked["min_area"],
            "name": source.name,
            "class_names": list(source.class_names),
            "class_folds": list(source.class_folds),
            "images": names,
            "by_class": [
                [(numbers[i], shares[numbers[i]][c]) for i in source.image_ids(c)]
                for c in range(len(source.class_names))
            ],
            **made,
        }
        (partial / "packed.json").write_text(json.dumps(facts), encoding="utf-8")
    return True


def main(arguments: Sequence[str]) -> int:
    """The command line; exit status 2 and one line for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.array_records",
        description="Pack a data set into ArrayRecord shards.",
    )
    kinds = [kind for kind in KINDS if kind != "array_record"]
    parser.add_argument("--source", required=True, choices=kinds)
    parser.add_argument("--root", required=True, help="folder of the data set")
    parser.add_argument("--split", required=True, help="for example train2014")
    parser.add_argument("--out", required=True, help="folder for all packed splits")
    parser.add_argument("--min-area", type=float, default=0.0)
    parser.add_argument("--crowd", choices=coco.CROWD, default="hsnet")
    parser.add_argument("--overlap", choices=coco.OVERLAP, default="union")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = vars(parser.parse_args(arguments))
    out, processes = Path(options.pop("out")), options.pop("processes")
    kind, split = options.pop("source"), options["split"]
    try:
        source = open_source(kind, **options)
        asked = {"source": kind, **options, "root": source.root}
        made = pack(source, out, split=split, asked=asked, processes=processes)
        _summary(out / split, made)
    except DiffUpError as error:
        print(f"array_records: {error}", file=sys.stderr)
        return 2
    return 0


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The tensorflow-datasets side: one split, in the order given."""

    VERSION = tfds.core.Version(_VERSION)
    name = "diffup"
    # It looks for checksums of downloads beside its code: there are none.
    code_path = None

    def __init__(self, records: Iterator[dict[str, Any]], **options: Any):
        self._records = records
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        numbers = tfds.features.Sequence(np.int32)
        pictures = tfds.features.Sequence(
            tfds.features.Tensor(shape=(), dtype=np.object_)
        )
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(),
            "labels": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            "overlaps": pictures,
            "instances": pictures,
            "classes": numbers,
            "layers": numbers,
            "values": numbers,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Packed by diffup-jax, data_prep.array_records.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # record i is image i of packed.json
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {packed.RECORDS: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(self._records)


def _write(
    source: Source, names: list[str], partial: Path, processes: int
) -> dict[str, Any]:
    """The shards in `partial`; answers files and the shares of classes."""
    shares: list[dict[int, float]] = []
    original = 0

    def records() -> Iterator[dict[str, Any]]:
        nonlocal original
        progress = tqdm(total=len(names), desc="packing", unit="image", disable=None)
        with progress:
            for record in _encoded(source, names, processes):
                shares.append(record.pop("shares"))
                original += record.pop("is_original")
                yield record
                progress.update()

    tfds.disable_progress_bar()
    builder = _Builder(
        records(),
        data_dir=str(partial / "made"),
        file_format=tfds.core.FileFormat.ARRAY_RECORD,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it greets with a banner
        builder.download_and_prepare()
    for file in Path(builder.data_dir).iterdir():
        file.rename(partial / file.name)
    shutil.rmtree(partial / "made")  # by now folders of its name and version
    shards = sorted(partial.glob("*.array_record*"))
    return {
        "files": {shard.name: shard.stat().st_size for shard in shards},
        "original": original,
        "shares": shares,
    }


def _encoded(
    source: Source, names: list[str], processes: int
) -> Iterator[dict[str, Any]]:
    files = _image_files(source, names)
    chunks = [
        [(name, files[name]) for name in names[first : first + _CHUNK]]
        for first in range(0, len(names), _CHUNK)
    ]
    if processes == 1:
        for chunk in chunks:
            yield from _encode_all(source, chunk)
        return
    # Not fork: the caller may have threads.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, context) as pool:
        running: list[concurrent.futures.Future] = []
        for chunk in chunks:
            running.append(pool.submit(_encode_all, source, chunk))
            if len(running) > processes:
                yield from running.pop(0).result()
        for one in running:
            yield from one.result()


def _encode_all(source: Source, chunk: Sequence[tuple]) -> list[dict[str, Any]]:
    return [packed.encode(source, name, files) for name, files in chunk]


def _image_files(source: Source, names: Sequence[str]) -> dict[str, list[str]]:
    """For each image the files that may hold its original bytes.

    A source may tell by a method `path`; else the files below its root are asked whose
    path without ending is the image id or ends with it.
    """
    if hasattr(source, "path"):
        return {name: [source.path(name)] for name in names}
    by_stem: dict[str, list[tuple[str, str]]] = {}
    for file, _ in _tree(Path(source.root), ()):
        whole, ending = os.path.splitext(file)
        if ending.lower() in (".jpg", ".jpeg", ".png"):
            by_stem.setdefault(os.path.basename(whole), []).append((whole, file))
    return {
        name: sorted(
            file
            for whole, file in by_stem.get(os.path.basename(name), ())
            if f"/{whole}".endswith(f"/{name}")
        )
        for name in names
    }


def _tree(root: Path, without: Sequence[Path]) -> Iterator[tuple[str, os.stat_result]]:
    """Every file below a folder, links followed once, with its size and time."""
    seen = {os.path.realpath(folder) for folder in without}
    waiting = [str(root)]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.is_dir():
                waiting.append(entry.path)
            elif entry.is_file():
                yield entry.path, entry.stat()


def _content(source: Source, names: Sequence[str], out: Path) -> str:
    """A hash over the lists of the source and all files below its root."""
    digest = hashlib.sha256()
    lists = [source.image_ids(c) for c in range(len(source.class_names))]
    digest.update(json.dumps([source.class_names, source.class_folds, lists]).encode())
    for file, stat in _tree(Path(source.root), [out]):
        if not file.endswith(".index"):  # our own, may come and go
            digest.update(f"{file} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _is_already(folder: Path, made_from: dict[str, Any]) -> bool:
    """Whether the folder is whole and made from these; refuses one that is not ours."""
    if not folder.exists():
        return False
    try:
        facts = json.loads((folder / "packed.json").read_text(encoding="utf-8"))
        ours = facts["made_by"] == "data_prep.array_records"
        sizes, was = facts["files"], facts["made_from"]
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise DiffUpError(
            f"{folder} exists and is not a folder this program made: name another "
            "--out, or remove it."
        )
    found = {
        shard.name: shard.stat().st_size for shard in folder.glob("*.array_record*")
    }
    return was == made_from and found == sizes


def _summary(folder: Path, made: bool) -> None:
    facts = json.loads((folder / "packed.json").read_text(encoding="utf-8"))
    images, size = len(facts["images"]), sum(facts["files"].values())
    pairs = sum(map(len, facts["by_class"]))
    empty = [
        name
        for name, rows in zip(facts["class_names"], facts["by_class"], strict=True)
        if not rows
    ]
    print(f"{folder}: {'written' if made else 'already there, nothing to do'}")
    print(
        f"  {images} images ({facts['original']} as their original bytes, the others "
        f"as PNG), {pairs} (image, class) pairs, {len(facts['files'])} shards, "
        f"{size / 2**20:.1f} MiB"
    )
    if empty:
        print(
            f"  {len(empty)} classes without an image: {', '.join(empty[:10])}", end=""
        )
        print(" ..." if len(empty) > 10 else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
