"""PACO-Part with a frozen ResNet-50; `--config configs/paco_part.py:FOLD`, 0 to 3.

Files: python -m data_prep.paco_part. Weights: --config.backbone.weights=PATH.
"""

from configs import common


def get_config(fold=None):
    config = common.get_config()
    config.data.source = "paco_part"
    config.data.root = "data/paco_part"
    config.data.train_split = "train"
    config.data.test_split = "val"
    config.data.skip_small_classes = True
    return common.with_fold(config, fold)
