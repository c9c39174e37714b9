"""Every knob of the project (`schema`, of `section`s), how a config is loaded and overridden (`load`, `overrides`)."""

from jaxlm.config.load import config_fingerprint, load_config, read_resolved, resolved_json
from jaxlm.config.overrides import apply_overrides
from jaxlm.config.schema import ConfigError, RunConfig

__all__ = [
    "ConfigError",
    "RunConfig",
    "apply_overrides",
    "config_fingerprint",
    "load_config",
    "read_resolved",
    "resolved_json",
]
