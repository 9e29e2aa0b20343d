"""`configs/garments.py` trained over two backbones in turn; `:FOLD` as there.

SqueezeNet 1.1, and EfficientNet-Lite0 from the hub (or your file, with
`--config.train.also_over.efficientnet_lite0.weights=FILE`). One decoder for both:
what that costs and gains is in docs/log/results.md, "Another backbone".
"""

from configs import common, garments


def get_config(fold=None):
    config = garments.get_config(fold)
    # One size: chosen on base classes of training images, docs/log/results.md.
    config.train.also_over.efficientnet_lite0 = common.over(scales=(1.0,))
    # Of each backbone; EfficientNet is slow on CPU.
    config.train.prior_cache = 3000
    return config
