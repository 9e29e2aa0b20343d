"""Both real SqueezeNet files: fully used, and their features know what things are."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffup_jax import backbones, weights

FILES = {
    "squeezenet1_1": "squeezenet_v1_1_notop_hwio.npz",
    "squeezenet1_0": "squeezenet_v1_0_deepcompressed.npz",
}
# COCO category -> ImageNet-1k classes that name the same thing.
SAME_THING = {
    "zebra": {340},
    "elephant": {101, 385, 386},
    "bear": {294, 295, 296, 297},
    "dog": set(range(151, 269)),
    "cat": set(range(281, 286)),
    "banana": {954},
    "orange": {950},
    "pizza": {963},
    "broccoli": {937},
    "airplane": {404, 895},
    "bus": {654, 779, 874},
    "train": {466, 705, 820},
    "toilet": {861},
    "laptop": {620, 681},
    "parking meter": {704},
    "stop sign": {919},
    "traffic light": {920},
    "teddy bear": {850},
}
_SIZE = 160


@pytest.fixture(scope="module")
def crops(realdata):
    """Square crops [m s s 3] of objects wider and higher than 64 pixels, their
    category names [m] and image ids [m]: at most one object per image and category.
    """
    images, names, ids = [], [], []
    for split in ("train", "val"):
        table = json.loads(
            (realdata / f"coco/annotations/instances_{split}2017.json").read_text()
        )
        category = {c["id"]: c["name"] for c in table["categories"]}
        file = {i["id"]: i["file_name"] for i in table["images"]}
        largest = {}
        for one in sorted(table["annotations"], key=lambda a: a["area"]):
            if not one["iscrowd"] and min(one["bbox"][2:]) > 64:
                largest[one["image_id"], category[one["category_id"]]] = one["bbox"]
        for (image_id, name), (x, y, w, h) in largest.items():
            with Image.open(realdata / f"coco/{split}2017/{file[image_id]}") as image:
                half, cx, cy = 0.6 * max(w, h), x + w / 2, y + h / 2
                box = tuple(
                    int(v) for v in (cx - half, cy - half, cx + half, cy + half)
                )
                crop = image.convert("RGB").crop(box).resize((_SIZE, _SIZE))
            images.append(np.asarray(crop))
            names.append(name)
            ids.append(image_id)
    return np.stack(images), np.array(names), np.array(ids)


def _get(realdata, name: str) -> backbones.Backbone:
    return backbones.get(name, weights=str(realdata / "weights" / FILES[name]))


def _in_batches(function, images: np.ndarray) -> np.ndarray:
    """`function` over batches of one shape; the last one repeats its final image."""
    size = 32
    batches = [images[i : i + size] for i in range(0, len(images), size)]
    short = size - len(batches[-1])
    batches[-1] = np.concatenate([batches[-1], images[-1:].repeat(short, 0)])
    return np.concatenate([function(b) for b in batches])[: len(images)]


def _neighbour_accuracy(backbone, images, names, ids) -> float:
    """Share of crops whose nearest crop from another image is of the same category."""
    pooled = jax.jit(
        lambda x: backbone.apply(backbone.params, x, normalised=False).last.mean((1, 2))
    )
    features = _in_batches(pooled, images)
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = features @ features.T
    similarity[ids[:, None] == ids[None]] = -np.inf
    return float((names[similarity.argmax(1)] == names).mean())


@pytest.mark.parametrize("name", FILES)
def test_the_file_fits_and_every_key_is_used(realdata, name):
    backbone = _get(realdata, name)
    source = weights.read(realdata / "weights" / FILES[name])
    head = [key for key in source if key.startswith("conv_final/")]
    assert len(head) == (2 if name == "squeezenet1_0" else 0)
    kept = jax.tree.leaves(backbone.params)
    assert len(kept) == len(source) - len(head)
    # The same numbers, each once, whatever their order: sums of every array agree.
    want = sorted(float(np.abs(source[k]).sum()) for k in source if k not in head)
    got = sorted(float(jnp.abs(x).sum()) for x in kept)
    np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.parametrize("name", FILES)
def test_levels_at_384(realdata, name):
    backbone = _get(realdata, name)
    image = jax.ShapeDtypeStruct((1, 384, 384, 3), jnp.uint8)
    answer = jax.eval_shape(backbone, image)
    grids = {n: answer.levels[n].shape[1:3] for n in ("fire3", "fire5", "fire9")}
    assert grids == {"fire3": (96, 96), "fire5": (48, 48), "fire9": (24, 24)}


@pytest.mark.parametrize("name", FILES)
def test_features_know_categories_better_than_untrained_ones(realdata, crops, name):
    trained = _neighbour_accuracy(_get(realdata, name), *crops)
    untrained = _neighbour_accuracy(backbones.get(name, weights="random"), *crops)
    print(f"{name}: nearest neighbour {trained:.3f}, untrained {untrained:.3f}")
    assert trained > untrained + 0.15


def test_imagenet_head_names_what_the_crops_show(realdata, crops):
    """The 1.0 file's own classifier on our features: it works only when channel order,
    mean, padding and every layer are right.
    """
    images, names, _ = crops
    chosen = np.isin(names, list(SAME_THING))
    backbone = _get(realdata, "squeezenet1_0")
    source = weights.read(realdata / "weights" / FILES["squeezenet1_0"])
    kernel, bias = source["conv_final/weight"][:, :, 0, 0].T, source["conv_final/bias"]

    @jax.jit
    def classify(x):
        last = backbone.apply(backbone.params, x, normalised=False).last
        # The classifier's 1x1 convolution was trained with one pixel of zeros around.
        last = jnp.pad(last, ((0, 0), (1, 1), (1, 1), (0, 0)))
        scores = jax.nn.relu(
            jnp.einsum("bpqc,cn->bpqn", last, kernel) + bias[None, None, None]
        )
        return jax.lax.top_k(scores.mean((1, 2)), 5)[1]

    def top5(pictures) -> float:
        answers = _in_batches(classify, pictures)
        return np.mean(
            [
                bool(SAME_THING[name] & set(row.tolist()))
                for name, row in zip(names[chosen], answers, strict=True)
            ]
        )

    right, swapped = top5(images[chosen]), top5(images[chosen][..., ::-1])
    print(f"top-5 {right:.3f} of {chosen.sum()}, red and blue swapped {swapped:.3f}")
    assert right > 0.6
    assert right > swapped + 0.05
