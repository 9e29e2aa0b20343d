"""Writes the episodes of an evaluation to a file, so that a number can be repeated.

    python -m data_prep.freeze_episodes --benchmark coco --protocol hsnet \\
        --lists HSNET/data/splits --fold 0 --shots 1 --out coco_fold0_1shot.jsonl

draws them from the published lists, of coco, pascal or fss, without any image; these
are the published episodes, to the bit, for hsnet and 1000 episodes. With

    --root DIR --split val2014

in place of --lists they come from the data itself, of any kind `config.data.source`
knows; pfenet and denet need that, because they measure the objects.

The file (JSON lines, see `diffup_jax.data.episodes`) appears whole or not at all. The
last line printed is its hash, sha=16 hexadecimal digits; before it stand the figures
that tell how even the list is: episodes per class, repeated supports. The same command
writes the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffup_jax.data import draws as rules
from diffup_jax.data import lists, protocols, published, sources
from diffup_jax.data.benchmarks import BENCHMARKS
from diffup_jax.data.episodes import Draw
from diffup_jax.data.protocols import Protocol
from diffup_jax.types import DiffUpError

# Kinds of data with published lists, by the names of the lists, which are short names.
_PUBLISHED = {row.published: kind for kind, row in BENCHMARKS.items() if row.published}
_ALIASES = {name: kind for name, kind in _PUBLISHED.items() if name != kind}


def freeze(
    out: str | Path,
    *,
    kind: str,
    protocol: Protocol,
    pool: rules.Pool,
    classes: Sequence[int],
    fold: int,
    shots: int,
    ways: int,
    count: int | None,
    seed: int,
    drawn_from: str,
) -> tuple[tuple[Draw, ...], str]:
    """Draws the episodes, writes `out` and answers them with their hash.

    count: None for the protocol's own number. drawn_from: what the images come from,
    for the facts in the file's first line.

    Raises:
      DiffUpError: for ways or shots that the protocol or the images do not have.
    """
    benchmark = BENCHMARKS[kind]
    if count is None:
        count = rules.episode_count(pool, protocol=protocol, benchmark=benchmark)
    drawn = rules.evaluation_draws(
        pool,
        classes,
        protocol=protocol,
        benchmark=benchmark,
        shots=shots,
        ways=ways,
        count=count,
        seed=seed,
    )
    meta: dict[str, Any] = {
        "benchmark": kind,
        "fold": fold,
        "protocol": protocol.name,
        "seed": seed if protocol.seed is None else protocol.seed,
        "shots": shots,
        "ways": ways,
        "drawn_from": drawn_from,
    }
    lists.write_draws(out, drawn, meta)
    return drawn, lists.draws_sha(drawn)


def figures(drawn: Sequence[Draw], names: Sequence[str] | None) -> list[str]:
    """Lines that say how even a list is: way-0 classes and repeated supports.

    names: of the classes, by index; None where only their numbers are known.
    """
    classes = Counter(draw.class_ids[0] for draw in drawn)
    (most, often), *_ = classes.most_common()
    name = f"class {most}" if names is None else f"class {most} ({names[most]})"
    repeated = sum(
        any(len(set(images)) < len(images) for images in draw.supports)
        for draw in drawn
    )
    return [
        f"{len(drawn)} episodes of {len(classes)} classes, "
        f"{min(classes.values())} to {often} each; "
        f"{name} is {often / len(drawn):.1%} of them",
        f"{len({draw.query for draw in drawn})} different queries; "
        f"{repeated / len(drawn):.1%} of the episodes repeat a support",
    ]


def main(arguments: Sequence[str]) -> int:
    """Command line of this file; 0 on success, 1 with one message for bad input."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except (DiffUpError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    kind = _ALIASES.get(options.benchmark, options.benchmark)
    if kind not in BENCHMARKS:
        raise DiffUpError(
            f"unknown benchmark {options.benchmark!r}; expected one of "
            f"{(*_ALIASES, *BENCHMARKS)}."
        )
    protocol = protocols.get(options.protocol)
    if protocol.seed is not None and options.seed not in (None, protocol.seed):
        raise DiffUpError(
            f"protocol {protocol.name} has one seed, {protocol.seed}; leave --seed out "
            "or take clean, pfenet or denet."
        )
    read = _from_lists if options.lists else _from_data
    pool, classes, names, drawn_from = read(options, kind, protocol)
    if options.skip_small_classes:
        kept = rules.usable_classes(
            pool, classes, protocol=protocol, shots=options.shots, ways=options.ways
        )
        left = [c if names is None else names[c] for c in classes if c not in kept]
        if left:
            print(f"left out for want of {options.shots + 1} images: {left}")
        classes = kept
    drawn, sha = freeze(
        options.out,
        kind=kind,
        protocol=protocol,
        pool=pool,
        classes=classes,
        fold=options.fold,
        shots=options.shots,
        ways=options.ways,
        count=options.episodes,
        seed=options.seed or 0,
        drawn_from=drawn_from,
    )
    print("\n".join(figures(drawn, names)))
    print(options.out)
    print(f"sha={sha}")


def _from_lists(options: argparse.Namespace, kind: str, protocol: Protocol):
    if protocol.min_pixels or protocol.min_area:
        raise DiffUpError(
            f"protocol {protocol.name} measures the objects, which lists of names "
            "cannot tell; draw from the data: --root DIR in place of --lists."
        )
    row = BENCHMARKS[kind]
    if not row.published:
        raise DiffUpError(
            f"no lists are published for {kind!r}, only for "
            f"{(*_PUBLISHED.values(),)}; draw from the data: --root DIR in place of "
            "--lists."
        )
    split = options.split or row.published_split
    lists = published.read_lists(
        options.lists, row.published, split=split, fold=options.fold
    )
    return rules.Pool(lists, lists), list(lists), None, f"published list, {split}"


def _from_data(options: argparse.Namespace, kind: str, protocol: Protocol):
    split = options.split or BENCHMARKS[kind].test
    source = sources.open_source(
        kind,
        root=options.root,
        split=split,
        min_area=0.0,
        crowd=options.crowd,
        overlap=options.overlap,
        shots=options.shots,
    )
    classes = list(sources.fold_classes(source, options.fold, role="novel"))
    pool = rules.pool_of(source, classes, protocol=protocol, benchmark=BENCHMARKS[kind])
    return pool, classes, source.class_names, f"{source.name}, {split}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.freeze_episodes",
        description="Writes the episodes of an evaluation to a file.",
        epilog="protocols:\n  " + "\n  ".join(protocols.lines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--benchmark",
        required=True,
        help=f"kind of data: {', '.join((*_ALIASES, *BENCHMARKS))}",
    )
    parser.add_argument(
        "--protocol", default=protocols.DEFAULT, help="see below (%(default)s)"
    )
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--lists", help="folder of the published lists (coco, voc, fss)")
    place.add_argument("--root", help="folder of the data")
    parser.add_argument("--split", help="default: the benchmark's evaluation split")
    parser.add_argument("--fold", type=int, required=True)
    parser.add_argument("--shots", type=int, required=True)
    parser.add_argument("--ways", type=int, default=1, help="1 (default) to 5")
    parser.add_argument("--episodes", type=int, help="default: the protocol's number")
    parser.add_argument("--seed", type=int, help="default 0, which hsnet always has")
    parser.add_argument(
        "--crowd", default="hsnet", help="COCO's crowd regions: hsnet (default), ignore"
    )
    parser.add_argument(
        "--overlap",
        default="union",
        help="pixels of two COCO classes: union (default), painted (see coco.py)",
    )
    parser.add_argument(
        "--skip-small-classes",
        action="store_true",
        help="leave out classes with too few images, and say which",
    )
    parser.add_argument("--out", required=True, help="file to write (JSON lines)")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
