"""The law of the house: a room imports only from the floors below it.

The imports are read from the source, wherever in a file they stand; nothing is run.
`broken_laws` judges a whole tree, so that the law itself is tested on small made-up
trees. Last come two checks that do run: the data rooms without jax, and the strictness
that conftest.py promises.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "diffup_jax"
DOORS = ("train.py", "eval.py")

# A new room gets its floor here. A folder is one room: its files may import each other.
FLOORS = (
    {"types", "files", "images", "sections"},
    {"arrays", "attention", "diffusion", "layers", "metrics", "programs", "weights"},
    {"backbones", "data"},
    {"evaluation", "gallery", "prior_cache", "result", "runlog"},
    {"methods", "report"},
    {"config"},
    {"checkpoint", "training_data", "evaluation_data"},
    {"multi_backbone"},
    {"training", "scoring", "model"},
    {"launch", "loading", "predict"},
    {"cli", "__main__"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# The only steps allowed on one floor: room -> rooms.
SIDEWAYS = {
    "files": {"types"},  # a file that cannot be read is told as DiffUpError
    "__main__": {"cli"},  # `python -m diffup_jax` is `diffup`
}

# Rooms that may not know a library: folder or file -> top-level modules.
NO_JAX = {"jax", "jaxlib", "flax"}
FORBIDDEN = {
    f"{PACKAGE}/{room}": NO_JAX
    for room in ("data", "types", "files", "arrays", "sections")
}

# Configs stop at the door: only this file of the package may read a ConfigDict.
READS_CONFIGS = {"launch"}

MOST_LINES = 400
MOST_DOOR_LINES = 60


def imports_of(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a file imports, names of modules in full.

    `from diffup_jax import training` gives `diffup_jax.training`, and a relative import
    is resolved, so that no spelling hides a step.
    """
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            for name in node.names:
                yield node.lineno, f"{module}.{name.name}"


def room_of(path: Path, root: Path) -> str:
    """`data` for diffup_jax/data/pipeline.py, `training` for diffup_jax/training.py."""
    return path.relative_to(root / PACKAGE).with_suffix("").parts[0]


def broken_laws(root: Path) -> list[str]:
    """Every breach in the tree at `root`, one sentence each; empty when all is well."""
    broken = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        if path != root / PACKAGE / "__init__.py" and (
            room_of(path, root) not in FLOOR_OF
        ):
            broken.append(f"{path.relative_to(root)}: unknown room, add it to a floor")
        else:
            broken += _broken_in_package(path, root)
    for door in DOORS:
        if (root / door).is_file():
            lines = len((root / door).read_text(encoding="utf-8").splitlines())
            if lines > MOST_DOOR_LINES:
                broken.append(f"{door}: {lines} lines, a door has {MOST_DOOR_LINES}")
            broken += _foreign(
                root / door, root, {"data_prep", "demo", "experiments", "tests"}
            )
    for path in sorted((root / "configs").glob("*.py")):
        outside = {"data_prep", "demo", "experiments", "tests", "jax", "flax"}
        broken += _foreign(path, root, outside)
    programs = [*(root / "data_prep").rglob("*.py"), *(root / "demo").rglob("*.py")]
    for path in sorted(programs):
        outside = {"configs", "experiments", "tests", "train", "eval"}
        outside.add("ml_collections")
        broken += _foreign(path, root, outside)
    return broken


def _broken_in_package(path: Path, root: Path) -> list[str]:
    name = path.relative_to(root).as_posix()
    lines = len(path.read_text(encoding="utf-8").splitlines())
    broken = [f"{name}: {lines} lines, over {MOST_LINES}"] if lines > MOST_LINES else []
    outside = {"data_prep", "demo", "configs", "experiments"}
    outside |= {"tests", "train", "eval"}
    for folder, libraries in FORBIDDEN.items():
        if name.startswith(f"{folder}/") or name == f"{folder}.py":
            outside |= libraries
    is_front = path == root / PACKAGE / "__init__.py"
    room = "" if is_front else room_of(path, root)
    if room not in READS_CONFIGS:
        outside.add("ml_collections")
    broken += _foreign(path, root, outside)
    told = re.match(
        r"F(\d+):", ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    )
    if told and int(told[1]) != FLOOR_OF.get(room):
        broken.append(f"{name}: says floor {told[1]}, is on floor {FLOOR_OF.get(room)}")
    for line, module in imports_of(path, root):
        parts = module.split(".")
        if parts[0] != PACKAGE or len(parts) < 2:
            continue
        target = parts[1]
        if is_front:
            broken.append(f"{name}:{line}: the package front imports {module}")
        elif target in FLOOR_OF and not _allowed(room, target):
            broken.append(
                f"{name}:{line}: floor {FLOOR_OF[room]} imports {module}, "
                f"floor {FLOOR_OF[target]}"
            )
    return broken


def _allowed(room: str, target: str) -> bool:
    return (
        room == target
        or FLOOR_OF[target] < FLOOR_OF[room]
        or target in SIDEWAYS.get(room, ())
    )


def _foreign(path: Path, root: Path, tops: set[str]) -> list[str]:
    """Sentences for imports whose top-level module is in `tops`."""
    return [
        f"{path.relative_to(root).as_posix()}:{line}: must not import {module}"
        for line, module in imports_of(path, root)
        if module.split(".")[0] in tops
    ]


def test_every_import_goes_down():
    assert (ROOT / PACKAGE / "types.py").is_file()
    assert broken_laws(ROOT) == []


@pytest.mark.parametrize(
    ("file", "source", "word"),
    [
        ("methods/uapf.py", "import diffup_jax.training", "floor 4 imports"),
        ("methods/uapf.py", "from diffup_jax import config", "floor 4 imports"),
        ("metrics/counts.py", "from ..methods import diffup", "floor 1 imports"),
        ("data/cues.py", "from ..backbones import get", "floor 2 imports"),
        (
            "gallery.py",
            "def f():\n    from diffup_jax.methods.diffup.decoder import g",
            "floor 3 imports",
        ),
        ("evaluation.py", "from diffup_jax.gallery import x", "floor 3 imports"),
        ("__init__.py", "from diffup_jax.types import Level", "package front"),
        ("scoring.py", "import demo.make_scenes", "must not import"),
        ("layers.py", "from configs import common", "must not import"),
        ("layers.py", "from tests.conftest import ROOT", "must not import"),
        ("data/cues.py", "import jax.numpy as jnp", "must not import"),
        ("data/deep/cues.py", "from flax import linen", "must not import"),
        ("methods/red.py", "import ml_collections", "must not import"),
        ("config.py", "import ml_collections", "must not import"),
        ("sections.py", "import jax", "must not import"),
        ("layers.py", '"""F2: blocks."""', "says floor 2, is on floor 1"),
        ("helpers.py", "", "add it to a floor"),
        ("layers.py", "x = 0\n" * (MOST_LINES + 1), f"over {MOST_LINES}"),
        ("../train.py", "x = 0\n" * (MOST_DOOR_LINES + 1), "a door has"),
        ("../eval.py", "import data_prep.voc", "must not import"),
        ("../configs/quickstart.py", "import jax.numpy", "must not import"),
        ("../data_prep/voc.py", "import train", "must not import"),
    ],
)
def test_a_breach_is_found(tmp_path, file, source, word):
    _write(tmp_path, file, source)
    broken = broken_laws(tmp_path)
    assert len(broken) == 1 and word in broken[0]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("layers.py", "from diffup_jax.types import Level\nfrom .images import x"),
        ("training.py", '"""F8: a run."""\nfrom diffup_jax import evaluation'),
        ("launch.py", "import ml_collections"),
        ("methods/diffup/chain.py", "from diffup_jax.methods import prior"),
        ("backbones/__init__.py", "from . import resnet"),
        ("data/pipeline.py", "import jaxtyping, numpy, grain"),
        ("../train.py", "from diffup_jax import training\nimport ml_collections"),
        ("../data_prep/voc.py", "from diffup_jax.data import sources"),
    ],
)
def test_a_lawful_import_passes(tmp_path, file, source):
    _write(tmp_path, file, source)
    assert broken_laws(tmp_path) == []


def _write(root: Path, file: str, source: str) -> None:
    (root / PACKAGE).mkdir()
    path = (root / PACKAGE / file).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")


def test_data_rooms_work_without_jax():
    """jax is blocked, not looked for afterwards: grain loads it where it finds it."""
    rooms = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / PACKAGE / "data").rglob("*.py"))
        if path.name != "__init__.py"
    ]
    script = (
        "import importlib, sys\n"
        "for name in ('jax', 'jaxlib', 'flax'): sys.modules[name] = None\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *rooms],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert rooms
    assert done.returncode == 0, done.stderr


def test_tests_are_strict():
    """What conftest.py promises: shapes checked, no silent broadcast, two devices."""
    import diffup_jax.types

    assert "jaxtyping" in type(diffup_jax.types.__spec__.loader).__module__
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)
    assert jax.config.jax_platforms != "cpu" or jax.device_count() == 2
