"""The prep commands of the small benchmarks: unpack, make, check, and start again."""

from __future__ import annotations

import json
import shutil
import zipfile

import pytest
from PIL import Image

from data_prep import folder, fss1000, lvis92i, paco_part, pascal_part
from diffup_jax.data.sources import open_source
from tests import benchmark_files


def run(command, root, *arguments):
    return command.main(["--root", str(root), *arguments])


def zipped(path, source, *, below=""):
    """A zip of everything below a folder; the folder is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for one in sorted(p for p in source.rglob("*") if p.is_file()):
            file.write(one, f"{below}{one.relative_to(source)}")
    shutil.rmtree(source)


def written(root):
    """Every file with its content's time and size: nothing is written twice."""
    files = (p for p in root.rglob("*") if p.is_file())
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in files}


def test_fss_is_unpacked_and_its_lists_installed(tmp_path, capsys):
    root = benchmark_files.write_fss(tmp_path / "fss")
    (root / "splits").rename(tmp_path / "lists")
    assert run(fss1000, root, "--subset") == 1
    said = capsys.readouterr().out
    assert "MISSING splits/trn.txt" in said and "hsnet" in said
    below = "fewshot_data/fewshot_data/"
    zipped(root / "archives" / "fewshot_data.zip", root / "data", below=below)
    lists = ("--lists", str(tmp_path / "lists"))
    assert run(fss1000, root, "--subset", *lists) == 0
    assert "12 pairs in 3 classes" in capsys.readouterr().out
    source = open_source(
        "fss1000", root=str(root), split="test", min_area=0.0, crowd="hsnet"
    )
    assert len(source.image_ids(5)) == 4
    before = written(root)
    assert run(fss1000, root, "--subset", *lists) == 0
    assert written(root) == before


def test_fss_problems_are_counted(tmp_path, capsys):
    root = benchmark_files.write_fss(tmp_path)
    assert run(fss1000, root) == 1  # neither the published lists nor ten pairs
    said = capsys.readouterr().out
    assert "not the published list of 240" in said and "expected 1 .. 10" in said
    Image.new("L", (60, 40)).save(root / "data" / "elk" / "2.png")
    (root / "data" / "elk" / "3.png").write_bytes(b"?")
    shutil.rmtree(root / "data" / "yak")
    assert run(fss1000, root, "--subset") == 1
    said = capsys.readouterr().out
    assert "2 problems" in said and "2.png has no foreground" in said
    assert "1 of 2, the first absent is yak" in said
    assert run(fss1000, root, "--lists", str(tmp_path / "none")) == 2
    assert "trn.txt is missing" in capsys.readouterr().err


def test_lvis_from_archives_alone(tmp_path, capsys):
    root = benchmark_files.write_lvis(tmp_path / "lvis", images=[2] * 11)
    assert run(lvis92i, root, "--subset") == 1
    said = capsys.readouterr().out
    assert "MISSING annotations/lvis_v1_train.json" in said
    assert lvis92i.JSON["train"].url in said
    benchmark_files.write_lvis(root, images=[2] * 11, split="train")
    for split in ("train", "val"):
        source = tmp_path / split
        source.mkdir()
        name = f"lvis_v1_{split}.json"
        (root / "annotations" / name).rename(source / name)
        zipped(root / "archives" / f"{name}.zip", source)
    assert run(lvis92i, root, "--subset") == 0
    assert "11 of 11 classes have 2 or more val images: 1 in" in capsys.readouterr().out
    before = written(root)
    assert run(lvis92i, root, "--subset") == 0
    assert written(root) == before
    assert run(lvis92i, root) == 1  # all there, but not the official numbers
    assert "the official file: 19809, 244707, 1203" in capsys.readouterr().out


def test_lvis_absent_images_are_named(tmp_path, capsys):
    root = benchmark_files.write_lvis(tmp_path, images=[2] * 11)
    (root / "val2017" / f"{2:012d}.jpg").unlink()
    assert run(lvis92i, root, "--subset") == 1
    said = capsys.readouterr().out
    assert "1 of 2 images, the first absent is 000000000002.jpg" in said
    assert "train2017.zip" in said


@pytest.mark.parametrize("command", [lvis92i, paco_part])
def test_damaged_json_is_a_mistake(tmp_path, capsys, command):
    write = {
        lvis92i: lambda: benchmark_files.write_lvis(tmp_path, images=[2] * 2),
        paco_part: lambda: benchmark_files.write_paco(tmp_path),
    }
    write[command]()
    path = next((tmp_path / "annotations").glob("*_val.json"))
    whole = path.read_text()
    path.write_text(whole[:99])
    assert run(command, tmp_path, "--subset") == 2
    assert path.name in capsys.readouterr().err
    path.write_text(whole.replace("coco_url", "u").replace("file_name", "u"))
    assert run(command, tmp_path, "--subset") == 2
    assert "names no images" in capsys.readouterr().err


def test_paco_classes_are_those_of_the_train_file(tmp_path, capsys):
    root = benchmark_files.write_paco(tmp_path / "paco")
    zipped(root / "archives" / "paco_lvis_v1.zip", root / "annotations")
    assert run(paco_part, root, "--subset") == 0
    table = json.loads((root / "paco_part.json").read_text())["parts"]
    assert [row["name"] for row in table] == [
        name for name in benchmark_files.PACO if ":" in name
    ]
    before = written(root)
    assert run(paco_part, root, "--subset") == 0
    assert written(root) == before
    capsys.readouterr()
    assert run(paco_part, root) == 1
    said = capsys.readouterr().out
    assert "5 part classes, expected 448" in said
    assert "the official file: 45790" in said


def test_pascal_part_converts_what_is_new(tmp_path, capsys):
    root = benchmark_files.write_pascal_mats(tmp_path)
    assert run(pascal_part, root, "--subset") == 0
    assert "2 part classes, merged here" in capsys.readouterr().out
    before = written(root)
    lost = root / pascal_part.pascal_part.ANNOTATIONS / "2010_val_1.json"
    content = lost.read_bytes()
    lost.unlink()
    assert run(pascal_part, root, "--subset") == 0
    assert lost.read_bytes() == content
    after = written(root)
    assert {p for p in before if after[p] != before[p]} == {lost}
    assert run(pascal_part, root) == 1
    assert "4 files, expected 10103" in capsys.readouterr().out


def test_pascal_part_damage_is_named(tmp_path, capsys):
    root = benchmark_files.write_pascal_mats(tmp_path)
    (root / "Annotations_Part" / "2010_val_1.mat").write_bytes(b"no matrix")
    assert run(pascal_part, root, "--subset") == 2
    assert "2010_val_1.mat is no Pascal-Part" in capsys.readouterr().err


def test_pascal_part_leaves_published_files_alone(tmp_path, capsys):
    root = benchmark_files.write_pascal_part(tmp_path)
    before = written(root)
    assert run(pascal_part, root, "--subset") == 0
    assert written(root) == before
    capsys.readouterr()
    assert run(pascal_part, root) == 1
    assert "8 part classes, expected 100" in capsys.readouterr().out
    (root / "JPEGImages" / "cat_val_0.jpg").unlink()
    assert run(pascal_part, root, "--subset") == 1
    assert "the first absent is cat_val_0" in capsys.readouterr().out


def test_pascal_part_without_anything_says_where(tmp_path, capsys):
    assert run(pascal_part, tmp_path) == 1
    said = capsys.readouterr().out
    assert pascal_part.PARTS.url in said and pascal_part.READY in said


def test_folder_lists_every_problem(tmp_path, capsys):
    for name in ("cup", "hat", "key"):
        benchmark_files.write_class(tmp_path / name, images=3)
    assert run(folder, tmp_path) == 0
    assert "3 images, novel in fold 0" in capsys.readouterr().out
    Image.new("L", (60, 40)).save(tmp_path / "cup" / "1.png")
    Image.new("L", (10, 10), 255).save(tmp_path / "cup" / "2.png")
    (tmp_path / "key" / "3.jpg").write_bytes(b"?")
    (tmp_path / "hat" / "2.png").unlink()
    assert run(folder, tmp_path) == 1
    said = capsys.readouterr().out
    for words in ("cup/1", "no foreground", "cup/2", "40 x 60 and 10 x 10"):
        assert words in said
    assert "cannot read" in said and "2.jpg has no 2.png" in said
    assert "4 of 4 items are missing or wrong" in said


def test_folder_deals_folds_once(tmp_path, capsys):
    for name in ("cup", "hat", "key"):
        benchmark_files.write_class(tmp_path / name, images=2)
    assert run(folder, tmp_path, "--folds", "2") == 0
    assert "2 images, novel in fold 1" in capsys.readouterr().out
    before = written(tmp_path)
    assert run(folder, tmp_path, "--folds", "2") == 0
    assert written(tmp_path) == before
    assert run(folder, tmp_path, "--folds", "3") == 2
    assert "is there with other folds" in capsys.readouterr().err
    assert run(folder, tmp_path, "--folds", "4") == 2
    assert "expected 2 .. 3" in capsys.readouterr().err
    assert run(folder, tmp_path / "none") == 2
    assert "is not a folder" in capsys.readouterr().err
