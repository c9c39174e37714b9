"""The static probe of the loop that generates: the engine's own way from prompts to ids, chunk after chunk.

The probe of the cache calls what the loop is made of, and that of the chunks gives the loop its ids. Here nothing stands in the
place of anything: a cache that is too short, a chunk that begins one slot late, a temperature that only the first chunk has,
show nowhere else. Judged by the forward pass on the whole text of each row, and by the PRNG.

Axes: B batch, T position, K key/value head, H head width, L layer, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxlm.config.schema import ModelConfig
from jaxlm.infer import cache as caches
from jaxlm.infer.cache import Cursor
from jaxlm.infer.engine import CHUNK, Engine
from jaxlm.infer.probes_cache import DEPTH, ELSEWHERE, FLOAT32, MORE, ON_CPU, PROMPT, TOLERANCE, all_of
from jaxlm.infer.sampling import Knobs, Sampling
from jaxlm.model import POLICIES, LayerCache, Mask, Params, Policy, hidden, project
from jaxlm.train.probes import Probe

TEXT = "def loop(text):"  # the prompts are beginnings of it
CHUNKS, FEW = 3, 2  # so that there are two borders, and more slots than the padded prompt has; of a large model one border
SORTED = 1 << 14  # ids whose sort, which every draw takes, is quick on a CPU
FLAT = 1e30  # a temperature at which every id is as likely as any other, whatever the model
RUNS = {
    "temperature 0": Sampling(temperature=0.0),
    "top_k 1": Sampling(temperature=FLAT, top_k=1, seed=1),
    "any id": Sampling(temperature=FLAT, seed=2),
}
POSITIONS = 1200  # that all of it takes through the model: in the prompts, the chunks and the forward passes
CONTEXT = 64  # the least that a long context is cut to
NUMBERS = 1 << 30  # of a cache: some gigabytes
TINY = 1e-30  # of a model that gives zeros alone
NOISE = 1e-3  # of the PRNG: rounding is less, and the first and the second of a draw are further apart


class _Endless:
    """A tokenizer whose end is no id, and whose ids have no text, so that rows go on whatever is drawn: at a high temperature
    also ids that a tokenizer leaves out. Prompts are encoded as ever."""

    eos_id = -1

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b""


class _Watched(Engine):
    """An engine that keeps what its loop has made: the slots [B] filled by the prompts and then by each chunk, the ids of each
    chunk [B, CHUNK], and where it stands."""

    filled: list[np.ndarray]
    drawn: list[np.ndarray]
    cursor: Cursor

    def __init__(self, engine: Engine, cfg: ModelConfig):
        self.__dict__.update(engine.__dict__)
        if cfg.n_layers < engine.cfg.n_layers:
            blocks = jax.tree.map(lambda leaf: leaf[: cfg.n_layers], engine.params.blocks)
            self.params = dataclasses.replace(engine.params, blocks=blocks)
        self.cfg, self.tokenizer = cfg, _Endless(engine.tokenizer)  # type: ignore[assignment]

    def _begin(self, tokens_BT: np.ndarray, lengths_B: np.ndarray, keys_B: jax.Array, knobs: Knobs) -> Cursor:
        self.cursor = super()._begin(tokens_BT, lengths_B, keys_B, knobs)
        self.filled, self.drawn = [np.asarray(self.cursor.cache.length_B)], []
        return self.cursor

    def _chunk(self, cursor: Cursor, knobs: Knobs) -> tuple[jax.Array, Cursor]:
        chunk, self.cursor = super()._chunk(cursor, knobs)
        self.filled.append(np.asarray(self.cursor.cache.length_B))
        self.drawn.append(np.asarray(chunk))
        return chunk, self.cursor


@dataclasses.dataclass
class _Made:
    """What a generation has made.

    told_BT: the prompts, what was drawn and the next id, padded on the right, as far as the context goes. drawn_BT: what was
    drawn. kv: the keys and the values that the cache holds in its first layers, float32 [L, B, T, K, H], with T at most that of
    told_BT. counted: whether as many slots are filled as tokens were read and drawn. handed_on: whether the results have the
    ids that were drawn. capacity: slots of a row.
    """

    told_BT: np.ndarray
    drawn_BT: np.ndarray
    kv: tuple[np.ndarray, np.ndarray]
    counted: bool
    handed_on: bool
    capacity: int


def loop(engine: Engine) -> Probe:
    """Prompts of two lengths, generated as `Engine.generate` does, in the precision that is served, over two borders of chunks
    where the context allows: every id is the likeliest of the forward pass at temperature 0 and with top_k 1; at a temperature
    of 1e30 it is the one that the keys of row and position draw from equal logits; and the cache has the keys and values of the
    forward pass in its first layers, and as many as tokens were read and drawn.

    Costs three compilations, or four where the precision is not float32, of which generating from two such prompts needs two
    again, and passes of bounded size: of a large model the first layers alone, over one border and without top_k. Raises
    ContractError for logits that are not finite, as generating does.
    """
    cfg, asked = part(engine.params, engine.cfg), POLICIES[engine.precision]
    there, runs, chunks = _Watched(engine, cfg), RUNS, CHUNKS
    if cfg != engine.cfg or (jax.default_backend() == "cpu" and cfg.padded_vocab > SORTED):
        runs, chunks = {name: RUNS[name] for name in RUNS if not RUNS[name].top_k}, FEW
    texts = _texts(there)
    lengths = [len(there.prompt_ids(text)) for text in texts]
    made = {name: _made(there, texts, lengths, sampling, chunks) for name, sampling in runs.items()}
    told_BT = np.concatenate([each.told_BT for each in made.values()])

    @functools.partial(jax.jit, static_argnames="policy")
    def plain(params: Params, told_BT: jax.Array, *, policy: Policy) -> tuple[jax.Array, ...]:
        """Logits, keys and values, those of the first layers, as rounding grows from layer to layer. The mask is that of
        training; the cache only keeps what goes through it."""
        B, T = told_BT.shape
        mask, none = Mask.causal(B, T, window=cfg.window), caches.empty_cache(cfg, B, capacity=T, policy=policy)
        kept = LayerCache(none.k, none.v, mask.positions_BT)
        x_BTD, _, kept = hidden(params, told_BT, cfg, mask, policy=policy, cache=kept)  # type: ignore[assignment]
        return (
            project(params, x_BTD, cfg, policy=policy, rules=caches.RULES)[..., : cfg.vocab_size],
            kept.k[:DEPTH],
            kept.v[:DEPTH],
        )

    exact = [np.asarray(x, np.float32) for x in plain(there.params, told_BT, policy=FLOAT32)]
    sizes = [max(float(np.abs(x).max()), TINY) for x in exact]
    most = [TOLERANCE[engine.precision]] * 3
    if asked != FLOAT32:  # how much rounding there may be
        rounded = [np.asarray(x, np.float32) for x in plain(there.params, told_BT, policy=asked)]
        most = [max(m, MORE * _off(a, b) / size) for m, a, b, size in zip(most, rounded, exact, sizes, strict=True)]
    found = {"finite": all(map(math.isfinite, (*sizes, *most)))}
    for index, (name, each) in enumerate(made.items()):
        rows = slice(index * len(texts), (index + 1) * len(texts))
        if name == "any id":
            found[f"the ids of the keys, {name}"] = _of_keys(each, lengths, RUNS[name], cfg)
        else:
            short = _short(each, lengths, exact[0][rows]) / sizes[0]
            found[f"the likeliest ids, {name} (short by {short:.2g} of {most[0]:.2g})"] = short <= most[0]
        for kind, held, wanted, size, by in zip(("keys", "values"), each.kv, exact[1:], sizes[1:], most[1:], strict=True):
            off = max(_held_off(held[:, b], wanted[:, rows][:, b], n + each.drawn_BT.shape[1]) for b, n in enumerate(lengths))
            found[f"cached {kind}, {name} (off by {off / size:.2g} of {by:.2g})"] = off / size <= by
        found[f"as many slots filled as tokens read and drawn, {name}"] = each.counted
        found[f"every id handed on, {name}"] = each.handed_on
    # A prompt is read before it is said how much shall follow it.
    capacity = min(each.capacity for each in made.values())
    found[f"slots for the context ({capacity} of {cfg.context_length})"] = capacity >= cfg.context_length
    return all_of("loop", "the ids, keys and values of the forward pass, chunk after chunk", found)


def part(params: Params, cfg: ModelConfig) -> ModelConfig:
    """The config, with the layers and positions that ON_CPU or ELSEWHERE leave: of a small model all.

    At least DEPTH layers, as all read their cache alike, and CONTEXT positions.
    """
    width = 2 * cfg.n_heads * cfg.head_width
    products = ON_CPU if jax.default_backend() == "cpu" else ELSEWHERE
    each = products / POSITIONS - cfg.d_model * cfg.padded_vocab
    in_block = sum(math.prod(leaf.shape) // cfg.n_layers for leaf in jax.tree.leaves(params.blocks))
    depth = min(cfg.n_layers, max(DEPTH, int(each / (in_block + width * cfg.context_length))))
    left = min((each / depth - in_block) / width, NUMBERS / (4 * depth * cfg.kv_heads * cfg.head_width))
    return dataclasses.replace(cfg, n_layers=depth, context_length=min(cfg.context_length, max(CONTEXT, int(left))))


def _texts(engine: Engine) -> tuple[str, str]:
    """Two prompts, of half and of all the tokens that there may be: PROMPT, or half of a context that is shorter."""
    most = max(1, min(PROMPT, engine.cfg.context_length // 2))
    fitting = [TEXT[:end] for end in range(len(TEXT) + 1) if len(engine.prompt_ids(TEXT[:end])) <= most]
    return fitting[len(fitting) // 2], fitting[-1]


def _made(engine: _Watched, texts: Sequence[str], lengths: Sequence[int], sampling: Sampling, chunks: int) -> _Made:
    """Generate that many chunks, or what the context leaves, and take down what was made."""
    context = engine.cfg.context_length
    count = min(chunks * CHUNK, context - max(lengths))
    results = engine.generate(list(texts), max_new_tokens=count, sampling=sampling)
    held, drawn_BT = engine.cursor.cache, np.concatenate(engine.drawn, axis=1)
    rows = [[*engine.prompt_ids(t), *d, n] for t, d, n in zip(texts, drawn_BT, np.asarray(engine.cursor.next_B), strict=True)]
    told_BT = np.zeros((len(rows), min(context, max(map(len, rows)))), np.int32)
    for told, row in zip(told_BT, rows, strict=True):
        told[: len(row)] = np.clip(row[: len(told)], 0, engine.cfg.vocab_size - 1)
    counted = all(
        filled == n + CHUNK * chunk
        for chunk, filled_B in enumerate(engine.filled)
        for n, filled in zip(lengths, filled_B, strict=True)
        if n + CHUNK * chunk <= context
    )
    return _Made(
        told_BT=told_BT,
        drawn_BT=drawn_BT,
        kv=tuple(np.asarray(x[:DEPTH, :, : told_BT.shape[1]], np.float32) for x in (held.k, held.v)),  # type: ignore[arg-type]
        counted=counted,
        handed_on=[result.token_ids for result in results] == drawn_BT[:, :count].tolist(),
        capacity=held.capacity,
    )


def _short(made: _Made, lengths: Sequence[int], exact_BTV: np.ndarray) -> float:
    """By how much the logits of what was drawn are less than the largest; of an id that there is not, infinitely."""
    short = 0.0
    for n, drawn, exact_TV in zip(lengths, made.drawn_BT, exact_BTV, strict=True):
        before_TV = exact_TV[n - 1 : n - 1 + len(drawn)]
        ids = drawn[: len(before_TV)]
        if not ((ids >= 0) & (ids < exact_TV.shape[1])).all():
            return math.inf
        short = max(short, float((before_TV.max(axis=-1) - before_TV[np.arange(len(ids)), ids]).max()))
    return short


def _held_off(held: np.ndarray, exact: np.ndarray, filled: int) -> float:
    """By how much one row's keys or values [L, T, K, H] are off, of as many slots as are filled; of lost slots, infinitely."""
    filled = min(filled, exact.shape[1])
    return _off(held[:, :filled], exact[:, :filled]) if held.shape[1] >= filled else math.inf


def _off(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest difference; of what is not finite, infinite."""
    off = float(np.abs(found - exact).max())
    return off if math.isfinite(off) else math.inf


def _of_keys(made: _Made, lengths: Sequence[int], sampling: Sampling, cfg: ModelConfig) -> bool:
    """Whether each id is that of the largest Gumbel noise of the key of its row and position: a draw from equal logits."""
    for b, (n, drawn) in enumerate(zip(lengths, made.drawn_BT, strict=True)):
        key = jax.random.fold_in(jax.random.key(sampling.seed), b)
        for position, token in enumerate(drawn[: cfg.context_length - n], start=n):
            noise_V = np.asarray(jax.random.gumbel(jax.random.fold_in(key, position), (cfg.vocab_size,)))
            if not (0 <= token < cfg.vocab_size and noise_V.max() - noise_V[token] <= NOISE):
                return False
    return True
