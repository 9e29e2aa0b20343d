"""The sections of a run's settings: what configs/common.py may hold, by type.

Frozen dataclasses without defaults: configs/common.py is their one home.
"""

from __future__ import annotations

import dataclasses

from diffup_jax.data.augment import Augment
from diffup_jax.methods import diffup as diffup_method
from diffup_jax.methods import prior as prior_method


@dataclasses.dataclass(frozen=True)
class BackboneSettings:
    """See configs/common.py."""

    name: str
    weights: str


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """See configs/common.py."""

    source: str
    root: str
    test_root: str
    train_split: str
    test_split: str
    fold: int
    image_size: int
    min_area: float
    skip_small_classes: bool
    crowd: str
    overlap: str
    box: str
    scribble: str
    points: int
    on_error: str
    val_fraction: float
    workers: int


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """See configs/common.py."""

    templates: tuple[str, ...]
    backgrounds: tuple[str, ...]
    temperature: float


@dataclasses.dataclass(frozen=True)
class Over:
    """A further backbone of training; see `over` in configs/common.py."""

    weights: str
    levels: tuple[str, ...]
    scales: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """See configs/common.py."""

    steps: int
    batch_size: int
    max_shots: int
    ways: int
    cues: tuple[str, ...]
    fewest_points: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    clip_norm: float
    ema_decay: float
    log_every: int
    val_every: int
    val_episodes: int
    val_classes: int
    checkpoint_every: int
    keep: int
    prior_cache: int
    prior_cache_dir: str
    also_over: dict[str, Over]
    multi_host: bool


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """See configs/common.py."""

    cues: tuple[str, ...]
    shots: tuple[int, ...]
    ways: int
    episodes: int
    episodes_file: str
    protocol: str
    batch_size: int
    seed: int
    gallery: int


@dataclasses.dataclass(frozen=True)
class Settings:
    """A whole run."""

    seed: int
    method: str
    backbone: BackboneSettings
    data: DataSettings
    augment: Augment
    prior: prior_method.PriorSettings
    text: TextSettings
    decoder: diffup_method.DecoderSettings
    process: diffup_method.ProcessSettings
    sampler: diffup_method.SamplerSettings
    losses: diffup_method.LossSettings
    train: TrainSettings
    eval: EvalSettings
