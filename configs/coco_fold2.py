"""COCO-20i fold 2 with a frozen ResNet-50.

Weights: the default of `diffup backbones list resnet50`, fetched once; or a torchvision
or Hugging Face file of your own with --config.backbone.weights=PATH.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.data.fold = 2
    return config
