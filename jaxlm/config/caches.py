"""Where files lie that can be made again: machine code of the tokenizer, compiled programs of jax."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """The folder of the project's caches: $JAXLM_CACHE_DIR, else `jaxlm` below $XDG_CACHE_HOME or ~/.cache.

    None for a user without a home directory. Nothing is made.
    """
    if chosen := os.environ.get("JAXLM_CACHE_DIR"):
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxlm"
    except RuntimeError:
        return None
