"""LVIS-92i with a frozen ResNet-50; `--config configs/lvis92i.py:FOLD`, 0 to 9.

The folds depend on the number of shots, so a run trains and tests with one number of
them. Files: python -m data_prep.lvis92i. Weights: --config.backbone.weights=PATH.
"""

from configs import common


def get_config(fold=None):
    config = common.get_config()
    config.data.source = "lvis92i"
    config.data.root = "data/lvis92i"
    config.data.train_split = "train"
    config.data.test_split = "val"
    config.data.skip_small_classes = True
    config.train.max_shots = 1
    config.eval.shots = (1,)
    return common.with_fold(config, fold)
