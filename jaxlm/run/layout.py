"""Where the parts of a run lie, and the lock that keeps a second process out.

RUN/manifest.json      what the run promises: config, model, probes, its tokenizer and data
RUN/resolved.json      the whole config, with its fingerprint
RUN/tokenizer/         a copy of the tokenizer
RUN/data/              the shards, unless the config names others
RUN/telemetry.jsonl    one line a step: only figures that an equal run repeats bit by bit
RUN/events.jsonl       times, validations, saves, resumes, alarms
RUN/checkpoints/       00000400/ and so on
RUN/evaluations/       one directory an evaluation
RUN/bundles/           one directory an alarm: what it takes to compute that step again
RUN/before/            00001/ and so on: manifest and config that each declared change replaced
RUN/undone/            00001.jsonl and so on: the telemetry that each rollback took back
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from jaxlm.config.schema import RunConfig
from jaxlm.contract import MANIFEST, InputError

TRIES, PAUSE = 10, 0.05  # half a second for whoever only looks whether the run is in use


@dataclass(frozen=True)
class Layout:
    """The paths of a run directory; none of them need exist."""

    path: Path

    @property
    def manifest(self) -> Path:
        """The run's manifest, written when everything before the first step has succeeded."""
        return self.path / MANIFEST

    @property
    def resolved(self) -> Path:
        """The resolved config."""
        return self.path / "resolved.json"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer artifact."""
        return self.path / "tokenizer"

    def data(self, cfg: RunConfig) -> Path:
        """The data artifact: the run's own, or the one that the config names."""
        return Path(cfg.data.path) if cfg.data.path else self.path / "data"

    @property
    def telemetry(self) -> Path:
        """The log of the steps."""
        return self.path / "telemetry.jsonl"

    @property
    def events(self) -> Path:
        """The log of everything else."""
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The directory of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def evaluations(self) -> Path:
        """The directory of the evaluations."""
        return self.path / "evaluations"

    @property
    def bundles(self) -> Path:
        """The directory of the flight recorder's bundles."""
        return self.path / "bundles"

    def before(self, number: int) -> Path:
        """The manifest and the config that declared change `number`, from 1, replaced."""
        return self.path / "before" / f"{number:05d}"

    def undone(self, number: int) -> Path:
        """The lines of the telemetry that rollback `number`, from 1, took back."""
        return self.path / "undone" / f"{number:05d}.jsonl"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process. The lock goes with the process, however it ends.

        Raises InputError where another process holds it, or the directory cannot be written or locked.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / ".lock", "a+")
        except OSError as error:
            raise InputError(
                f"{self.path}: expected a directory that this process can write, found: {error.strerror}; "
                "choose another with --out"
            ) from None
        with file:
            if not self._taken(file):
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise InputError(
                    f"{self.path}: expected a run that no other process uses, found it in use by {holder}; wait for it to end, "
                    "or choose another directory with --out"
                )
            file.truncate(0)
            file.write(f"process {os.getpid()}")
            file.flush()
            yield

    def _taken(self, file: IO[str]) -> bool:
        """Whether the lock is this process's now, after a few tries."""
        for attempt in range(TRIES):
            time.sleep(PAUSE if attempt else 0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                continue
            except OSError as error:
                raise InputError(
                    f"{self.path}: expected a file system that can lock a file, found: {error.strerror}; "
                    "choose a directory on another with --out"
                ) from None
        return False

    def in_use(self) -> bool:
        """Whether a process is training this run now; on a file system without locks, where none can be trained, False."""
        try:
            with open(self.path / ".lock") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.filename is not None:
                raise
        return False
