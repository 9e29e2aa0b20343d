"""The config of tests/red.py: `--config tests/red_config.py:FOLDER`, see runs.py."""

from configs import common
from diffup_jax import methods
from tests import runs
from tests.red import Red

methods.register(Red)


def get_config(root: str):
    """The small run of every test, with this method instead of DiffUp."""
    config = common.get_config("red")
    shared = runs.get_config(root)
    for section in ("data", "train", "eval"):
        config[section] = shared[section]
    config.train.learning_rate = 0.05
    return config
