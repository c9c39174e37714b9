"""A base config and its ablations: runs that change one thing of it, all with the same number of tokens.

They stand in a config file, as a function `ablations(base)` beside `config()`: the changed fields of each, by its name. A
config without one takes the ablations of the installed configs/ablations.py.
"""

from __future__ import annotations

import dataclasses
import os
import runpy
from collections.abc import Mapping, Sequence
from typing import Any

from jaxlm.config.load import config_file, load_config
from jaxlm.config.overrides import field_types, nearest
from jaxlm.config.schema import RunConfig
from jaxlm.contract import InputError

BASE, INSTALLED = "base", "ablations"

Changes = Mapping[str, Any]  # fields by their dotted names, with their new values


def load_ablations(
    path: str | os.PathLike[str] = INSTALLED, overrides: Sequence[str] = ()
) -> tuple[RunConfig, dict[str, Changes]]:
    """The base of a config file, with command-line overrides, and what each ablation changes of it. Raises InputError."""
    base = load_config(path, overrides)
    file = config_file(path)
    make = runpy.run_path(str(file)).get("ablations") if file.suffix == ".py" else None
    if not callable(make):
        file = config_file(INSTALLED)
        make = runpy.run_path(str(file))["ablations"]
    made = make(base)
    for name, changes in made.items():
        if name == BASE or not {"/", "\\", "\0"}.isdisjoint(name) or name.startswith("."):
            raise InputError(f"{file}: expected names of directories, other than {BASE}, found {name!r}")
        for field in changes:
            if field not in field_types():
                raise InputError(
                    f"{file}: {name}: expected a field of the config, found {field}; {nearest(field, field_types())}"
                )
    return base, made


def chosen(made: Mapping[str, Changes], names: Sequence[str]) -> dict[str, Changes]:
    """The ablations named, or all of them without a name; the base, which changes nothing, comes first. Raises InputError."""
    for name in names:
        if name not in made and name != BASE:
            raise InputError(f"{name}: expected an ablation, {', '.join(made)}; found none of that name")
    return {BASE: {}} | {name: changes for name, changes in made.items() if not names or name in names}


def changed(base: RunConfig, changes: Changes) -> RunConfig:
    """The base with fields changed. Raises ConfigError for a value that cannot be."""
    by_section: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        section, _, field = name.rpartition(".")
        by_section.setdefault(section, {})[field] = value
    whole = by_section.pop("", {})
    sections = {name: dataclasses.replace(getattr(base, name), **fields) for name, fields in by_section.items()}
    return dataclasses.replace(base, **whole, **sections)


def at_tokens(base: RunConfig, changes: Changes, tokens: int) -> RunConfig:
    """An ablation that sees about `tokens` tokens, in whole steps of its own size.

    What is counted in steps keeps its share of the run (warm-up, validations, checkpoints), and a validation its tokens. Raises
    ConfigError.
    """
    cfg = changed(base, changes)
    steps = max(1, round(tokens / cfg.tokens_per_step))

    def share(count: int) -> int:
        return round(count * steps / base.train.steps)

    rows, base_rows = (c.train.batch_size // c.train.grad_accum for c in (cfg, base))
    batches = max(1, round(cfg.eval.batches * base_rows / rows)) if cfg.eval.batches else 0
    return dataclasses.replace(
        cfg,
        train=dataclasses.replace(cfg.train, steps=steps),
        optim=dataclasses.replace(cfg.optim, warmup_steps=min(steps, share(cfg.optim.warmup_steps))),
        eval=dataclasses.replace(cfg.eval, every=max(1, share(cfg.eval.every)), batches=batches),
        checkpoint=dataclasses.replace(cfg.checkpoint, every=max(1, share(cfg.checkpoint.every))),
    )


def words(changes: Changes) -> str:
    """What is changed, in one line; sections are left out, as the fields' names say enough."""
    return ", ".join(f"{name.partition('.')[2]} {value:g}" if isinstance(value, float) else
                     f"{name.partition('.')[2]} {value}" for name, value in changes.items())  # fmt: skip
