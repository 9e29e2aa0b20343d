"""The gallery is one self-contained, escaped file that shows every map."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from diffup_jax import gallery
from diffup_jax.types import CUES, Episode, Prediction, Query, Support

NAME = '<script>alert("cat & dog")</script>'


class _Page(HTMLParser):
    """Collects the tags and the text, and checks that tags close in order."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def _episode(b=3, n=1, k=2, h=24, w=30):
    random = np.random.default_rng(0)
    return Episode(
        Support(
            images=random.random((b, n, k, h, w, 3)).astype(np.float32),
            fg=random.random((b, n, k, h, w)) < 0.02,
            bg=np.zeros((b, n, k, h, w), bool),
            kind=np.full((b, n, k), CUES.index("scribble"), np.int32),
            valid=np.arange(k) < np.array([2, 1, 0])[:b, None, None] + np.zeros((n, 1)),
            text=np.zeros((b, n, 0), np.float32),
            text_valid=np.arange(b)[:, None] + np.zeros((1, n)) == 2,
        ),
        Query(
            image=random.integers(0, 256, (b, h, w, 3), np.uint8),
            valid=random.random((b, h, w)) < 0.8,
            mask=random.random((b, n, h, w)) < 0.5,
        ),
    )


MAPS = ("prior_mean", "prior_variance", "uncertainty")


def _items(episode, count, prob=None, *, threshold=0.5, maps=MAPS):
    random = np.random.default_rng(1)
    shape = episode.query.mask.shape
    answer = Prediction(
        random.random(shape, np.float32) if prob is None else prob,
        np.broadcast_to(np.float32(threshold), shape[:2]),
        {name: random.random(shape, np.float32) for name in maps},
    )
    return gallery.gallery_items(
        episode,
        np.arange(shape[0] * shape[1]).reshape(shape[:2]),
        count,
        prediction=answer,
        names=dict.fromkeys(range(99), NAME),
    )


def _write(tmp_path, items):
    path = tmp_path / "new" / "gallery.html"
    gallery.write_gallery(path, items, title="A & B <fold 0>", facts={"weights": "<w>"})
    assert [each.name for each in path.parent.iterdir()] == ["gallery.html"]
    text = path.read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert not page.open
    return text, page


def test_gallery_is_self_contained_and_shows_every_map(tmp_path):
    items = _items(_episode(), 3)
    text, page = _write(tmp_path, items)
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    # Six maps per row, and 2 + 1 + 0 supports: padded shots are not shown.
    assert len(images) == 3 * 6 + 3
    for attrs in images:
        kind, data = attrs["src"].split(",", 1)
        assert kind == "data:image/jpeg;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert picture.size == (30, 24)
        picture.load()
    text = re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", "", text)
    assert "http" not in text and "url(" not in text and "@import" not in text
    outward = [a for _, a in page.tags if "href" in a]
    assert not outward
    assert not {"link", "script", "iframe"} & {tag for tag, _ in page.tags}


@pytest.mark.parametrize("maps", [(), ("doubt_of_<mine>",)])
def test_a_row_shows_the_maps_that_a_method_has(tmp_path, maps):
    """Each under its own name; a method that tells nothing else has no column more."""
    text, page = _write(tmp_path, _items(_episode(), 3, maps=maps))
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 3 * (3 + len(maps)) + 3
    assert f"--columns:{4 + len(maps)}" in text and "prior" not in text
    # Over each third of the rows.
    assert page.text.count("doubt of <mine>") == 3 * len(maps)


def test_names_are_escaped(tmp_path):
    text, page = _write(tmp_path, _items(_episode(), 3))
    assert "<script" not in text
    assert page.text.count(NAME) == 3
    assert f"“{NAME}”" in page.text  # the text-only episode shows its cue
    assert page.text.count("A & B <fold 0>") == 2 and "<w>" in page.text


def test_rows_go_from_best_to_worst_under_headings(tmp_path):
    items = _items(_episode(), 3)
    text, page = _write(tmp_path, items[::-1])
    shown = [float(value) for value in re.findall(r"IoU ([0-9.]+)", text)]
    assert shown == sorted(shown, reverse=True) and len(set(shown)) == 3
    headings = [text.index(words) for words in ("Best", "In between", "Worst")]
    assert headings == sorted(headings)
    cues = [words.strip() for words in page.text if "scribble" in words]
    assert sorted(cues) == ["1 × scribble", "2 × scribble"]


def test_an_empty_gallery_is_a_page(tmp_path):
    _, page = _write(tmp_path, [])
    assert not [tag for tag, _ in page.tags if tag == "img"]


def test_the_shown_mask_is_cut_where_the_method_says():
    episode = _episode()
    prob = np.random.default_rng(2).random(episode.query.mask.shape, np.float32)
    cuts = np.array([[0.2], [0.5], [0.4]], np.float32)
    for item, each, cut in zip(
        _items(episode, 3, prob, threshold=cuts), prob, cuts, strict=True
    ):
        np.testing.assert_array_equal(item.prediction, each[0] > cut[0])


def test_items_hold_the_real_episodes_and_the_metric_of_their_picture():
    episode = _episode(n=2)
    prob = episode.query.mask.astype(np.float32)
    items = _items(episode, 2, prob)
    assert len(items) == 4
    first = prob[:, 0] > 0.5  # equal probabilities go to the first way
    for b in range(2):
        one, two = items[2 * b : 2 * b + 2]
        assert one.iou == 100
        np.testing.assert_array_equal(two.prediction, (prob[b, 1] > 0.5) & ~first[b])
        valid, truth = episode.query.valid[b], prob[b, 1] > 0.5
        hit = np.count_nonzero(two.prediction & valid)
        assert two.iou == pytest.approx(100 * hit / np.count_nonzero(truth & valid))
        np.testing.assert_array_equal(one.query, episode.query.image[b])


def test_overlay_leaves_untinted_pixels_alone():
    random = np.random.default_rng(2)
    image = random.integers(0, 256, (9, 7, 3), np.uint8)
    mask = np.where(random.random((9, 7)) < 0.5, random.random((9, 7)), 0)
    tinted = gallery.overlay(image, mask, colour=(0, 255, 0), strength=0.7)
    np.testing.assert_array_equal(tinted[mask == 0], image[mask == 0])
    assert np.all(tinted[mask > 0][:, 1] >= image[mask > 0][:, 1])
    full = gallery.overlay(image, np.ones((9, 7)), colour=(9, 8, 7), strength=1.0)
    assert np.all(full == (9, 8, 7))


def test_colourise_is_clipped_and_grows_lighter():
    ramp = gallery.colourise(np.linspace(-1, 3, 81)[None], low=0.0, high=2.0)[0]
    np.testing.assert_array_equal(ramp[:20], np.broadcast_to(ramp[20], (20, 3)))
    np.testing.assert_array_equal(ramp[61:], np.broadcast_to(ramp[60], (20, 3)))
    light = ramp[20:61].astype(int) @ [299, 587, 114]
    assert np.all(np.diff(light) > 0)
    constant = gallery.colourise(np.zeros((2, 2)), low=0.0, high=0.0)
    assert len(np.unique(constant.reshape(-1, 3), axis=0)) == 1
