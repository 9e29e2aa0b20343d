"""DiffUp in JAX: few-shot semantic segmentation from a handful of cues.

The rooms, from the ground up: `types` and `images` (contracts), `layers`, `weights` and
`diffusion`, `backbones` and `data`, the parts of the method (`baft`, `uapf`, `uqdd`),
`methods`, and on top `training`, `evaluation` and the command line. A room imports only
from the floors below it; `tests/test_floors.py` holds that law.

Nothing is imported here, so that a data worker can read `diffup_jax.data` without
loading jax.
"""

__version__ = "0.1.0"
