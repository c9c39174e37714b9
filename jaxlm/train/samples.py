"""What a model writes while it is trained: the beginning of a validation document, and how the model goes on.

Parameters are only read, and nothing is drawn: the likeliest token is taken each time. No number of a run depends on it.

Axes: B row, T position, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxlm.config.schema import RunConfig
from jaxlm.data import Batch
from jaxlm.model import Params
from jaxlm.parallel import processes
from jaxlm.tokenizer import Tokenizer
from jaxlm.tokenizer.visible import visible
from jaxlm.train.prepare import Parts
from jaxlm.train.session import Session
from jaxlm.train.state import even_length, put_batch
from jaxlm.train.step import batch_logits

GIVEN, WRITTEN = 16, 32  # tokens of the prompt, BOS included, and tokens written, at most; fewer where the context is shorter
SHOWN = 60  # characters of a line for a person


class Written(NamedTuple):
    """prompt_ids: with BOS. ids: what was written, EOS included where it came; then it is the last."""

    prompt_ids: list[int]
    ids: list[int]

    def event(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """The fields of an event `sample`: ids, and their texts, one a token."""
        every = [*self.prompt_ids, *self.ids]
        return {
            "prompt": tokenizer.decode(self.prompt_ids[1:]),
            "text": tokenizer.decode(self.ids),
            "prompt_ids": self.prompt_ids,
            "ids": self.ids,
            "pieces": [tokenizer.decode([token]) for token in every],
        }

    def words(self, tokenizer: Tokenizer) -> str:
        """One line: the end of the prompt, and what came of it."""
        given, made = (visible(tokenizer.decode_bytes(ids)) for ids in (self.prompt_ids[1:], self.ids))
        return f"{given[-SHOWN // 3 :]} → {made[:SHOWN]}"


def sample(session: Session, step: int, *, note: Callable[[str], None]) -> None:
    """Log what the model writes after the validation of a step, where `watch.samples_every` says so, as an event `sample`.

    note: takes a line for a person. Not in a cluster. A device without room for it has no sample, and the run goes on.
    """
    cfg, every = session.cfg, session.cfg.watch.samples_every
    if processes.several() or not every or (step < cfg.train.steps and step // cfg.eval.every % every):
        return
    session.watchdog.at("the sample of step", step)
    try:
        with session.guard.phase("sample", step):
            written = write(session.state.params, session.parts, session.mesh)
    except jax.errors.JaxRuntimeError as error:
        note(f"step {step}: no sample: {str(error).splitlines()[0]}")
        return
    session.event("sample", step=step, **written.event(session.parts.tokenizer))
    note(f"step {step}: {written.words(session.parts.tokenizer)}")


def write(params: Params, parts: Parts, mesh: Mesh) -> Written:
    """Let the model go on from the beginning of the first validation document, under the mesh that the run is trained on.

    One compiled program without a cache, called once for each token: 32 forward passes over one row (one for each shard of
    the batch) of 48 positions, about what one training step of 1500 positions takes.
    """
    cfg = parts.cfg
    length = even_length(min(GIVEN + WRITTEN, cfg.model.context_length), cfg)
    prompt = [int(token) for token in parts.data.val.document(0)[:-1][: max(1, min(GIVEN, length // 3))]]
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    ids, eos = list(prompt), parts.tokenizer.eos_id
    while len(ids) < min(length, len(prompt) + WRITTEN):
        batch = put_batch(_batch(ids, rows, length), cfg, mesh)
        ids.append(int(processes.whole(_likeliest(params, batch, np.int32(len(ids) - 1), cfg))[0]))
        if ids[-1] == eos:
            break
    return Written(prompt, ids[len(prompt) :])


def _batch(ids: list[int], rows: int, length: int) -> Batch:
    """`rows` equal rows of one document; what comes after its ids is not seen by them."""
    tokens, at = np.zeros(length, np.int32), np.arange(length, dtype=np.int32)
    tokens[: len(ids)] = ids
    row = (tokens, np.zeros_like(tokens), np.zeros(length, bool), np.ones_like(tokens), at)
    return Batch(*(np.tile(x[None], (rows, 1)) for x in row))


def _next(params: Params, batch: Batch, at: jax.Array, cfg: RunConfig) -> jax.Array:
    """The likeliest token after position `at` of every row, int32 [B]."""
    logits_BTV = batch_logits(params, batch, cfg)[0]
    logits_BTV = logits_BTV.at[:, at[None]].get(out_sharding=PartitionSpec(None, None, None))
    return jnp.argmax(logits_BTV[:, 0, : cfg.model.vocab_size], axis=-1).astype(jnp.int32)


_likeliest = jax.jit(_next, static_argnames="cfg")
