"""jaxlm: a language-model stack in JAX in which every contract between two layers is written down, fingerprinted and checked.

The public names are loaded when asked for: importing `jaxlm` imports no jax and touches no device.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "ContractError": "jaxlm.contract",
    "InputError": "jaxlm.contract",
    "ModelConfig": "jaxlm.config.schema",
    "Run": "jaxlm.run",
    "RunConfig": "jaxlm.config.schema",
    "Tokenizer": "jaxlm.tokenizer",
    "TrainState": "jaxlm.train",
    "adamw": "jaxlm.optim",
    "check": "jaxlm.contract",
    "fit": "jaxlm.train",
    "forward": "jaxlm.model",
    "init_params": "jaxlm.model",
    "load_config": "jaxlm.config",
    "train_step": "jaxlm.train",
    "train_tokenizer": "jaxlm.tokenizer",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
