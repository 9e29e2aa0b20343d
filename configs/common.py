"""What every config begins with: the defaults of diffup_jax/config.py, to be changed.

Any value can be set on the command line: `--config.train.steps=100`. Unknown keys are
refused. Paths may hold environment variables. `diffup config` lists every key.
"""

from ml_collections import ConfigDict

from diffup_jax import config as settings


def get_config(method: str = "diffup") -> ConfigDict:
    """COCO-20i fold 0, ResNet-50: the full benchmark."""
    return ConfigDict(settings.defaults(method))


def over(
    weights: str = "",
    *,
    levels: tuple[str, ...] = (),
    scales: tuple[float, ...] = (1.0,),
) -> ConfigDict:
    """A further backbone: `config.train.also_over.NAME = over(...)`.

    weights as config.backbone.weights; levels and scales as those of config.prior.
    """
    return ConfigDict({"weights": weights, "levels": levels, "scales": scales})


def with_fold(config: ConfigDict, fold: str | None) -> ConfigDict:
    """`--config FILE:FOLD` sets the fold."""
    if fold is not None:
        config.data.fold = int(fold)
    return config
