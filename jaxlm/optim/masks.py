"""Which parameters decay, by a regular expression on their `/`-joined names."""

from __future__ import annotations

import re
from typing import Any

import jax

from jaxlm.config.schema import OptimConfig
from jaxlm.model.spec import path_name

NO_DECAY = OptimConfig.no_decay


def decay_mask(params: Any, no_decay: str = NO_DECAY) -> Any:
    """A tree of booleans like `params`: false where the leaf's name matches `no_decay`.

    By default norms, biases and embeddings are left alone: their scale is not what decay should shrink.
    """
    pattern = re.compile(no_decay) if no_decay else None
    return jax.tree_util.tree_map_with_path(lambda path, _: pattern is None or not pattern.search(path_name(path)), params)
