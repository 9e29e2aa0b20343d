"""Pascal-5i put together from small archives of the official form, and its checks."""

from __future__ import annotations

import io
import tarfile
import zipfile

import numpy as np
import pytest
import scipy.io
from PIL import Image

from data_prep import archives, pascal5i
from data_prep.pascal5i import main, read_mat
from diffup_jax.data.readers import voc
from diffup_jax.data.sources import open_source
from diffup_jax.types import DiffUpError

SIZE = (12, 16)
TRAIN, VAL, SBD_ONLY = ("2007_1", "2007_2"), ("2007_3",), ("2008_1", "2008_2")
# SBD has masks of VOC's own images too, and the last official one is not among them.
IN_SBD = (*SBD_ONLY, "2007_1", "2007_3")


def labels(name, *, void):
    """Class index = position of the name; two classes per image, and void."""
    index = sorted((*TRAIN, *VAL, *SBD_ONLY)).index(name)
    values = np.zeros(SIZE, np.uint8)
    values[2:6, 2:8] = 5 * (index % 4) + 1
    values[8:10, 8:14] = 20 - index
    if void:
        values[1, 2:8] = voc.VOID
    return values


def png(values):
    buffer = io.BytesIO()
    picture = Image.fromarray(values)
    picture.putpalette(list(range(256)) * 3)
    picture.save(buffer, "png")
    return buffer.getvalue()


def jpeg():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(buffer, "jpeg")
    return buffer.getvalue()


def mat(values):
    buffer = io.BytesIO()
    cls = {"Segmentation": values, "Boundaries": 0, "CategoriesPresent": [1]}
    scipy.io.savemat(buffer, {"GTcls": cls})
    return buffer.getvalue()


def write_tar(path, files):
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A folder with the two archives; the official numbers are made theirs."""
    folder = tmp_path / "archives"
    folder.mkdir()
    top = "VOCdevkit/VOC2012"
    files = {f"{top}/JPEGImages/{n}.jpg": jpeg() for n in (*TRAIN, *VAL, *SBD_ONLY)}
    files |= {
        f"{top}/SegmentationClass/{n}.png": png(labels(n, void=True))
        for n in (*TRAIN, *VAL)
    }
    for split, names in (("train", TRAIN), ("val", VAL)):
        content = "".join(f"{name}\n" for name in names).encode()
        files[f"{top}/ImageSets/Segmentation/{split}.txt"] = content
    files[f"{top}/Annotations/2007_1.xml"] = b"<annotation/>"
    write_tar(folder / pascal5i.VOC.name, files)
    benchmark = {
        f"benchmark_RELEASE/dataset/cls/{n}.mat": mat(labels(n, void=False))
        for n in IN_SBD
    }
    benchmark["benchmark_RELEASE/dataset/inst/2008_1.mat"] = b"not looked at"
    write_tar(folder / pascal5i.SBD.name, benchmark)
    for fact in ("VOC", "SBD"):
        url = getattr(pascal5i, fact).url
        monkeypatch.setattr(pascal5i, fact, archives.Archive(url, None, None))
    for fact, number in (
        ("MASKS", 5),
        ("IMAGES", 5),
        ("TRAIN", 2),
        ("VAL", 1),
        ("TRAINAUG", 4),
    ):
        monkeypatch.setattr(pascal5i, fact, number)
    return folder


@pytest.fixture
def lists(tmp_path):
    """Published lists that fit: 2007_3 (index 2) has classes 10 and 17."""
    lines = {
        "trn": {0: ["2007_1__01"], 1: ["2007_2__06"], 2: [], 3: ["2007_1__20"]},
        "val": {0: ["2008_2__01"], 1: ["2007_2__06"], 2: ["2007_3__11"], 3: []},
    }
    lines["trn"][2], lines["val"][3] = ["2007_3__11"], ["2007_3__18"]
    for kind, folds in lines.items():
        (tmp_path / "pascal" / kind).mkdir(parents=True)
        for fold, content in folds.items():
            path = tmp_path / "pascal" / kind / f"fold{fold}.txt"
            path.write_text("\n".join(content) + "\n")
    return tmp_path / "pascal"


def run(root, kept, *options):
    return main(["--root", str(root), "--archives", str(kept), *map(str, options)])


def written(root):
    return {
        p.relative_to(root).as_posix(): p.read_bytes()
        for p in root.rglob("*")
        if p.is_file()
    }


def test_from_voc_and_sbd(tmp_path, kept, lists, capsys):
    root = tmp_path / "root"
    assert run(root, kept, "--lists", lists) == 0, capsys.readouterr().out
    for name in (*TRAIN, *VAL, *SBD_ONLY):
        stored = np.array(Image.open(root / pascal5i.AUG / f"{name}.png"))
        assert (stored == labels(name, void=name not in SBD_ONLY)).all()
    assert not (root / "Annotations").exists(), "only what is needed is unpacked"
    files = written(root)
    assert (root / "ImageSets/Segmentation/trainaug.txt").read_text().split() == [
        "2007_1",
        "2007_2",
        "2008_1",
        "2008_2",
    ]
    source = open_source(
        "voc", root=str(root), split="hsnet_val", min_area=0.0, crowd="hsnet"
    )
    assert source.image_ids(0) == ("2008_2",) and source.image_ids(17) == ("2007_3",)
    assert source.image_ids(16) == (), "listed pairs only"
    assert run(root, kept, "--lists", lists) == 0
    assert written(root) == files


def test_from_the_zip_in_any_packing(tmp_path, kept, capsys):
    (kept / pascal5i.SBD.name).unlink()
    with zipfile.ZipFile(kept / "SegmentationClassAug.zip", "w") as file:
        for name in (*TRAIN, *VAL, *SBD_ONLY):
            values = labels(name, void=name not in SBD_ONLY)
            file.writestr(f"data/SegmentationClassAug/{name}.png", png(values))
            file.writestr(f"__MACOSX/data/SegmentationClassAug/._{name}.png", b"mac")
    root = tmp_path / "root"
    assert run(root, kept) == 1
    told = capsys.readouterr().out
    assert "2 of 9" in told and told.count("give --lists") == 2
    assert len(list((root / pascal5i.AUG).iterdir())) == 5


def test_from_a_folder_of_mat_files_and_after_an_interruption(tmp_path, kept, lists):
    with tarfile.open(kept / pascal5i.SBD.name) as file:
        file.extractall(kept, filter="data")
    (kept / pascal5i.SBD.name).unlink()
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(whole, kept, "--lists", lists) == 0
    assert run(broken, kept, "--lists", lists) == 0
    # Stopped while the official masks were put over SBD's.
    (broken / pascal5i.AUG / "2007_2.png").unlink()
    one = broken / pascal5i.AUG / "2007_3.png"
    Image.fromarray(labels("2007_3", void=False)).save(one)
    assert run(broken, kept, "--lists", lists) == 0
    assert written(broken) == written(whole)


def test_lists_beside_the_archives_are_used(tmp_path, kept):
    (kept / pascal5i.VOC.name).unlink()
    place = kept / "ImageSets" / "Segmentation"
    place.mkdir(parents=True)
    (place / "train.txt").write_text("2007_1\r\n2007_2\r\n")
    (place / "val.txt").write_text("2007_3\n")
    assert run(tmp_path / "root", kept) == 1, "no images"
    stored = tmp_path / "root/ImageSets/Segmentation"
    assert (stored / "train.txt").read_text() == "2007_1\n2007_2\n"


def harmed(root, name, values):
    Image.fromarray(values).save(root / pascal5i.AUG / f"{name}.png")


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("2008_1", lambda v: np.where(v == 0, 255, v), "1 of them not official"),
        ("2007_1", lambda v: np.where(v == 255, 0, v), "1 official ones have none"),
        ("2008_1", lambda v: np.where(v == 0, 99, v), "1 masks have others, 2008_1"),
        ("2007_3", lambda v: np.where(v == 11, 0, v), "lack the class, 2007_3__11"),
        ("2008_1", lambda v: v[1:], "differ in size from their mask, 2008_1"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, kept, lists, capsys, name, change, told):
    root = tmp_path / "root"
    run(root, kept, "--lists", lists)
    values = labels(name, void=name not in SBD_ONLY)
    harmed(root, name, change(values).astype(np.uint8))
    capsys.readouterr()
    assert run(root, kept, "--lists", lists) == 1
    assert told in capsys.readouterr().out


def test_nothing_there_says_where_to_get_it(tmp_path, capsys):
    assert run(tmp_path / "root", tmp_path) == 1
    told = capsys.readouterr().out
    assert "VOCtrainval_11-May-2012.tar" in told and "benchmark.tgz" in told


def test_lists_of_the_wrong_fold_are_refused(tmp_path, kept, lists, capsys):
    (lists / "val" / "fold0.txt").write_text("2007_1__20\n")
    assert run(tmp_path / "root", kept, "--lists", lists) == 2
    assert "not of fold 0" in capsys.readouterr().err


def test_the_real_numbers():
    assert pascal5i.TRAIN + pascal5i.VAL == 2913
    assert pascal5i.MASKS - pascal5i.VAL == pascal5i.TRAINAUG


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"MATLAB 5.0 MAT-file" + b" " * 200,
        mat(np.full(SIZE, 21, np.uint8)),
        mat(np.zeros((2, 3, 4), np.uint8)),
    ],
)
def test_a_bad_mat_file_is_named(content):
    with pytest.raises(DiffUpError, match="2008_7.mat"):
        read_mat(content, "2008_7.mat")


def test_a_mat_file_of_the_official_form():
    values = np.random.default_rng(0).integers(0, 21, SIZE).astype(np.uint8)
    assert (read_mat(mat(values), "x") == values).all()
    assert read_mat(mat(values), "x").dtype == np.uint8
