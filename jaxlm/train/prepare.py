"""From a config to a run directory with its tokenizer and its data, and the check that a resumed run is the same run."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from jaxlm.config.load import config_fingerprint, differing_fields, read_resolved, resolved_json
from jaxlm.config.schema import ConfigError, RunConfig, numbers
from jaxlm.contract import ContractError, InputError, Manifest, check, write_atomic
from jaxlm.data import STDLIB, ShardSet, build_shards, open_shards, require_agreement, require_whole_epoch, training_texts
from jaxlm.data.overlap import require_little_overlap, words_of
from jaxlm.run import Layout
from jaxlm.tokenizer import Tokenizer, train_from_config
from jaxlm.train.alarms import chosen
from jaxlm.train.declared import require_declared
from jaxlm.watch import duration

Say = Callable[[str], None]
LEFTOVER = re.compile(r"\.(tokenizer|data|manifest\.json|resolved\.json|telemetry\.jsonl|events\.jsonl)\.[0-9a-f]{8}\.tmp")


@dataclass(frozen=True)
class Parts:
    """What a run is trained from: its resolved config, tokenizer and data."""

    cfg: RunConfig
    tokenizer: Tokenizer
    data: ShardSet


def resolve(cfg: RunConfig, layout: Layout) -> RunConfig:
    """The config with the vocabulary that its tokenizer gives (the run's own copy, where it has one) and absolute paths.

    Raises ConfigError where the model asks for another vocabulary, or shards are named without their tokenizer; InputError for
    detectors in `watch` that there are none of, which the config cannot know.
    """
    chosen(cfg.watch)
    vocab_size = cfg.tokenizer.vocab_size
    own = layout.resolved.is_file() and layout.tokenizer.is_dir()
    if cfg.tokenizer.path:
        vocab_size = Tokenizer.load(layout.tokenizer if own else cfg.tokenizer.path).vocab_size
    elif cfg.data.path and not own:
        raise ConfigError("tokenizer.path", "the tokenizer that --data.path was made with", "")
    if cfg.model.vocab_size not in (0, vocab_size):
        raise ConfigError("model.vocab_size", f"0, or the tokenizer's {vocab_size}", cfg.model.vocab_size)

    def absolute(path: str) -> str:
        return os.path.abspath(path) if path and path != STDLIB else path

    return dataclasses.replace(
        cfg,
        tokenizer=dataclasses.replace(cfg.tokenizer, path=absolute(cfg.tokenizer.path)),
        data=dataclasses.replace(cfg.data, path=absolute(cfg.data.path), source=tuple(map(absolute, cfg.data.source))),
        model=dataclasses.replace(cfg.model, vocab_size=vocab_size),
    )


def claim(cfg: RunConfig, layout: Layout, *, declare: str = "") -> RunConfig:
    """Write `resolved.json` into a new run, or compare with the one that is there. Returns the config to go on with.

    cfg: resolved. Fields that change no number are taken from `cfg`, so that a resumed run may print more often. A run that
    has not begun to train takes another config, and keeps tokenizer and data where their fields are the same. What a killed
    process left half-written is removed. declare: the change that the run is to go on with, which is made later.
    Raises InputError naming every field that differs: a run that has begun is never continued with other numbers, but for those
    that a declared change is about.
    """
    if not layout.resolved.is_file():
        _require_free(layout)
        write_atomic(layout.resolved, resolved_json(cfg))
        return cfg
    _remove(path for path in layout.path.glob(".*.tmp") if LEFTOVER.fullmatch(path.name))
    recorded = read_resolved(layout.resolved)
    if declare:
        require_declared(cfg, recorded, declare, layout)
        return dataclasses.replace(cfg, name=recorded.name)
    if config_fingerprint(recorded) == config_fingerprint(cfg):
        return dataclasses.replace(cfg, name=recorded.name)
    if layout.manifest.is_file() or layout.checkpoints.exists():
        raise InputError(
            f"{layout.path}: expected the config that this run was made with, found another: "
            f"{'; '.join(differing_fields(recorded, cfg))}. "
            f"Choose another directory with --out, or resume it unchanged with `jaxlm train {layout.path}`"
        )
    parts = ("tokenizer", "data")
    if any(numbers(getattr(recorded, part)) != numbers(getattr(cfg, part)) for part in parts):
        _remove(path for path in (layout.tokenizer, layout.path / "data") if path.exists())
    write_atomic(layout.resolved, resolved_json(cfg))
    return cfg


def _require_free(layout: Layout) -> None:
    """Raise ContractError where a run lost its config, InputError where the directory holds anything else."""
    if layout.manifest.is_file():
        raise ContractError(
            "run",
            artifact=layout.resolved,
            expected="the resolved config of the run",
            found="no such file",
            remedy="Restore it from a copy.",
        )
    others = [p.name for p in layout.path.iterdir() if p.name != ".lock"]
    if others:
        (layout.path / ".lock").unlink(missing_ok=True)
        raise InputError(
            f"{layout.path}: expected a run or an empty directory, found {', '.join(sorted(others)[:3])}; "
            "choose another with --out"
        )


def forget(layout: Layout) -> None:
    """Take a new run back as long as it holds nothing but its config: a mistake leaves nothing behind."""
    if layout.tokenizer.exists() or layout.manifest.exists():
        return
    made = (layout.resolved, layout.telemetry, layout.events, layout.path / ".lock")
    _remove(path for path in made if path.exists())
    if not any(layout.path.iterdir()):
        layout.path.rmdir()


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def prepare(cfg: RunConfig, layout: Layout, *, say: Say, like: Manifest | None = None) -> Parts:
    """Tokenizer and data of a claimed run: those that are there, checked, or new ones.

    like: the manifest of the run that is to be reproduced; a tokenizer or data that come out different are ContractErrors. So
    are shards that are not in the language of the tokenizer, or of which an epoch would leave out a part.
    """
    tokenizer = _tokenizer(cfg, layout, say)
    _same("tokenizer", like, tokenizer.manifest, layout.tokenizer)
    path = layout.data(cfg)
    if cfg.data.path or path.exists():
        data = open_shards(path)
    else:
        began = time.monotonic()
        say(f"building shards from {', '.join(cfg.data.source)}")
        data = build_shards(cfg.data, tokenizer, path)
        say(f"data       written to {path} in {duration(time.monotonic() - began)}")
    check(tokenizer.manifest, path)
    require_whole_epoch(data, cfg.model.context_length)
    require_little_overlap(data.manifest, cfg.data, artifact=path)
    for line in words_of(data.manifest):
        say(f"data       {line}")
    for found in require_agreement(data, tokenizer):
        if found.tokens < found.of or not found.documents:
            say(f"data       {found.words()}")
    _same("data", like, data.manifest, path)
    return Parts(cfg, tokenizer, data)


def _tokenizer(cfg: RunConfig, layout: Layout, say: Say) -> Tokenizer:
    if layout.tokenizer.exists():
        tokenizer = Tokenizer.load(layout.tokenizer)
    elif cfg.tokenizer.path:
        tokenizer = Tokenizer.load(cfg.tokenizer.path)
        tokenizer.save(layout.tokenizer)
    else:
        began = time.monotonic()
        say(f"training a tokenizer of {cfg.tokenizer.vocab_size} tokens on {', '.join(cfg.data.source)}")
        tokenizer = train_from_config(training_texts(cfg.data), cfg.tokenizer)
        tokenizer.save(layout.tokenizer)
        say(f"tokenizer  written to {layout.tokenizer} in {duration(time.monotonic() - began)}")
    if tokenizer.vocab_size != cfg.model.vocab_size:
        raise ContractError(
            "model",
            artifact=layout.tokenizer,
            expected=f"a tokenizer of {cfg.model.vocab_size} tokens",
            found=f"{tokenizer.vocab_size} tokens",
            remedy="Restore the run's tokenizer from a copy, or start a new run.",
        )
    return tokenizer


def _same(kind: str, like: Manifest | None, found: Manifest, path: Path) -> None:
    if like is not None and like.parents[kind] != found.fingerprint:
        raise ContractError(
            kind,
            artifact=path,
            expected=f"the {kind} of the run to reproduce, {like.parents[kind]}",
            found=found.fingerprint,
            remedy=f"The source text or the code has changed; give the original with --{kind}.path.",
        )
