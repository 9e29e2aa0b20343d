"""DiffUp in JAX: few-shot semantic segmentation from a handful of cues.

    import diffup_jax
    from diffup_jax import Example

    model = diffup_jax.load("runs/garments")
    examples = [Example("a.jpg", mask="a.png"), Example("b.jpg", box=(9, 9, 80, 60))]
    task = model.fit(examples, label="star")
    result = task.predict("q.jpg")

The rooms lie on floors: `types` and `files` below, then images, backbones and data, the
methods, training and evaluation, and on top `model` and the commands. A room imports
only from the floors below it; `tests/test_floors.py` holds that law.

Nothing is imported here before it is asked for, so that a data worker can read
`diffup_jax.data` without loading jax.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "DiffUpError": "types",
    "Example": "data.episode",
    "Model": "model",
    "Result": "result",
    "Task": "model",
    "load": "loading",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str):
    """The names of `_HOME`, imported when they are first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return sorted({*globals(), *_HOME})
