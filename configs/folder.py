"""One's own images: `--config configs/folder.py:DIR` with DIR/CLASS/NAME.jpg and .png.

All classes are novel: score a trained run on them, or --config.method=prior. To train
on them as well, see diffup_jax/data/readers/class_folders.py for splits and folds.
Weights: --config.backbone.weights=PATH.
"""

from configs import common


def get_config(folder="data/folder"):
    config = common.get_config()
    config.data.source = "folder"
    config.data.root = folder
    config.data.train_split = "all"
    config.data.test_split = "all"
    config.data.skip_small_classes = True
    config.eval.protocol = "clean"
    config.eval.shots = (1,)
    return config
