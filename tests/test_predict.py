"""`diffup predict`: what the words mean, the files it writes, and its errors."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from diffup_jax import cli, predict
from diffup_jax.types import DiffUpError
from tests import datasets, runs

MODEL = ("--model", "prior", "--backbone", "tiny", "--set", "data.image_size=64")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures with class 2 and the mask of the first."""
    root = datasets.write_label_maps(tmp_path_factory.mktemp("own"), ignore=None)
    names = [f"picture{i:03d}" for i in (2, 10, 18)]
    pictures = [next((root / "images").glob(f"{name}.*")) for name in names]
    for name in names:
        with Image.open(root / "masks" / f"{name}.png") as file:
            labels = np.asarray(file)
        picture = Image.fromarray(((labels == 3) * 255).astype(np.uint8))
        picture.save(root / f"{name}_mask.png")
    return root, pictures


def test_every_option_belongs_to_the_example_before_it():
    words = [
        "--label",
        "cat",
        "--example",
        "a.jpg",
        "--mask",
        "a.png",
        "--mask-label",
        "3",
        "--example",
        "b.jpg",
        "--box",
        "1,2,3,4",
        "--box",
        "5,6,7,8",
        "--label",
        "dog",
        "--example",
        "c.jpg",
        "--point",
        "1,2",
        "--not-point",
        "3,4",
        "--text",
        "hund",
        "--example",
        "d.jpg",
        "--negative",
    ]
    parser = predict.argparse.ArgumentParser()
    predict.arguments(parser)
    words = ["--model", "m", "--query", "q", "--out", "o", *words]
    assert predict.examples_of(parser.parse_args(words).said) == [
        {"image": "a.jpg", "label": "cat", "mask": "a.png", "mask_label": 3},
        {"image": "b.jpg", "label": "cat", "box": [(1, 2, 3, 4), (5, 6, 7, 8)]},
        {
            "image": "c.jpg",
            "label": "dog",
            "points": [(1, 2), (3, 4)],
            "point_labels": [1, 0],
        },
        {"text": "hund", "label": "dog"},
        {"image": "d.jpg", "label": "dog", "negative": True},
    ]


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ([], "no example"),
        ([("mask", "a.png")], "no example before it"),
        ([("text", "a cat"), ("box", "1,2,3,4")], "no example before it"),
        ([("example", "a"), ("box", "1,2,3")], "4 numbers"),
        ([("example", "a"), ("point", "1;2")], "2 numbers"),
        ([("example", "a"), ("mask", "b"), ("mask", "c")], "given twice"),
        ([("example", "a"), ("mask-label", "x")], "whole number"),
    ],
)
def test_words_that_mean_nothing_are_refused(said, word):
    with pytest.raises(DiffUpError, match=word):
        predict.examples_of(said)


def test_a_folder_is_segmented(folder, tmp_path, capsys):
    root, pictures = folder
    queries = tmp_path / "queries"
    queries.mkdir()
    for path in pictures[1:]:
        (queries / path.name).write_bytes(path.read_bytes())
    (queries / "broken.png").write_bytes(b"no picture")
    (queries / "notes.txt").write_text("no picture either")
    status = cli.main(
        [
            *("predict", *MODEL, "--example", str(pictures[0])),
            *("--mask", str(root / "picture002_mask.png")),
            *("--query", str(queries), "--out", str(tmp_path / "out")),
        ]
    )
    out, err = capsys.readouterr()
    assert status == 1 and "broken.png" in err and "2 of 3 pictures" in out
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    endings = ("mask.png", "overlay.jpg", "probability.png")
    stems = [path.stem for path in pictures[1:]]
    assert written == sorted(f"{stem}_{end}" for stem in stems for end in endings)
    for path in pictures[1:]:
        with Image.open(tmp_path / "out" / f"{path.stem}_mask.png") as file:
            mask = np.asarray(file)
        assert mask.shape == datasets.SIZE and set(np.unique(mask)) <= {0, 255}


@pytest.mark.parametrize("given", ["query", "mask"])
def test_answers_never_lie_among_what_was_given(folder, tmp_path, capsys, given):
    root, pictures = folder
    mask = root / "picture002_mask.png"
    out = pictures[1].parent if given == "query" else root
    status = cli.main(
        [
            *("predict", *MODEL, "--example", str(pictures[0]), "--mask", str(mask)),
            *("--query", str(pictures[1]), "--out", str(out)),
        ]
    )
    assert status == 2 and "name another" in capsys.readouterr().err


def test_it_says_what_python_says(folder, tmp_path):
    import diffup_jax

    root, pictures = folder
    mask = root / "picture002_mask.png"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "diffup_jax", "predict", *MODEL),
            *("--example", pictures[0], "--mask", mask, "--query", pictures[1]),
            *("--out", tmp_path / "out"),
        ],
        cwd=runs.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    model = diffup_jax.load("prior", backbone="tiny", settings={"data.image_size": 64})
    task = model.fit([diffup_jax.Example(pictures[0], mask=mask)])
    result = task.predict(pictures[1])
    with Image.open(tmp_path / "out" / f"{pictures[1].stem}_probability.png") as found:
        probability = np.asarray(found) / 65535
    np.testing.assert_allclose(probability, result.probability, atol=1e-4)
    assert f"score {result.score:.2f}" in done.stdout


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["--query", "nowhere.jpg"], "no picture or folder 'nowhere.jpg'"),
        (["--set", "data.image_sise=64"], "did you mean config.data.image_size"),
        (["--backbone", "tinny"], "Unknown backbone 'tinny'"),
        (["--model", "nowhere"], "no model at 'nowhere'"),
    ],
)
def test_one_error_before_any_work(folder, tmp_path, capsys, words, word):
    root, pictures = folder
    mask = root / "picture002_mask.png"
    query = [] if "--query" in words else ["--query", str(pictures[1])]
    status = cli.main(
        [
            *("predict", *MODEL, "--example", str(pictures[0]), "--mask", str(mask)),
            *(*query, "--out", str(tmp_path / "out"), *words),
        ]
    )
    out, err = capsys.readouterr()
    assert status == 2 and word in err and err.count("\n") <= 3
    assert not list((tmp_path / "out").glob("*")) or not out
