"""Any pytree of arrays to disk and back, with digests and a commit that is last.

`CheckpointStore` saves and restores; `environment` says what bitwise equality depends on. Orbax writes the bytes, the
project's own manifest says whether they are the right ones.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxlm.checkpoint.environment import differences, environment
    from jaxlm.checkpoint.leaves import LeafRecord, NonFinite, first_nonfinite, leaf_records
    from jaxlm.checkpoint.store import CheckpointStore, SaveError
    from jaxlm.config.schema import CheckpointConfig

# Loaded when asked for: the schema alone needs no jax.
_HOMES = {
    "CheckpointConfig": "jaxlm.config.schema",
    "CheckpointStore": "jaxlm.checkpoint.store",
    "LeafRecord": "jaxlm.checkpoint.leaves",
    "NonFinite": "jaxlm.checkpoint.leaves",
    "SaveError": "jaxlm.checkpoint.store",
    "differences": "jaxlm.checkpoint.environment",
    "environment": "jaxlm.checkpoint.environment",
    "first_nonfinite": "jaxlm.checkpoint.leaves",
    "leaf_records": "jaxlm.checkpoint.leaves",
}

__all__ = [
    "CheckpointConfig",
    "CheckpointStore",
    "LeafRecord",
    "NonFinite",
    "SaveError",
    "differences",
    "environment",
    "first_nonfinite",
    "leaf_records",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
