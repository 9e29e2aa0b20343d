"""COCO-20i from 2014 or 2017 images: merged, renamed, checked, and done only once."""

from __future__ import annotations

import json
import os
import zipfile

import pytest

from data_prep import archives, coco20i
from data_prep.coco20i import main
from diffup_jax.data.sources import open_source
from tests import datasets

IMAGES = 12


def write_2014(root):
    """Both splits with 2014 images; the second has the other image numbers."""
    for split in coco20i.SPLITS:
        datasets.write_coco(root, split=split, images=IMAGES)
    renumber(root)
    return root


def renumber(root):
    """Gives val2014 numbers of its own, as in COCO."""
    path = root / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        old = image["file_name"]
        image["id"] += 1000
        image["file_name"] = f"COCO_val2014_{image['id']:012d}.jpg"
        os.rename(root / "val2014" / old, root / "val2014" / image["file_name"])
    for entry in content["annotations"]:
        entry["image_id"] += 1000
    path.write_text(json.dumps(content))


def write_2017(root):
    """The same images dealt as in 2017: some val2014 images lie in train2017."""
    write_2014(root)
    files = sorted(p for split in coco20i.SPLITS for p in (root / split).iterdir())
    for index, file in enumerate(files):
        part = root / coco20i.PARTS[index % 3 == 0]
        part.mkdir(exist_ok=True)
        os.rename(file, part / file.name.rsplit("_", 1)[-1])
    for split in coco20i.SPLITS:
        (root / split).rmdir()
    return root


def run(root, *options):
    return main(["--root", str(root), "--subset", *options])


def snapshot(root):
    return {
        p.relative_to(root).as_posix(): (p.stat().st_ino, p.stat().st_mtime_ns)
        for p in root.rglob("*")
        if p.is_file()
    }


def opened(root, split):
    return open_source("coco", root=str(root), split=split, min_area=0.0, crowd="hsnet")


def test_2014_images_are_only_checked(tmp_path, capsys):
    write_2014(tmp_path)
    before = snapshot(tmp_path)
    assert run(tmp_path) == 0
    assert snapshot(tmp_path) == before
    assert "12 of 12 images in val2014" in capsys.readouterr().out


def test_2017_images_are_merged_and_names_mapped(tmp_path):
    write_2017(tmp_path)
    original = {
        split: (tmp_path / f"annotations/instances_{split}.json").read_bytes()
        for split in coco20i.SPLITS
    }
    assert run(tmp_path) == 0
    merged = tmp_path / coco20i.MERGED
    assert len(list(merged.iterdir())) == 2 * IMAGES
    for part in coco20i.PARTS:
        for file in (tmp_path / part).iterdir():
            assert os.path.samefile(file, merged / file.name), "linked, not copied"
    for split, content in original.items():
        assert (
            tmp_path / f"annotations/instances_{split}.json"
        ).read_bytes() == content
        renamed = tmp_path / f"annotations/instances_{split}_renamed.json"
        expected = json.loads(content)
        for image in expected["images"]:
            image["file_name"] = f"{image['id']:012d}.jpg"
        assert json.loads(renamed.read_bytes()) == expected
        sources = [opened(tmp_path, name) for name in (split, f"{split}_renamed")]
        for class_id in range(8):
            ids = [source.image_ids(class_id) for source in sources]
            assert [i.rsplit("_", 1)[-1] for i in ids[0]] == list(ids[1])
            for one, other in zip(*ids, strict=True):
                masks = [
                    source.mask(name, class_id)[0]
                    for source, name in zip(sources, (one, other), strict=True)
                ]
                assert (masks[0] == masks[1]).all()
                assert (sources[0].image(one) == sources[1].image(other)).all()


@pytest.mark.parametrize("option", [[], ["--copy"]])
def test_again_changes_nothing_and_finishes_what_is_left(tmp_path, option):
    write_2017(tmp_path)
    assert run(tmp_path, *option) == 0
    before = snapshot(tmp_path)
    assert run(tmp_path, *option) == 0
    assert snapshot(tmp_path) == before
    lost = tmp_path / coco20i.MERGED / "000000000003.jpg"
    lost.unlink()
    assert run(tmp_path, *option) == 0 and lost.is_file()
    part = next(p for p in coco20i.PARTS if (tmp_path / p / lost.name).exists())
    same = os.path.samefile(lost, tmp_path / part / lost.name)
    assert same == (not option)


def test_the_parts_may_go_after_merging(tmp_path):
    write_2017(tmp_path)
    assert run(tmp_path) == 0
    for part in coco20i.PARTS:
        for file in (tmp_path / part).iterdir():
            file.unlink()
    assert run(tmp_path) == 0


def test_a_disk_that_cannot_link_is_told(tmp_path, monkeypatch, capsys):
    write_2017(tmp_path)

    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(coco20i.os, "link", refuse)
    assert run(tmp_path) == 2
    assert "--copy" in capsys.readouterr().err
    assert run(tmp_path, "--copy") == 0


def test_two_images_of_one_name_are_told(tmp_path, capsys):
    write_2017(tmp_path)
    (tmp_path / coco20i.MERGED).mkdir()
    (tmp_path / coco20i.MERGED / "000000000003.jpg").write_bytes(b"other")
    assert run(tmp_path) == 2
    assert "different images" in capsys.readouterr().err


def test_an_absent_image_is_missing(tmp_path, capsys):
    write_2014(tmp_path)
    (tmp_path / "val2014" / "COCO_val2014_000000001005.jpg").unlink()
    assert run(tmp_path) == 1
    told = capsys.readouterr().out
    assert "11 of 12 images in val2014" in told and "zips/val2014.zip" in told


def test_counts_other_than_the_official_ones_are_wrong(tmp_path, capsys):
    write_2014(tmp_path)
    assert main(["--root", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "WRONG" in told and "82783, 82081, 604907" in told


def test_an_empty_folder_says_where_everything_is(tmp_path, capsys):
    assert run(tmp_path) == 1
    assert "annotations_trainval2014.zip" in capsys.readouterr().out


def test_a_file_that_is_no_instances_file(tmp_path, capsys):
    write_2014(tmp_path)
    (tmp_path / "annotations/instances_val2014.json").write_text('{"images": 3}')
    assert run(tmp_path) == 2
    assert "instances_val2014.json" in capsys.readouterr().err


def test_archives_are_unpacked_where_a_folder_is_not_whole(tmp_path, monkeypatch):
    made, root, kept = (tmp_path / name for name in ("made", "root", "archives"))
    write_2014(made)
    kept.mkdir()
    facts = {}
    for name, archive in coco20i.ARCHIVES.items():
        if not (made / name).is_dir():
            continue
        with zipfile.ZipFile(kept / archive.name, "w") as file:
            for path in sorted((made / name).iterdir()):
                if name == "annotations" or path.suffix == ".jpg":
                    file.write(path, f"{name}/{path.name}")
        size = (kept / archive.name).stat().st_size
        facts[name] = archives.Archive(archive.url, size, None)
    monkeypatch.setattr(coco20i, "ARCHIVES", coco20i.ARCHIVES | facts)
    options = ["--archives", str(kept), "--download", "2014"]
    assert set(facts) == {"annotations", "train2014", "val2014"}
    assert run(root, *options) == 0, "the archives are there: nothing is fetched"
    for split in coco20i.SPLITS:
        assert opened(root, split).image_ids(0) == opened(made, split).image_ids(0)
    # With the folders whole the archives are not looked at again.
    for archive in facts.values():
        (kept / archive.name).write_bytes(b"")
    assert run(root, *options) == 0


def test_a_renamed_file_name_in_a_folder(tmp_path):
    """The form some tools write: "file_name":"train2014/COCO_train2014_...jpg"."""
    path = tmp_path / "annotations" / "instances_train2014.json"
    path.parent.mkdir()
    path.write_text('{"file_name":"train2014/COCO_train2014_000000000009.jpg", "a": 1}')
    coco20i.rename(tmp_path, "train2014")
    renamed = path.with_name("instances_train2014_renamed.json")
    assert renamed.read_text() == '{"file_name":"000000000009.jpg", "a": 1}'
    path.write_text('{"file_name": "COCO_test_9.jpg"}')
    with pytest.raises(coco20i.DiffUpError, match="another form"):
        coco20i.rename(tmp_path, "train2014")
