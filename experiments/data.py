"""How fast episodes are made, and what the index of full-size COCO costs.

    python -m experiments.data throughput    [--repeats 3] [--batches 24]
    python -m experiments.data index         [--repeats 3]

throughput: episodes of 384 x 384 pixels, 1- and 5-shot, from loose COCO files, from
ArrayRecord shards and from the loop that people write in PyTorch with PIL and
pycocotools (COCO index, annToMask and union, bilinear image, nearest mask, numpy
stack), in turn within one run, each repeated. One worker process and two; the loop in
one process, as plain loops are, and in two. "float" is the same loop with the division
and normalisation that PyTorch loaders do on the CPU (here the device does it). All make
the same draws. "CPU" is the processor time of an episode over all processes: unlike the
speed it hardly changes when other programs run. Data: real COCO images where
DIFFUP_REALDATA or ../shared/realdata has them, else drawn scenes of 480 pixels.

index: an instances JSON with 82 081 images and 604 907 annotations, as COCO train2014
has (polygons of its mean number of corners), opened cold (parse and write) and warm
(map), by a fresh process each; then the memory of a spawned worker that has imported
the pipeline and made 2000 masks. "own" is private memory (USS), what one more worker
costs; "rss" counts pages shared with others as well.

Numbers depend on the machine: read the ratios. Run it when nothing else runs.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diffup_jax.data import episodes, pipeline, protocols
from diffup_jax.data.options import DataSettings
from diffup_jax.data.sources import open_source

SIZE = 384
BATCH = 8
IMAGES, ANNOTATIONS = 82_081, 604_907
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def throughput(repeats: int, batches: int) -> None:
    """Prints episodes per second and ratios to the single-process loop."""
    with tempfile.TemporaryDirectory() as folder:
        root, split = _images(Path(folder))
        options = {"split": split, "min_area": 0.0, "crowd": "hsnet"}
        loose = open_source("coco", root=str(root), **options)
        packed = _pack(loose, Path(folder) / "packed", split)
        json_path = root / "annotations" / f"instances_{split}.json"
        for shots in (1, 5):
            classes = [
                c
                for c in range(len(loose.class_names))
                if len(loose.image_ids(c)) > shots
            ]
            draws = episodes.clean_draws(
                loose, classes, shots=shots, count=batches * BATCH, seed=0
            )
            loop = functools.partial(_loop, str(json_path), loose.paths, draws)
            ways: dict[str, Callable[[], tuple[float, float]]] = {
                "loop, 1 process": lambda loop=loop: loop(False),
                "loop, float, 1 process": lambda loop=loop: loop(True),
                "loop, 2 processes": lambda loop=loop: _both(loop),
            }
            for name, source in (("loose", loose), ("ArrayRecord", packed)):
                for workers in (1, 2):
                    ways[f"{name}, {workers} worker{'s' * (workers > 1)}"] = (
                        functools.partial(_ours, source, draws, workers)
                    )
            _table(
                f"{shots}-shot, {len(loose.paths)} images of {root.name}", ways, repeats
            )


def index(repeats: int) -> None:
    """Prints start-up times and memory with an index of full size."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cache = root / "cache"
        os.environ["DIFFUP_CACHE"] = str(cache)
        path = _full_size(root)
        print(f"{path.stat().st_size / 2**20:.0f} MiB of JSON")
        for overlap in ("union", "painted"):
            for _ in range(repeats):
                for state in ("cold", "warm"):
                    if state == "cold":
                        shutil.rmtree(cache, ignore_errors=True)
                        if overlap == "painted":  # costs beside the index itself
                            _alone(spawn, _open, str(root), "union")
                    took, cpu, peak, sent, worker = _alone(
                        spawn, _open, str(root), overlap
                    )
                    print(
                        f"{overlap:8s} {state}: open {took:6.2f} s ({cpu:.2f} s CPU), "
                        f"peak {peak:5.0f} MB; sent {sent / 2**20:.1f} MiB; "
                        f"worker own {worker[1]:.0f} MB, rss {worker[0]:.0f} MB"
                    )
        sizes = {
            p.name: f"{p.stat().st_size / 2**20:.0f} MiB" for p in path.parent.glob("*")
        }
        print(sizes)
        print(
            "worker without a source: own {1:.0f} MB, rss {0:.0f} MB".format(
                *_alone(spawn, _memory_of_worker, None)
            )
        )


def _table(
    title: str, ways: dict[str, Callable[[], tuple[float, float]]], repeats: int
) -> None:
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    costs: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():  # in turn: a slow minute hits all of them
            speed, cost = run()
            speeds[name].append(speed)
            costs[name].append(1000 * cost)
    base = speeds[next(iter(ways))]
    print(f"\n{title}: median of {repeats} (least, most)", flush=True)
    print(f"  {'':24s} {'episodes/s':>24s}   {'to the loop':>18s}   CPU ms/episode")
    for name, found in speeds.items():
        ratios = [a / b for a, b in zip(found, base, strict=True)]
        cost = statistics.median(costs[name])
        print(
            f"  {name:24s} {statistics.median(found):7.1f} "
            f"({min(found):6.1f}, {max(found):6.1f})   "
            f"{statistics.median(ratios):5.2f} "
            f"({min(ratios):.2f}, {max(ratios):.2f})   {cost:5.1f}",
            flush=True,
        )


def _ours(source, draws: Sequence, workers: int) -> tuple[float, float]:
    """Episodes per second and CPU seconds of one, after each worker's first batch."""
    batches = pipeline.evaluation_batches(
        source,
        draws,
        numbers=range(len(draws)),
        cue="mask",
        protocol=protocols.get("hsnet"),
        data=DataSettings(image_size=SIZE),
        batch_size=BATCH,
        seed=0,
        texts=None,
        workers=workers,
    )
    for _ in range(workers):
        next(batches)
    start, spent = time.perf_counter(), _cpu()
    timed = len(draws) // BATCH - workers
    for _ in range(timed):
        next(batches)
    count = timed * BATCH
    # Read before the workers end: the time of a process that is gone is not told.
    speed, cost = count / (time.perf_counter() - start), (_cpu() - spent) / count
    batches.close()
    return speed, cost


def _cpu() -> float:
    """CPU seconds of this process and of the ones it started that still run."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _loop(
    json_path: str, paths: dict[str, str], draws: Sequence, as_float: bool
) -> tuple[float, float]:
    """Episodes per second and CPU seconds of one, after the loop's first batch."""
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(json_path)
    categories = sorted(coco.cats)
    ids = {Path(entry["file_name"]).stem: key for key, entry in coco.imgs.items()}

    def load(image_id: str, class_id: int) -> tuple[np.ndarray, np.ndarray]:
        image = Image.open(paths[image_id]).convert("RGB")
        found = coco.getAnnIds(
            imgIds=[ids[image_id]], catIds=[categories[class_id]], iscrowd=False
        )
        mask = np.zeros((image.height, image.width), np.uint8)
        for one in coco.loadAnns(found):
            mask = np.maximum(mask, coco.annToMask(one))
        pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        if as_float:
            pixels = (pixels.astype(np.float32) / 255 - MEAN) / DEVIATION
        small = Image.fromarray(mask).resize((SIZE, SIZE), Image.Resampling.NEAREST)
        return pixels, np.asarray(small).astype(np.float32)

    start, spent, count = 0.0, 0.0, 0
    for first in range(0, len(draws), BATCH):
        rows = []
        for draw in draws[first : first + BATCH]:
            query = load(draw.query, draw.class_ids[0])
            shots = [load(i, draw.class_ids[0]) for i in draw.supports[0]]
            rows.append(
                (*query, *(np.stack(part) for part in zip(*shots, strict=True)))
            )
        batch = [np.stack(part) for part in zip(*rows, strict=True)]
        assert batch[0].shape == (BATCH, SIZE, SIZE, 3)
        if first:
            count += BATCH
        else:
            start, spent = time.perf_counter(), time.process_time()
    cost = (time.process_time() - spent) / count
    return count / (time.perf_counter() - start), cost


def _both(loop: Callable[[bool], tuple[float, float]]) -> tuple[float, float]:
    """Two processes that loop at the same time: their speeds together."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.map(loop, [False, False], chunksize=1)
    return sum(speed for speed, _ in found), statistics.mean(cost for _, cost in found)


def _images(folder: Path) -> tuple[Path, str]:
    """(root, split) of COCO files whose folder can be written to."""
    named = os.environ.get("DIFFUP_REALDATA")
    beside = Path(__file__).resolve().parents[2] / "shared" / "realdata"
    real = (Path(named) if named else beside) / "coco"
    if not real.is_dir():
        from demo.make_scenes import make_scenes

        root = folder / "scenes"
        make_scenes(root, images=200, size=480, seed=0, val_fraction=0.2, processes=2)
        return root, "train"
    root, split = folder / "coco", "train2017"
    (root / "annotations").mkdir(parents=True)
    name = f"instances_{split}.json"
    (root / "annotations" / name).write_bytes(
        (real / "annotations" / name).read_bytes()
    )
    (root / split).symlink_to(real / split)
    return root, split


def _pack(source, out: Path, split: str):
    from data_prep import array_records

    asked = {"source": "coco", "min_area": 0.0}
    array_records.pack(source, out, split=split, asked=asked, processes=1)
    return open_source(
        "array_record", root=str(out), split=split, min_area=0.0, crowd="hsnet"
    )


def _full_size(root: Path) -> Path:
    """A JSON of the size of instances_train2014.json, with empty image files."""
    generator = np.random.default_rng(0)
    (root / "train2014").mkdir()
    (root / "annotations").mkdir()
    images = []
    for number in range(1, IMAGES + 1):
        name = f"COCO_train2014_{number:012d}.jpg"
        (root / "train2014" / name).touch()
        height, width = (480, 640) if number % 3 else (640, 427)
        images.append(
            {
                "license": 5,
                "file_name": name,
                "coco_url": f"http://images.cocodataset.org/train2014/{name}",
                "height": height,
                "width": width,
                "date_captured": "2013-11-14 16:28:13",
                "flickr_url": "http://farm4.staticflickr.com/3153/2970773875_1_z.jpg",
                "id": number,
            }
        )
    # Objects of all sizes; 1 in 75 is a crowd, 1 in 11 has a second polygon.
    owners = np.sort(generator.integers(0, IMAGES, ANNOTATIONS))
    corners = np.maximum(generator.lognormal(2.8, 0.65, ANNOTATIONS).astype(int), 3)
    radii = np.minimum(generator.lognormal(3.4, 1.0, ANNOTATIONS), 200)
    path = root / "annotations" / "instances_train2014.json"
    head = {
        "images": images,
        "categories": [{"id": k + 1, "name": f"class {k}"} for k in range(80)],
    }
    with open(path, "w") as file:
        file.write(json.dumps(head)[:-1] + ', "annotations": [')
        for number, (owner, count, radius) in enumerate(
            zip(owners.tolist(), corners.tolist(), radii.tolist(), strict=True)
        ):
            height, width = images[owner]["height"], images[owner]["width"]
            entry = {
                "segmentation": [
                    _outline(generator, count, radius, height, width)
                    for _ in range(1 + (number % 11 == 0))
                ],
                "area": 3.0 * radius**2,
                "iscrowd": 0,
                "image_id": owner + 1,
                "bbox": [1.0, 2.0, 3.0, 4.0],
                "category_id": int(generator.integers(1, 81)),
                "id": number + 1,
            }
            if number % 75 == 0:
                runs = np.full(101, height * width // 101)
                runs[-1] += height * width - runs.sum()
                shape = {"counts": runs.tolist(), "size": [height, width]}
                entry |= {"iscrowd": 1, "segmentation": shape}
            file.write((", " if number else "") + json.dumps(entry))
        file.write("]}")
    return path


def _outline(generator, count: int, radius: float, height: int, width: int) -> list:
    angles = np.sort(generator.random(count)) * 2 * np.pi
    reach = radius * generator.uniform(0.6, 1.0, count)
    x = np.clip(generator.random() * width + reach * np.cos(angles), 0, width)
    y = np.clip(generator.random() * height + reach * np.sin(angles), 0, height)
    return np.round(np.stack([x, y], 1).ravel(), 2).tolist()


def _alone(spawn, work: Callable, *arguments):
    """What a fresh process answers."""
    with spawn.Pool(1) as pool:
        return pool.apply(work, arguments)


def _open(root: str, overlap: str) -> tuple:
    """(seconds, CPU seconds, peak MB, bytes sent to a worker, memory of the worker)."""
    import pickle
    import resource
    import subprocess

    start, spent = time.perf_counter(), time.process_time()
    source = open_source(
        "coco",
        root=root,
        split="train2014",
        min_area=0.0,
        crowd="hsnet",
        overlap=overlap,
    )
    took = time.perf_counter() - start
    cpu = time.process_time() - spent
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sent = pickle.dumps(source)
    # A pool's process may have no children of its own: a worker by hand.
    code = (
        "import pickle, sys; from experiments.data import _memory_of_worker; "
        "print(*_memory_of_worker(pickle.load(sys.stdin.buffer)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=sent, capture_output=True, check=True
    )
    memory = tuple(map(float, done.stdout.split()))
    return took, cpu, peak, len(sent), memory


def _memory_of_worker(source) -> tuple[float, float]:
    """(rss, own) in MB of this process after 2000 masks."""
    if source is not None:
        generator = np.random.default_rng(0)
        for _ in range(2000):
            class_id = int(generator.integers(80))
            ids = source.image_ids(class_id)
            source.mask(ids[generator.integers(len(ids))], class_id)
    found = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, size, _ = line.split()
        found[name] = int(size) / 1024
    return found["Rss:"], found["Private_Clean:"] + found["Private_Dirty:"]


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.data")
    parser.add_argument("part", choices=["throughput", "index"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batches", type=int, default=24)
    options = parser.parse_args(arguments)
    if options.part == "index":
        index(options.repeats)
    else:
        throughput(options.repeats, options.batches)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
