"""Templates, their average, and background lists that do not name a class."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffup_jax.backbones import prompts
from diffup_jax.types import DiffUpError

# The 20 classes of Pascal VOC and the 80 of COCO: a background text that names one
# would take its cells.
PASCAL = {
    *("aeroplane", "airplane", "bicycle", "bird", "boat", "bottle", "bus", "car"),
    *("cat", "chair", "cow", "table", "dining table", "dog", "horse", "motorbike"),
    *("motorcycle", "person", "plant", "sheep", "sofa", "couch", "train", "tv"),
}
COCO = {
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck"),
    *("boat", "traffic light", "fire hydrant", "stop sign", "parking meter", "bench"),
    *("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra"),
    *("giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove"),
    *("skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup"),
    *("fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange"),
    *("broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse"),
    *("remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink"),
    *("refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
}


def test_one_sentence_per_template():
    assert prompts.class_prompts("cat", templates=prompts.TEMPLATES) == (
        "a photo of a cat",
    )
    many = prompts.class_prompts("traffic_light", templates=prompts.MORE_TEMPLATES)
    assert len(many) == len(set(many)) == len(prompts.MORE_TEMPLATES)
    assert all("traffic light" in sentence for sentence in many)


def test_braces_in_a_name_are_only_letters():
    (told,) = prompts.class_prompts("{0} {name}", templates=("a {name}",))
    assert told == "a {0} {name}"


@pytest.mark.parametrize(
    ("name", "templates"),
    [
        ("", prompts.TEMPLATES),
        (" _ ", prompts.TEMPLATES),
        ("cat", ()),
        ("cat", ("a photo",)),
        ("cat", ("{name} and {name}",)),
    ],
)
def test_prompts_without_a_name_are_refused(name, templates):
    with pytest.raises(DiffUpError, match="a photo of a {name}"):
        prompts.class_prompts(name, templates=templates)


@pytest.mark.parametrize("dataset", prompts.BACKGROUNDS)
def test_background_names_no_class(dataset):
    names = prompts.background_names(dataset)
    assert len(names) == len(set(names)) > 10
    classes = {"default": PASCAL | COCO, "pascal": PASCAL, "coco": COCO}
    assert len(COCO) == 80
    assert not classes[dataset] & set(names)


def test_unknown_dataset_tells_the_lists():
    with pytest.raises(DiffUpError, match="'lvis'.*default, pascal, coco"):
        prompts.background_names("lvis")


def test_average_is_a_unit_vector_between_its_parts():
    x = np.random.default_rng(0).normal(size=(3, 4, 6)).astype("float32")
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    mean = prompts.average(jnp.asarray(x))
    assert mean.shape == (3, 6)
    np.testing.assert_allclose(np.linalg.norm(mean, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(
        prompts.average(jnp.asarray(x[:, ::-1])), mean, atol=1e-6
    )
    np.testing.assert_allclose(
        prompts.average(jnp.asarray(x[:, :1])), x[:, 0], atol=1e-6
    )
    direction = x.sum(axis=1)
    cosine = (direction * mean).sum(-1) / np.linalg.norm(direction, axis=-1)
    np.testing.assert_allclose(cosine, 1, atol=1e-6)
