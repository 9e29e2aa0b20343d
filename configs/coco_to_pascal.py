"""A decoder trained on COCO-20i fold F, tested on Pascal classes it never saw.

`--config configs/coco_to_pascal.py:FOLD --workdir W`, where W was trained with
configs/coco_foldFOLD.py. Files: python -m data_prep.pascal5i.
"""

from configs import common


def get_config(fold=None):
    config = common.get_config()
    config.data.source = "coco_to_pascal"
    config.data.root = "data/voc2012"
    config.data.train_split = "train"
    config.data.test_split = "val"
    return common.with_fold(config, fold)
