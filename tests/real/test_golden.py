"""The published episodes of HSNet's lists, to the bit: all sixteen."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from PIL import Image

from data_prep import freeze_episodes
from diffup_jax.data import episodes, lists, published
from diffup_jax.data.sources import open_source

# (benchmark, shots): hashes of folds 0..3. The 1-shot ones of folds 0 and 1 were known
# beforehand; the others come from the same stream.
GOLDEN = {
    ("coco", 1): "aeb00fa3d011d93e 62d707ab49cb3372 18954956331d10f4 f80651936bdcc412",
    ("coco", 5): "7b6a3bf924842c95 91fc2f64f0569d52 a5ea7cecf977b4c7 d6f3b40ac3ca9c39",
    (
        "pascal",
        1,
    ): "22041d89bcb48fe5 849fe724e95edc93 dc04eb3d26104133 036cf9c8f0cb399c",
    (
        "pascal",
        5,
    ): "09f94549902b71f4 18aeaee2418fa8ef 1a8082ebb2827ea7 043a1b28369941de",
}
FIRST = {
    ("coco", 0): (72, "507081.jpg", "486122.jpg"),
    ("coco", 1): (73, "154095.jpg", "476810.jpg"),
    ("pascal", 0): (0, "2007_000033", "2010_001174"),
    ("pascal", 1): (8, "2007_000452", "2008_000107"),
}


@pytest.fixture(scope="module")
def frozen(realdata, tmp_path_factory):
    """(benchmark, fold, shots) -> draws, written by the command and read again."""
    folder = tmp_path_factory.mktemp("golden")
    found = {}
    for (benchmark, shots), _ in GOLDEN.items():
        for fold in range(4):
            out = folder / f"{benchmark}{fold}{shots}.jsonl"
            code = freeze_episodes.main(
                ["--benchmark", benchmark, "--protocol", "hsnet"]
                + ["--lists", str(realdata / "splits"), "--fold", str(fold)]
                + ["--shots", str(shots), "--out", str(out)]
            )
            assert code == 0
            found[benchmark, fold, shots] = lists.read_draws(out)[0]
    return found


@pytest.mark.parametrize(("benchmark", "shots"), list(GOLDEN))
def test_golden_lists(frozen, benchmark, shots):
    hashes = [lists.draws_sha(frozen[benchmark, fold, shots]) for fold in range(4)]
    assert hashes == GOLDEN[benchmark, shots].split()


@pytest.mark.parametrize(("benchmark", "fold"), list(FIRST))
def test_first_published_episodes(frozen, benchmark, fold):
    class_id, query, support = FIRST[benchmark, fold]
    for shots in (1, 5):
        first = frozen[benchmark, fold, shots][0]
        assert first.class_ids == (class_id,)
        assert first.query.endswith(query) and first.supports[0][0].endswith(support)


def test_published_counts(realdata):
    def sizes(benchmark, split, folds):
        return [
            sum(map(len, published.read_lists(
                realdata / "splits", benchmark, split=split, fold=fold
            ).values()))
            for fold in range(folds)
        ]  # fmt: skip

    assert sizes("coco", "val", 4) == [35783, 17912, 14563, 14315]
    assert sizes("coco", "trn", 2) == [95476, 133927]
    assert sizes("pascal", "val", 4) == [346, 451, 725, 346]
    assert sizes("pascal", "trn", 4) == [2286, 3425, 5883, 2086]
    for split, classes in (("trn", 520), ("val", 240), ("test", 240)):
        images = published.read_lists(realdata / "splits", "fss", split=split, fold=0)
        assert len(images) == classes
    assert min(images) == 760 and sum(map(len, images.values())) == 2400
    for fold in range(4):
        images = published.read_lists(
            realdata / "splits", "coco", split="val", fold=fold
        )
        assert list(images) == list(range(fold, 80, 4))


def test_pascal_lists_are_sorted_pairs(realdata):
    """Why the order "listed" needs no file: it is the sorted order of the pairs."""
    for fold in range(4):
        path = realdata / f"splits/pascal/val/fold{fold}.txt"
        pairs = published.read_pascal(path)
        assert list(pairs) == sorted(pairs)


def test_pfenet_lists_are_the_images_of_voc(realdata):
    folder = realdata / "splits" / "pfenet_pascal"
    names = {
        path.stem: len(published.read_pfenet(path)) for path in folder.glob("*.txt")
    }
    assert names["val"] == 1449 and names["voc_sbd_merge_noduplicate"] == 5953
    images = {image for image, _ in published.read_pfenet(folder / "val.txt")}
    listed = {
        name
        for fold in range(4)
        for name, _ in published.read_pascal(
            realdata / f"splits/pascal/val/fold{fold}.txt"
        )
    }
    assert {f"JPEGImages/{name}.jpg" for name in listed} <= images


def test_published_names_fit_the_images_of_2017(realdata):
    """Every listed image that is here is found under its 2017 name, with its class."""
    source = open_source(
        "coco",
        root=str(realdata / "coco"),
        split="val2017",
        min_area=0.0,
        crowd="hsnet",
    )
    here = {c: set(source.image_ids(c)) for c in range(80)}
    draws = []
    for fold in range(4):
        images = published.read_lists(
            realdata / "splits", "coco", split="val", fold=fold
        )
        for class_id, names in images.items():
            known = [n for n in names if n[-16:-4] in here[class_id]]
            if len(known) > 1:
                draws.append(episodes.Draw((class_id,), known[0], ((known[1],),)))
    fitted = lists.check_draws(draws, source, classes=range(80), name="list")
    assert len(fitted) > 20
    for draw, found in zip(draws, fitted, strict=True):
        assert found.query == draw.query[-16:-4] and found.class_ids == draw.class_ids


def test_coco_lists_were_filtered_and_painted(realdata):
    """The published COCO lists keep a class from about 2048 painted pixels on.

    Of all (image, class) pairs of the images here, few are listed otherwise than by
    that rule; unions of instances, or no filter, are listed otherwise far more often.
    """
    listed: dict[str, set[int]] = {}
    for split, fold in [("val", f) for f in range(4)] + [("trn", 0), ("trn", 1)]:
        images = published.read_lists(
            realdata / "splits", "coco", split=split, fold=fold
        )
        for class_id, names in images.items():
            for name in names:
                listed.setdefault(name[-16:-4], set()).add(class_id)
    wrong = dict.fromkeys([(o, n) for o in ("painted", "union") for n in (1, 2048)], 0)
    pairs = 0
    for split in ("train2017", "val2017"):
        sources = {
            overlap: open_source(
                "coco",
                root=str(realdata / "coco"),
                split=split,
                min_area=0.0,
                crowd="hsnet",
                overlap=overlap,
            )
            for overlap in ("painted", "union")
        }
        for class_id in range(80):
            for image_id in sources["union"].image_ids(class_id):
                if image_id not in listed:
                    continue
                pairs += 1
                for overlap, least in wrong:
                    mask, _ = sources[overlap].mask(image_id, class_id)
                    is_listed = class_id in listed[image_id]
                    wrong[overlap, least] += (mask.sum() >= least) != is_listed
    print(pairs, wrong)
    assert pairs > 900
    assert wrong["painted", 2048] <= 7
    assert wrong["union", 2048] > 4 * wrong["painted", 2048]
    assert min(wrong["painted", 1], wrong["union", 1]) > 0.25 * pairs


def test_pascal_lists_were_filtered(realdata):
    """Not one pair of the published Pascal lists is a small object."""
    path = next((realdata / "voc2012").rglob("SegmentationClassAug.zip"))
    names = [
        Path(image).stem
        for image, _ in published.read_pfenet(
            realdata / "splits" / "pfenet_pascal" / "val.txt"
        )
    ]
    listed = {
        (name, class_id)
        for fold in range(4)
        for name, class_id in published.read_pascal(
            realdata / f"splits/pascal/val/fold{fold}.txt"
        )
    }
    pixels = {}
    with zipfile.ZipFile(path) as archive:
        members = {Path(m).stem: m for m in archive.namelist() if m.endswith(".png")}
        for name in names:
            with archive.open(members[name]) as file, Image.open(file) as picture:
                counts = picture.histogram()
            pixels |= {(name, c): counts[c + 1] for c in range(20) if counts[c + 1]}
    assert listed <= set(pixels)
    assert min(pixels[pair] for pair in listed) > 1100
    out = {pair: n for pair, n in pixels.items() if pair not in listed}
    wrong = sum((n >= 2048) != (pair in listed) for pair, n in pixels.items())
    print(len(pixels), len(out), wrong)
    assert len(out) > 250 and wrong < len(out) / 3
