"""The 258 real COCO images; `--config configs/coco_mini.py:FOLD`. SqueezeNet 1.1.

Base classes of train2017 train, novel classes of val2017 test. Far too few images for
more than a check that everything runs on real COCO files.
"""

from configs import garments


def get_config(fold=None):
    config = garments.get_config(fold)
    config.data.source = "coco"
    config.data.root = "$DIFFUP_REALDATA/coco"
    config.data.train_split = "train2017"
    config.data.test_split = "val2017"
    config.data.min_area = 0.0
    config.data.skip_small_classes = True
    # Smaller objects than garments: no other size was better, docs/log/results.md.
    config.prior.scales = (1.0,)
    config.train.steps = 300
    config.train.prior_cache = 1200
    config.eval.shots = (1,)
    return config
