"""The config that is explained: its vocabulary known, its mesh as large as the devices that were asked for."""

from __future__ import annotations

import dataclasses

from jaxlm.config.schema import ConfigError, MeshConfig, RunConfig
from jaxlm.contract import InputError
from jaxlm.model import param_specs
from jaxlm.model.spec import named_leaves
from jaxlm.parallel import rules_of
from jaxlm.tokenizer import Tokenizer

MOST = 1 << 20  # devices


def with_vocabulary(cfg: RunConfig) -> RunConfig:
    """`cfg` with its vocabulary known: the model's own, or the tokenizer's, which has to exist where it is a path."""
    size = cfg.model.vocab_size
    if not size:
        size = Tokenizer.load(cfg.tokenizer.path).vocab_size if cfg.tokenizer.path else cfg.tokenizer.vocab_size
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, vocab_size=size))


def on_devices(cfg: RunConfig, devices: int | None = None) -> tuple[RunConfig, str]:
    """`cfg` on a mesh of so many devices (None: its own mesh), and what was assumed, in words ("" for the config's own).

    The factor that remains goes on the axis that the batch is cut by: `fsdp` where the rules have it, else `data`; the rules
    `single` become `dp`. Raises InputError, naming the nearest number that works, where no such mesh lays out the model and
    the batch; and what `AxisRules.check` raises.
    """
    if devices in (None, cfg.mesh.size):
        _check(cfg)
        return cfg, ""
    if not 0 < devices <= MOST:
        raise InputError(f"--devices: expected a number from 1 to {MOST}, found {devices}")
    tried = _resized(cfg, devices)
    if tried is None:
        works = next((n for n in _nearby(devices, cfg) if _resized(cfg, n) is not None), None)
        mend = f"the nearest number that works is {works}" if works else "no number does: lower --mesh.tensor or --mesh.context"
        raise InputError(
            f"--devices: expected a number that the mesh of --mesh.rules {cfg.mesh.rules} can be made of, for "
            f"{_rows(cfg)} rows of a micro-batch and this model, found {devices}; {mend}"
        )
    mesh = tried.mesh
    sizes = " ".join(f"{axis} {getattr(mesh, axis)}" for axis in ("data", "fsdp", "tensor", "context"))
    return tried, f"{sizes}, rules {mesh.rules} (the config has {cfg.mesh.size}, {cfg.mesh.rules})"


def _rows(cfg: RunConfig) -> int:
    return cfg.train.batch_size // cfg.train.grad_accum


def _nearby(devices: int, cfg: RunConfig) -> list[int]:
    """Numbers that may work, the nearest first: the batch axis cannot have more devices than there are rows."""
    most = _rows(cfg) * cfg.mesh.tensor * cfg.mesh.context
    return sorted(range(1, most + 1), key=lambda n: (abs(n - devices), n)) if most < 1 << 16 else []


def _resized(cfg: RunConfig, devices: int) -> RunConfig | None:
    """`cfg` on so many devices; None where that cannot be."""
    mesh = dataclasses.replace(cfg.mesh, rules="dp") if cfg.mesh.rules == "single" and devices > 1 else cfg.mesh
    axis = "fsdp" if mesh.rules.startswith("fsdp") else "data"
    others = mesh.size // getattr(mesh, axis)
    if devices % others and axis == "fsdp":  # the replicas are what the batch is cut by, too
        mesh = dataclasses.replace(mesh, data=1)
        others = mesh.size // mesh.fsdp
    if devices % others:
        return None
    made: MeshConfig = dataclasses.replace(mesh, **{axis: devices // others})
    try:
        tried = dataclasses.replace(cfg, mesh=made)
        _check(tried)
    except InputError:
        return None
    return tried


def _check(cfg: RunConfig) -> None:
    """Raise what `AxisRules.check` raises, and ConfigError for heads that the shards do not divide."""
    rules = rules_of(cfg.mesh, cfg.model.kv_heads)
    rules.check(named_leaves(param_specs(cfg.model)), cfg.mesh)
    if rules.a_N and cfg.model.n_heads % cfg.mesh.tensor:
        raise ConfigError("mesh.tensor", f"a divisor of --model.n-heads {cfg.model.n_heads}", cfg.mesh.tensor)
