"""Configs from files and back: load, resolve, fingerprint, compare, describe.

A config is a Python file `configs/NAME.py` with `config() -> RunConfig`, or the `resolved.json` of a run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.config.overrides import apply_overrides
from jaxlm.config.schema import RunConfig, numbers, sections
from jaxlm.config.section import ConfigError, flag
from jaxlm.contract import ContractError, InputError, fingerprint, plain

FORMAT = 1


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> RunConfig:
    """A config from a `.py` file or a `resolved.json`, with command-line overrides.

    A name such as `tiny` or `configs/tiny.py` that is no file here is looked up among the installed configs.
    Raises InputError (ConfigError for a value), in one line.
    """
    file = config_file(path)
    config = read_resolved(file) if file.suffix == ".json" else _run(file)
    return apply_overrides(config, overrides)


def installed() -> list[str]:
    """Names of the configs that come with the package."""
    return sorted(path.stem for path in folder().glob("*.py"))


def folder() -> Path:
    """Where the configs that come with the package lie: `jaxlm/_configs` where it is installed, `configs` in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return found if (found := package / "_configs").is_dir() else package.parent / "configs"


def config_file(path: str | os.PathLike[str]) -> Path:
    """The file of a config: `path`, or the installed one that it names. Raises InputError where there is neither."""
    path = Path(path)
    if path.is_file():
        return path
    if path.is_dir():
        raise InputError(f"{path}: expected a config (.py, or resolved.json of a run), found a directory")
    name = path.name.removesuffix(".py")
    if path.parent.as_posix() in (".", "configs") and path.suffix in ("", ".py") and name in installed():
        return folder() / f"{name}.py"
    known = ", ".join(f"configs/{name}.py" for name in installed())
    raise InputError(f"{path}: expected a config, found no such file; the installed ones are {known}")


def _run(path: Path) -> RunConfig:
    if path.suffix != ".py":
        raise InputError(
            f"{path}: expected a config with suffix .py, or resolved.json of a run, found {path.suffix or 'no suffix'}"
        )
    failure: str | None = None
    try:
        names = runpy.run_path(str(path))
        make = names.get("config")
        config = make() if callable(make) else None
    except InputError:
        raise
    except BaseException as error:  # whatever a user's file does, it is that file's error
        if isinstance(error, KeyboardInterrupt):
            raise
        failure = _where(error, path)
    if failure is not None:
        raise InputError(failure)
    if not isinstance(config, RunConfig):
        found = "no such function" if not callable(make) else f"one that returns {type(config).__name__}"
        raise InputError(f"{path}: expected a function config() that returns a RunConfig, found {found}")
    return config


def _where(error: BaseException, path: Path) -> str:
    line = error.lineno if isinstance(error, SyntaxError) else None
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == str(path):
            line = frame.lineno
    at = f", line {line}" if line is not None else ""
    return f"{path}{at}: expected a config, found {type(error).__name__}: {' '.join(str(error).split())}"


# ---- resolved.json -----------------------------------------------------------------------------------------------


def config_fingerprint(config: RunConfig) -> str:
    """sha256 over the fields that change numbers."""
    return fingerprint(numbers(config))


def resolved_json(config: RunConfig) -> bytes:
    """A config as the content of `resolved.json`: every field, and the fingerprint of those that change numbers."""
    body = {"format": FORMAT, "fingerprint": config_fingerprint(config), "config": plain(config)}
    return (json.dumps(body, indent=1, allow_nan=False) + "\n").encode()


def read_resolved(path: str | os.PathLike[str]) -> RunConfig:
    """The config of a `resolved.json`. Raises ContractError where it is not what was written, InputError where it is none."""
    path = Path(path)
    try:
        body = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: expected the resolved config of a run, found no such file") from None
    except ValueError as error:
        raise _damaged(path, "JSON", str(error)) from None
    if not isinstance(body, dict) or set(body) != {"format", "fingerprint", "config"} or not isinstance(body["config"], dict):
        raise InputError(f"{path}: expected the resolved config of a run, found other JSON")
    if body["format"] != FORMAT:
        raise _damaged(path, f"format {FORMAT}", f"format {body['format']}")
    config = _rebuilt(body["config"], path)
    found = config_fingerprint(config)
    if found != body["fingerprint"]:
        raise _damaged(path, f"fingerprint {body['fingerprint']}", found)
    return config


def _damaged(path: Path, expected: str, found: str) -> ContractError:
    return ContractError("config", artifact=path, expected=expected, found=found, remedy="Restore it from a copy.")


def _rebuilt(body: Mapping[str, Any], path: Path) -> RunConfig:
    nested = sections()
    values: dict[str, Any] = {}
    _same_fields(RunConfig, body, path, "")
    try:
        for name, value in body.items():
            if name in nested:
                if not isinstance(value, dict):
                    raise _damaged(path, f"a section {name}", repr(value))
                _same_fields(nested[name], value, path, f"{name}.")
                # JSON holds lists where the schema has tuples.
                fields = {field: tuple(v) if isinstance(v, list) else v for field, v in value.items()}
                values[name] = nested[name](**fields)
            else:
                values[name] = value
        return RunConfig(**values)
    except ConfigError as error:
        raise _damaged(path, f"{flag(error.field)} to be {error.expected}", repr(error.found)) from None


def _same_fields(kind: type, body: Mapping[str, Any], path: Path, prefix: str) -> None:
    wanted = {f.name for f in dataclasses.fields(kind)}
    if extra := sorted(set(body) - wanted):
        raise _damaged(path, f"the fields of this version's {kind.__name__}", f"also {prefix}{extra[0]}")
    if missing := sorted(wanted - set(body)):
        raise _damaged(path, f"the fields of this version's {kind.__name__}", f"no {prefix}{missing[0]}")


# ---- comparing and describing ------------------------------------------------------------------------------------


def _flat(body: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in body.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def fields_that_differ(there: RunConfig, here: RunConfig) -> dict[str, list[Any]]:
    """The fields that change numbers and differ, by dotted name, with both values as JSON holds them."""
    before, after = _flat(plain(numbers(there))), _flat(plain(numbers(here)))
    return {name: [before[name], after[name]] for name in before if before[name] != after[name]}


def differing_fields(there: RunConfig, here: RunConfig) -> list[str]:
    """One line for each field that changes numbers and differs: `--train.lr: 0.001 there, 0.002 here`."""
    differing = fields_that_differ(there, here)
    return [f"{flag(name)}: {before!r} there, {after!r} here" for name, (before, after) in differing.items()]


def describe(config: RunConfig) -> list[str]:
    """What follows from a config, in lines for the start of a run."""
    model, train = config.model, config.train
    attention = f"{model.n_heads} heads x {model.head_width}"
    if model.kv_heads != model.n_heads:
        attention += f" over {model.kv_heads} key/value heads"
    keep = config.checkpoint
    best = f", and the best {keep.keep_best} of those at a validation" if keep.keep_best else ""
    return [
        f"config     {config_fingerprint(config)[:12]}",
        f"shape      {model.n_layers} layers, width {model.d_model}, {attention}, {model.ffn} {model.ff_width}, "
        f"context {model.context_length}",
        f"batch      {train.batch_size} rows = {config.tokens_per_step:,} tokens a step"
        + (f", in {train.grad_accum} micro-batches" if train.grad_accum > 1 else ""),
        f"optimizer  AdamW, peak rate {config.optim.lr:g}, {config.optim.schedule}, {config.optim.warmup_steps} warm-up steps"
        + (f" from step {config.optim.schedule_from} on" if config.optim.schedule_from else "")
        + f", {train.precision}",
        f"keeps      the newest {keep.keep_last} checkpoints{best}",
    ]


__all__ = [
    "ConfigError",
    "apply_overrides",
    "config_fingerprint",
    "describe",
    "differing_fields",
    "load_config",
    "read_resolved",
    "resolved_json",
]
