"""The static probe of the cache: what is generated token by token is what the forward pass gives on the whole text.

At its beginning, with left padding, ragged rows and a cache that is full, and where the context ends: a window, a table or a
count that is too short shows there alone. In float32, since in any other precision rounding moves what a fault moves; and in
the one that is served, which is to be as exact as the one that was asked for.

Axes: B batch, T position, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config.schema import ModelConfig
from jaxlm.infer import cache as caches
from jaxlm.infer.cache import Cache, pad_left
from jaxlm.infer.engine import Engine
from jaxlm.infer.sampling import Sampling
from jaxlm.model import POLICIES, Mask, Params, Policy, forward, hidden, project
from jaxlm.train.probes import Probe

FLOAT32 = Policy()
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-3}  # of the largest logit
MORE = 4.0  # times the rounding of the forward pass, where that is more
PROMPT, STEPS = 7, 4  # tokens of the longer prompt, and those that follow
DEPTH, AFTER = 2, 2  # layers at the far end, as all read their cache alike; tokens that follow its prompt
ON_CPU, ELSEWHERE = 5e10, 5e12  # multiplications of a pass at the far end: some seconds at most
LOGITS = 1 << 28  # of its prompt: a gigabyte


def cache(engine: Engine) -> Probe:
    """Prompts, read and continued, give the logits and tokens of the forward pass on each row alone: short ones, and one that
    with what follows fills the context.

    Costs three compilations, or five where the engine is not in float32, and passes of bounded size.
    """
    return all_of("cache", "the logits and tokens of the forward pass", {**_near(engine), **_far(engine)})


def _near(engine: Engine) -> dict[str, bool]:
    """Left-padded prompts of two lengths, in all layers, in float32, which the parameters are stored in.

    Once with tokens that are given, which fill the longer row's cache and then one more, and once with those drawn at
    temperature 0, which are the likeliest of the forward pass. One compilation of four passes over the model, and 64 positions.
    """
    cfg, vocab = engine.cfg, engine.cfg.vocab_size
    longest = min(PROMPT, cfg.context_length - 1)
    lengths = (max(1, longest // 2), longest)
    steps = min(STEPS, cfg.context_length - longest)
    capacity = longest + steps
    ids_BT = np.random.default_rng(0).integers(0, vocab, (2, capacity), dtype=np.int32)
    rows = list(zip(ids_BT, lengths, strict=True))
    tokens_BT, lengths_B = map(jnp.asarray, pad_left([row[:n].tolist() for row, n in rows], longest + 2))
    fed_TB = jnp.asarray([[row[min(n + t, capacity - 1)] for row, n in rows] for t in range(steps + 1)])
    keys_B, knobs = jax.random.split(jax.random.key(0), 2), Sampling(temperature=0.0).knobs()

    @jax.jit
    def both(params: Params) -> tuple[jax.Array, ...]:
        cursor = caches.prefill(params, tokens_BT, lengths_B, keys_B, knobs, cfg, capacity=capacity, policy=FLOAT32)

        def feed(held: Cache, next_B: jax.Array) -> tuple[Cache, tuple[jax.Array, jax.Array]]:
            logits_BTV, held = caches.extend(params, held, next_B[:, None], jnp.ones_like(next_B), cfg, policy=FLOAT32)
            return held, (logits_BTV[:, 0, :vocab], held.k[:, 1, -1])

        _, (fed_TBV, last_slot) = jax.lax.scan(feed, cursor.cache, fed_TB)
        drawn_BT, after = caches.decode(params, cursor, knobs, cfg, steps=steps, policy=FLOAT32)
        told = [jnp.concatenate([row[:n], drawn]) for (row, n), drawn in zip(rows, drawn_BT, strict=True)]
        told_BT = jnp.stack([jnp.pad(ids, (0, capacity - len(ids))) for ids in told])
        plain_BTV = forward(params, jnp.concatenate([ids_BT, told_BT]), cfg, policy=FLOAT32)
        return fed_TBV, last_slot, drawn_BT, after.finite, plain_BTV

    fed_TBV, last_slot, drawn_BT, finite, plain_BTV = (np.asarray(x) for x in both(engine.params))
    size = float(np.abs(plain_BTV).max())
    off, short = [], []
    for b, n in enumerate(lengths):
        fed = min(steps + 1, capacity - n)
        off.append(np.abs(fed_TBV[:fed, b] - plain_BTV[b, n : n + fed]).max() / size)
        likely_TV = plain_BTV[2 + b, n - 1 : n - 1 + steps]
        short.append((likely_TV.max(axis=-1) - likely_TV[np.arange(steps), drawn_BT[b].clip(0, vocab - 1)]).max() / size)
    return {
        f"logits (off by {np.max(off):.2g})": bool(np.max(off) <= TOLERANCE["float32"]),
        f"greedy tokens (short by {np.max(short):.2g})": bool(
            np.max(short) <= TOLERANCE["float32"] and (drawn_BT < vocab).all()
        ),
        "a full cache kept": bool((last_slot[steps - 1] == last_slot[steps]).all()),
        "finite": bool(finite) and math.isfinite(size),
    }


def reach(params: Params, cfg: ModelConfig) -> int:
    """Positions of the far end: the whole context, or of a large model as many as ON_CPU or ELSEWHERE, and LOGITS, leave."""
    depth = min(DEPTH, cfg.n_layers)
    in_blocks = sum(math.prod(leaf.shape) // cfg.n_layers * depth for leaf in jax.tree.leaves(params.blocks))
    scores = 2 * depth * cfg.context_length * cfg.n_heads * cfg.head_width
    each = in_blocks + scores + cfg.d_model * cfg.padded_vocab
    products = ON_CPU if jax.default_backend() == "cpu" else ELSEWHERE
    return min(cfg.context_length, max(PROMPT + STEPS, int(products / each)), max(PROMPT + STEPS, LOGITS // cfg.padded_vocab))


def _far(engine: Engine) -> dict[str, bool]:
    """A prompt of nearly the whole context, and the tokens that fill it, through the first layers alone, with the cache that
    the engine has; in float32, and in the precision of the engine, where what is asked for says how much rounding there may be.
    """
    length, vocab, depth = reach(engine.params, engine.cfg), engine.cfg.vocab_size, min(DEPTH, engine.cfg.n_layers)
    after = min(AFTER, length - 1)
    cfg = dataclasses.replace(engine.cfg, n_layers=depth)
    ids_BT = np.random.default_rng(1).integers(0, vocab, (1, length), dtype=np.int32)
    prompt_BT, lengths_B = pad_left([ids_BT[0, : length - after].tolist()], length)
    fed_T1 = jnp.asarray(ids_BT[0, length - after :, None])

    def first(params: Params) -> Params:
        return dataclasses.replace(params, blocks=jax.tree.map(lambda leaf: leaf[:depth], params.blocks))

    @functools.partial(jax.jit, static_argnames="policy")
    def plain(params: Params, ids_BT: jax.Array, *, policy: Policy) -> jax.Array:
        x_BTD, _, _ = hidden(first(params), ids_BT, cfg, Mask.causal(1, length, window=cfg.window), policy=policy)
        return project(params, x_BTD[:, -1 - after :], cfg, policy=policy, rules=caches.RULES)[0, :, :vocab]

    @functools.partial(jax.jit, static_argnames="policy")
    def cached(params: Params, prompt_BT: jax.Array, lengths_B: jax.Array, fed_T1: jax.Array, *, policy: Policy) -> jax.Array:
        params = first(params)
        held = caches.empty_cache(cfg, 1, capacity=cfg.context_length, policy=policy)
        read_BTV, held = caches.extend(params, held, prompt_BT, lengths_B, cfg, policy=policy)

        def feed(held: Cache, next_B: jax.Array) -> tuple[Cache, jax.Array]:
            logits_BTV, held = caches.extend(params, held, next_B[:, None], jnp.ones_like(next_B), cfg, policy=policy)
            return held, logits_BTV[0, 0, :vocab]

        _, fed_TV = jax.lax.scan(feed, held, fed_T1)
        return jnp.concatenate([read_BTV[0, -1:, :vocab], fed_TV])

    def off(found_TV: jax.Array) -> float:
        """By how much of the largest logit; of what is not finite, infinitely."""
        most = float(np.abs(np.asarray(found_TV, np.float64) - exact_TV).max()) / size
        return most if math.isfinite(most) else math.inf

    exact_TV = np.asarray(plain(engine.params, ids_BT, policy=FLOAT32), np.float64)
    size = float(np.abs(exact_TV).max())
    found = {"float32": (off(cached(engine.params, prompt_BT, lengths_B, fed_T1, policy=FLOAT32)), TOLERANCE["float32"])}
    if engine.precision != "float32" or engine.policy != FLOAT32:
        asked, most = POLICIES[engine.precision], TOLERANCE[engine.precision]
        if asked != FLOAT32:
            most = max(most, MORE * off(plain(engine.params, ids_BT, policy=asked)))
        found[engine.precision] = (off(cached(engine.params, prompt_BT, lengths_B, fed_T1, policy=engine.policy)), most)
    where = f"the last {after + 1} of {length} positions"
    return {f"logits at {where}, in {name} (off by {by:.2g} of {most:.2g})": by <= most for name, (by, most) in found.items()}


def all_of(name: str, expected: str, found: dict[str, bool]) -> Probe:
    """Passed where everything is found; else it names what is not."""
    missing = ", ".join(word for word, ok in found.items() if not ok)
    return Probe(name, not missing, expected, f"not: {missing}" if missing else "all of it")
