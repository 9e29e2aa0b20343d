"""FSS-1000 with a frozen ResNet-50: 520 classes train, 240 others test.

Files: python -m data_prep.fss1000. Weights: --config.backbone.weights=PATH.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.data.source = "fss1000"
    config.data.root = "data/fss1000"
    config.data.train_split = "trn"
    config.data.test_split = "test"
    return config
