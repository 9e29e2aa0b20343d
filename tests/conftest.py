"""How every test runs: strict, on two CPU devices, with shapes checked.

Set before jax is imported, because jax reads them once:

- two CPU devices, so that "one device and two give the same update" can be tested on
  any machine; the CPU is used unless JAX_PLATFORMS names another platform;
- rank promotion raises: a silent broadcast [b p q] + [b p q c] is nearly always a bug;
- compiled programs are kept in `.cache/jax-tests` (or JAX_COMPILATION_CACHE_DIR) and
  compiled with few optimisations, because compiling, not computing, is what the tests
  spend their time on (a training step: 10 s of CPU instead of 20);
- jaxtyping annotations of the package are checked by beartype. Only this process has
  the import hook: data workers are started afresh and import the package unchecked.

Warnings are errors through `filterwarnings` in pyproject.toml.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parent.parent

_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=2".strip()
for _quick in (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
):
    if _quick.partition("=")[0] not in os.environ["XLA_FLAGS"]:
        os.environ["XLA_FLAGS"] += f" {_quick}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# A bounded cache is a locked cache: two workers never read a half-written entry.
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2 << 30))
os.environ.setdefault("DIFFUP_CACHE", str(ROOT / ".cache" / "diffup-tests"))
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

install_import_hook("diffup_jax", "beartype.beartype")


@pytest.fixture(scope="session")
def realdata() -> Path:
    """Folder of the real images, splits and weights; skips where there is none."""
    named = os.environ.get("DIFFUP_REALDATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "realdata"
    if folder.is_dir():
        return folder
    if named:
        pytest.fail(f"DIFFUP_REALDATA={named!r} is not a folder")
    pytest.skip("no real data: set DIFFUP_REALDATA to its folder")


@pytest.fixture
def no_network(monkeypatch, tmp_path) -> None:
    """An empty Hugging Face cache, offline, and a store of converted weights here."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("DIFFUP_CACHE", str(tmp_path / "cache"))
