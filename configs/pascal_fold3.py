"""Pascal-5i fold 3 (VOC 2012 + SBD) with a frozen ResNet-50, on the published pairs.

Files: python -m data_prep.pascal5i, with --lists. Weights as in configs/coco_fold0.py.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.data.source = "voc"
    config.data.root = "data/voc2012"
    config.data.train_split = "hsnet_trn"
    config.data.test_split = "hsnet_val"
    config.data.fold = 3
    return config
