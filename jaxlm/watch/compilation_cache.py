"""Compiled programs that outlive their process: jax's persistent compilation cache, with the project's other caches.

What lies there is machine code that the next process runs, so the folder is for its owner alone.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import jax

from jaxlm.config.caches import cache_folder

LEAST_SECONDS = 0.1  # a program that compiles faster is not worth two files


def keep_programs() -> tuple[Path | None, str]:
    """Turn the persistent compilation cache on, for the rest of the process; returns its folder and a word of what was done.

    $JAX_COMPILATION_CACHE_DIR (or `jax_compilation_cache_dir`) stays as it is where it is set; $JAX_ENABLE_COMPILATION_CACHE=0
    switches the cache off. Otherwise the folder is `xla` in `cache_folder()`, mode 0700. A folder that cannot be made, or that
    is another user's, is not used: None, and the word says why. Never raises: without the cache everything works, slower.
    """
    settings: Any = jax.config  # its fields are made at run time
    if not settings.jax_enable_compilation_cache:
        return None, "off, by JAX_ENABLE_COMPILATION_CACHE"
    if chosen := settings.jax_compilation_cache_dir:
        return Path(chosen), f"{chosen}, by JAX_COMPILATION_CACHE_DIR"
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return None, "off, by an empty JAX_COMPILATION_CACHE_DIR"
    if (home := cache_folder()) is None:
        return None, "off: this user has no home directory; JAXLM_CACHE_DIR names a folder"
    folder = home / "xla"
    try:
        _make_private(folder)
    except OSError as error:
        return None, f"off: {error}; JAXLM_CACHE_DIR names another folder"
    settings.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        settings.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    return folder, str(folder)


def _make_private(folder: Path) -> None:
    """Make `folder` with mode 0700, or take from others what they may do in it. Raises OSError where that cannot be."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if hasattr(os, "getuid") and found.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user, whose programs are not run")
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written to")
