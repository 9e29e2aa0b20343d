"""Pascal-Part with a frozen ResNet-50; `--config configs/pascal_part.py:FOLD`.

Folds 0 to 3: animals, indoor, person, vehicles. Files: python -m data_prep.pascal_part.
Weights: --config.backbone.weights=PATH.
"""

from configs import common


def get_config(fold=None):
    config = common.get_config()
    config.data.source = "pascal_part"
    config.data.root = "data/pascal_part"
    config.data.train_split = "train"
    config.data.test_split = "val"
    config.data.skip_small_classes = True
    return common.with_fold(config, fold)
