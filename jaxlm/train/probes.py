"""Static probes: before the first step, in seconds, on the very code that will train.

Each plants a small disturbance and looks for an effect that must not be there, or must. Most faults of language-model
training leave the loss curve looking normal; they do not survive these. A run stores every result in its manifest.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxlm.config.schema import RunConfig
from jaxlm.contract import ContractError
from jaxlm.data import Batch
from jaxlm.model import Params
from jaxlm.parallel import processes
from jaxlm.train.state import TrainState, abstract_state, even_length, put_batch
from jaxlm.train.step import apply_gradients, batch_logits, compute_gradients, score

LENGTH = 64  # positions of a small row, at most
# Relative difference that rounding explains, by the precision that the config names: the policy made of it is itself probed.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}


class Probe(NamedTuple):
    """One result. expected, found: in words, or as numbers."""

    name: str
    passed: bool
    expected: str
    found: str

    def fact(self) -> dict[str, Any]:
        """As the run's manifest holds it."""
        return {"passed": self.passed, "expected": self.expected, "found": self.found}


class Bench:
    """The compiled functions and arrays that the probes share.

    cfg: of the run. params: real ones. full: a whole batch of the run, as it trains on it. batch: cut from it, a few rows
    of at most `LENGTH` positions. Methods take and return NumPy arrays but for `logits`, gradients and states.
    """

    def __init__(self, cfg: RunConfig, mesh: Mesh, params: Params, batch: Batch):
        self.cfg, self.mesh, self.params, self.full = cfg, mesh, params, batch
        self.accum = max(2, cfg.train.grad_accum)
        self.shards = cfg.mesh.data * cfg.mesh.fsdp
        rows = self.accum * self.shards
        # Half the context at most, so that positions can be shifted within it.
        self.length = even_length(min(LENGTH, max(2, cfg.model.context_length // 2)), cfg)
        tiled = Batch(*(np.resize(x, (rows, *x.shape[1:])) for x in batch))
        self.batch = Batch(*(np.ascontiguousarray(x[:rows, : self.length]) for x in tiled))
        self._grads: dict[int, Callable] = {}
        self._forward = self._forward_function(cfg)
        self._differ = jax.jit(lambda a, b: (a != b).any(axis=-1))
        self.apply = jax.jit(lambda state, gradients: apply_gradients(state, gradients))  # its own, traced anew

    @property
    def rng(self) -> np.random.Generator:
        """The same stream of random numbers for every probe."""
        return np.random.default_rng(0)

    @staticmethod
    def _forward_function(cfg: RunConfig) -> Callable:
        return jax.jit(lambda p, b: (batch_logits(p, b, cfg)[0], score(p, b, cfg)))

    def forward(self, batch: Batch, params: Params | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Logits [B, T, V] and negative log likelihoods [B, T], float32, with the run's parameters or others."""
        logits, nll = self._forward(self.params if params is None else params, put_batch(batch, self.cfg, self.mesh))
        return processes.whole(logits).astype(np.float32), processes.whole(nll)

    def score_without_dropout(self, batch: Batch) -> np.ndarray:
        """Negative log likelihoods [B, T] of the same model, compiled from a config whose dropout is 0."""
        cfg = dataclasses.replace(self.cfg, model=dataclasses.replace(self.cfg.model, dropout=0.0))
        return processes.whole(self._forward_function(cfg)(self.params, put_batch(batch, self.cfg, self.mesh))[1])

    def logits(self, batch: Batch) -> jax.Array:
        """Logits [B, T, V], left on the device: at the full context they are large."""
        return self._forward(self.params, put_batch(batch, self.cfg, self.mesh))[0]

    def differ(self, first: jax.Array, second: jax.Array) -> np.ndarray:
        """Where two arrays of logits differ in any bit, bool [B, T]."""
        return processes.whole(self._differ(first, second))

    def gradients(self, batch: Batch, accum: int | None = None) -> Any:
        """`compute_gradients` with the run's accumulation, or another."""
        accum = accum or self.cfg.train.grad_accum
        if accum not in self._grads:
            self._grads[accum] = jax.jit(self._gradient_function(accum))
        return self._grads[accum](self.params, put_batch(batch, self.cfg, self.mesh))

    def _gradient_function(self, accum: int) -> Callable:
        # Dropout draws other numbers for other micro-batches, so the comparison of the two is made without it.
        train = dataclasses.replace(self.cfg.train, grad_accum=accum, batch_size=accum * self.shards)
        cfg = dataclasses.replace(self.cfg, train=train, model=dataclasses.replace(self.cfg.model, dropout=0.0))
        return lambda p, b: compute_gradients(p, b, cfg, loss_scale=jax.numpy.float32(1.0), key=jax.random.key(0))

    def _shardings(self) -> TrainState:
        return jax.tree.map(lambda leaf: leaf.sharding, abstract_state(self.cfg, self.mesh))

    def initial_params(self) -> Params:
        """The parameters that the run starts from, laid out as the run's."""
        return jax.jit(lambda: TrainState.create(self.cfg).params, out_shardings=self._shardings().params)()

    def state(self, params: Params) -> TrainState:
        """A fresh training state around `params`, laid out as the run's."""
        return dataclasses.replace(self._create(), params=params)

    @functools.cached_property
    def _create(self) -> Callable[[], TrainState]:
        """Compiled once: drawing the parameters takes the compiler longer than most probes take."""
        return jax.jit(lambda: TrainState.create(self.cfg), out_shardings=self._shardings())

    def random_batch(self, boundary: int = 0, *, full: bool = False) -> Batch:
        """Random ids in rows of one document, or of two with the second one from `boundary` on; all supervised inside them.

        full: at the whole context, in as few rows as the mesh allows; otherwise in the shape of `batch`.
        """
        shape = (self.shards, self.full.tokens.shape[1]) if full else self.batch.tokens.shape
        tokens = self.rng.integers(0, self.cfg.model.vocab_size, shape, dtype=np.int32)
        labels = np.roll(tokens, -1, axis=1)
        t = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
        second = t >= boundary if boundary else np.zeros(shape, bool)
        supervised = t < shape[1] - 1
        if boundary:
            supervised = supervised & (t != boundary - 1)
        positions = np.where(second, t - boundary, t).astype(np.int32)
        return Batch(tokens, labels, supervised, np.where(second, 2, 1).astype(np.int32), positions)

    @property
    def tolerance(self) -> float:
        """Relative difference that rounding in the run's precision explains."""
        return TOLERANCE[self.cfg.train.precision]


def run_probes(
    cfg: RunConfig, mesh: Mesh, params: Params, batch: Batch, *, fresh: bool, training: bool = True
) -> Iterator[Probe]:
    """Yield the result of every probe. Call under `jax.set_mesh(mesh)`.

    batch: a real batch of the run (NumPy). fresh: the parameters are initial: drawn as the config says, with a loss near
    ln V. training: also probe gradients and updates; False for an evaluation.
    """
    from jaxlm.train.probes_forward import FORWARD
    from jaxlm.train.probes_initial import INITIAL
    from jaxlm.train.probes_update import UPDATE
    from jaxlm.train.probes_whole import WHOLE

    bench = Bench(cfg, mesh, params, batch)
    for probe in FORWARD:
        yield probe(bench)
    for probe in INITIAL if fresh else ():
        yield probe(bench)
    if training:
        for probe in (*UPDATE, *WHOLE):
            yield probe(bench)


def require(probe: Probe, *, artifact: object) -> Probe:
    """The probe itself, or ContractError where it failed. artifact: the run."""
    if not probe.passed:
        raise ContractError(
            f"probe {probe.name}",
            artifact=artifact,
            expected=probe.expected,
            found=probe.found,
            remedy="The code, the config or the device computes something else than it should; nothing was begun.",
        )
    return probe
