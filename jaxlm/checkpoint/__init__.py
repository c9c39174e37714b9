"""Any pytree of arrays to disk and back, with digests and a commit that is last.

`CheckpointStore` saves and restores; `environment` says what bitwise equality depends on. Orbax writes the bytes, the
project's own manifest says whether they are the right ones.
"""

from jaxlm.checkpoint.environment import differences, environment
from jaxlm.checkpoint.leaves import LeafRecord, NonFinite, first_nonfinite, leaf_records
from jaxlm.checkpoint.restored import require_restored
from jaxlm.checkpoint.saving import SaveError
from jaxlm.checkpoint.store import CheckpointStore
from jaxlm.config.schema import CheckpointConfig

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
    "require_restored",
]
