"""F1: compiled programs are kept on disk: nobody waits for the same one twice."""

from __future__ import annotations

import jax

from diffup_jax import files


def keep() -> None:
    """Keeps compiled programs between runs, where nothing else was chosen.

    In JAX_COMPILATION_CACHE_DIR, or `jax` in the cache folder (files.cache_folder).
    """
    if not jax.config.jax_compilation_cache_dir:
        folder = str(files.cache_folder("jax"))
        jax.config.update("jax_compilation_cache_dir", folder)
        # A bounded cache is a locked cache: two runs never read a half-written entry.
        jax.config.update("jax_compilation_cache_max_size", 2 << 30)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
