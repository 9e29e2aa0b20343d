"""COCO-20i fold 3 with a frozen ResNet-50.

Weights: the torchvision or Hugging Face ResNet-50, as safetensors or .pth, given with
--config.backbone.weights=PATH.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.data.fold = 3
    return config
