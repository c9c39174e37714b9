"""Planting a fault, and taking it out again without a trace.

Compiled programs remember what they were traced with, so the caches of jax are cleared on both sides of a fault that is in
them. To trace everything again takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import jax

from jaxlm.data import Batch
from jaxlm.faults.fault import Disturbed, Fault, Patch, Program, Tampered
from jaxlm.train.state import TrainState
from jaxlm.train.step import apply_gradients, compute_gradients

# Modules whose functions no program is traced through: the host's. What of jaxlm.data is traced stands in content.py.
HOST = (
    *("jaxlm.tokenizer", "jaxlm.data.batches", "jaxlm.data.documents", "jaxlm.data.shards", "jaxlm.data.stream"),
    *("jaxlm.train.session", "jaxlm.train.loop", "jaxlm.evaluate.documents", "jaxlm.checkpoint"),
)
STEP = ("jaxlm.train.guard:train_step", "jaxlm.train.recompute:train_step")


@contextmanager
def patched(patches: Iterable[Patch]) -> Iterator[None]:
    """A block in which other functions stand in the places of some. Raises AttributeError for a target that there is not."""
    with ExitStack() as undo:
        for patch in patches:
            owner, name = _owner(patch.target)
            held = owner.__dict__[name] if isinstance(owner, type) else getattr(owner, name)
            setattr(owner, name, patch.make(held))
            undo.callback(setattr, owner, name, held)
        yield


@contextmanager
def planted(fault: Fault, path: Path, *, replayed: bool = False) -> Iterator[None]:
    """A block in which the fault is there. path: of the run, whose artifacts a `Tampered` changes at once.

    replayed: the step that is looked at is one that the fault touches, so that a `Program` is the only one.
    """
    always = [part for part in fault.plant if isinstance(part, Patch)]
    programs = [patch for part in fault.plant if isinstance(part, Program) for patch in part.patches]
    changes = [part for part in fault.plant if isinstance(part, Disturbed)]
    for part in fault.plant:
        if isinstance(part, Tampered) and not replayed:
            part.change(path)
    if replayed:
        always, programs, changes = always + programs, [], []
    traced = any(not patch.target.startswith(HOST) for patch in always)
    if programs or changes:
        always += [Patch(target, lambda real: _Steps(real, fault.at or 1, programs, changes)) for target in STEP]
    if traced:
        jax.clear_caches()
    try:
        with patched(always):
            yield
    finally:
        if traced:
            jax.clear_caches()


class _Steps:
    """In the place of `train_step`: the same, until the step in which the fault begins."""

    def __init__(self, real: Any, at: int, patches: list[Patch], changes: list[Disturbed]):
        self.real, self.at, self.patches, self.changes = real, at, patches, changes
        self.program: Any = None

    def __call__(self, state: TrainState, batch: Batch) -> Any:
        step = int(state.step) + 1
        if self.patches and self.program is None:  # compiled before it is needed: not a recompilation in the middle of a run
            self.program = self._compiled(state, batch)
        for change in self.changes:
            if step == self.at or (step > self.at and not change.once):
                state, batch = change.change(state, batch, step)
        return (self.program if self.program is not None and step >= self.at else self.real)(state, batch)

    def _compiled(self, state: TrainState, batch: Batch) -> Any:
        def step(state: TrainState, batch: Batch) -> Any:
            key = jax.random.fold_in(state.key, state.step)
            gradients = compute_gradients(state.params, batch, state.cfg, loss_scale=state.loss_scale.scale, key=key)
            return apply_gradients(state, gradients)

        # The caches stay: nothing below the step is a jitted function of its own, and what else is warm has to stay so.
        with patched(self.patches):
            return jax.jit(step, donate_argnames="state").lower(state, batch).compile()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def _owner(target: str) -> tuple[Any, str]:
    """The module or class that holds a target, and the target's name in it."""
    module, _, names = target.partition(":")
    owner: Any = import_module(module)
    *classes, name = names.split(".")
    for each in classes:
        owner = getattr(owner, each)
    return owner, name
