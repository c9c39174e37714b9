"""Static probes of inference: before the first text, on the functions that it is made of.

A cache whose positions are off by one, a stop string that is shown, half a character: such text looks like that of a worse
model. Each probe compares with what is simple: the forward pass that trains, NumPy, the text decoded at once. All of them
write nothing. They call `draw`, and the loop of the engine with ids that are given; those of the cache are in `probes_cache`,
that of the loop with what it draws in `probes_loop`.

Axes: B batch, T position, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.infer import cache as caches
from jaxlm.infer.cache import Cache, Cursor
from jaxlm.infer.engine import CHUNK, Engine, FinishReason, _Row
from jaxlm.infer.probes_cache import all_of, cache
from jaxlm.infer.probes_loop import loop
from jaxlm.infer.sampling import Knobs, Sampling, filtered
from jaxlm.tokenizer import StreamDecoder, Tokenizer
from jaxlm.train.probes import Probe

SAMPLED = (32, 20, 24)  # rows, ids, and ids with padding, of the logits that are sampled from
# Characters of one to four bytes next to each other, with marks, joiners and flags.
TEXT = "a\u00e9\u20ac\U0001f600 \u0416\u6771\u4eac\U0001f1e9\U0001f1ea e\u0301\u200d\n\ufeff0"


def prompt(engine: Engine) -> Probe:
    """A prompt is the begin of a document, as training saw documents: all of its ids but the EOS."""
    texts = ("", TEXT, *engine.tokenizer.special_tokens)
    wrong = sum(engine.prompt_ids(text) != engine.tokenizer.encode_document(text)[:-1].tolist() for text in texts)
    return Probe("prompt", not wrong, "the ids of a document without its end", f"{wrong} of {len(texts)} differ")


def greedy(engine: Engine) -> Probe:
    """Temperature 0 and top_k 1 take the likeliest, the first of equals; the filters leave what they leave in NumPy, and
    what is drawn is among that; one key draws otherwise at another position, and another key at the same. Costs one
    compilation of a sort, whatever the model."""
    rows, vocab, padded = SAMPLED
    cfg = dataclasses.replace(engine.cfg, vocab_size=vocab, vocab_multiple=padded)
    logits_BV = np.random.default_rng(0).normal(0.0, 2.0, (rows, padded)).astype(np.float32)
    logits_BV[0, [7, 3]] = 9.0  # equals
    logits_BV[:, vocab:] = 50.0  # of ids that there are not
    likeliest_B, all_B = logits_BV[:, :vocab].argmax(axis=-1), np.arange(rows)
    keys_B, position_B = jax.random.split(jax.random.key(0), rows), jnp.arange(rows, dtype=jnp.int32)

    @jax.jit
    def made(logits_BV: jax.Array, keys_B: jax.Array, position_B: jax.Array, knobs: Knobs) -> tuple[jax.Array, jax.Array]:
        return caches.draw(logits_BV, keys_B, position_B, knobs, cfg)[0], filtered(logits_BV[:, :vocab], knobs)

    def sampled(**knobs: float) -> tuple[np.ndarray, np.ndarray]:
        numbers = Sampling(**{"temperature": 1.0, **knobs}).knobs()  # type: ignore[arg-type]
        drawn_B, kept_BV = made(jnp.asarray(logits_BV), keys_B, position_B, numbers)
        return np.asarray(drawn_B), np.asarray(kept_BV, np.float64)

    def varies(keys_B: jax.Array, position_B: jax.Array) -> bool:
        """Whether equal logits give more than one id: by chance they do not once in 20^31."""
        drawn_B, _ = made(jnp.zeros((rows, padded), jnp.float32), keys_B, position_B, Sampling(temperature=1.0).knobs())
        return len(np.unique(drawn_B)) > 1

    first_B = sampled(top_k=1)[0]
    found = {
        "temperature 0": bool((sampled(temperature=0.0)[0] == likeliest_B).all()),
        "top_k 1": bool((first_B == likeliest_B)[1:].all()) and first_B[0] in (3, 7),
        "a draw of its own at each position": varies(keys_B[jnp.zeros(rows, jnp.int32)], position_B),
        "a draw of its own for each key": varies(keys_B, jnp.zeros_like(position_B)),
        "draws": bool((sampled(temperature=2.0)[0] != likeliest_B).any()),
    }
    for knobs in (
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"temperature": 0.5},
        {"top_k": 8, "top_p": 0.8, "temperature": 2.0},
    ):
        drawn_B, found_BV = sampled(**knobs)
        exact_BV = _filtered(logits_BV[:, :vocab].astype(np.float64), **knobs)
        same = np.array_equal(np.isfinite(found_BV), np.isfinite(exact_BV)) and np.allclose(found_BV, exact_BV, atol=1e-4)
        found[", ".join(f"{name} {value:g}" for name, value in knobs.items())] = same and bool(
            np.isfinite(exact_BV[all_B, drawn_B.clip(0, vocab - 1)]).all() and (drawn_B < vocab).all()
        )
    return all_of("greedy", "the likeliest token, and draws from what the filters leave", found)


def _filtered(
    logits_BV: np.ndarray, *, temperature: float = 1.0, top_k: float = 0, top_p: float = 1.0, min_p: float = 0.0
) -> np.ndarray:
    """What `Sampling` says of its filters, row by row in float64."""
    out_BV = np.full_like(logits_BV, -np.inf)
    for row, out in zip(logits_BV, out_BV, strict=True):
        scaled = (row - row.max()) / temperature
        stay = np.flatnonzero(scaled >= np.sort(scaled)[-int(top_k)]) if top_k else np.arange(len(row))
        for share in (top_p,) if top_p < 1 else ():
            order = stay[np.argsort(-scaled[stay], kind="stable")]
            weights = np.exp(scaled[order]) / np.exp(scaled[order]).sum()
            stay = order[: 1 + int(np.searchsorted(np.cumsum(weights), share))]
        stay = stay[np.exp(scaled[stay]) >= min_p]
        out[stay] = scaled[stay]
    return out_BV


def streaming(engine: Engine) -> Probe:
    """Ids one at a time give the text of all at once, for every beginning of a text and wherever its tokens end; text that is
    whole has no U+FFFD. On the host, in milliseconds."""
    tokenizer, raw = engine.tokenizer, TEXT.encode()
    cuts = [_single_bytes(tokenizer, raw[:end]) for end in range(len(raw) + 1)]
    halves = [(TEXT[:at], TEXT[at:]) for at in range(len(TEXT))]
    whole = [[*_single_bytes(tokenizer, a.encode()), *tokenizer.encode_ordinary(b)] for a, b in halves]
    wrong = replaced = 0
    for ids in (*cuts, *whole):
        decoder = StreamDecoder(tokenizer)
        pieces = [decoder.push(token) for token in ids]
        wrong += "".join(pieces) + decoder.flush() != tokenizer.decode_bytes(ids).decode(errors="replace")
        replaced += any("\ufffd" in piece for piece in pieces)
    found = {
        f"the text ({wrong} of {len(cuts) + len(whole)} differ)": not wrong,
        f"whole characters (but {replaced} with U+FFFD)": not replaced,
    }
    return all_of("streaming", "the text of all ids at once, in whole characters", found)


class _Given(Engine):
    """An engine whose rows get ids that are given, not drawn. keys: of the rows, as the loop of the engine made them."""

    keys: np.ndarray
    given: Iterator[np.ndarray]

    def _begin(self, tokens_BT: np.ndarray, lengths_B: np.ndarray, keys_B: jax.Array, knobs: Knobs) -> Cursor:
        self.keys = np.asarray(jax.random.key_data(keys_B))
        none = jnp.zeros((0,), jnp.int32)
        return Cursor(none, keys_B, Cache(none, none, none), jnp.bool_(True))

    def _chunk(self, cursor: Cursor, knobs: Knobs) -> tuple[jax.Array, Cursor]:
        return jnp.asarray(next(self.given)), cursor


def chunks(engine: Engine) -> Probe:
    """Each row has a key of its own, and gets every id that is drawn for it, once and in order, over the borders of chunks and
    up to the limit. On the host."""
    few = dataclasses.replace(engine.cfg, context_length=4 * CHUNK)
    there = _Given(engine.params, few, engine.tokenizer)
    letters = _single_bytes(engine.tokenizer, bytes(range(32, 127)))
    drawn_BT = np.array([letters[: 3 * CHUNK], letters[-3 * CHUNK :]], np.int32)
    there.given, count = iter(np.split(drawn_BT, 3, axis=1)), 2 * CHUNK + 3
    made = there.generate(["", ""], max_new_tokens=count)
    found = {
        "every id once, in order": [row.token_ids for row in made] == drawn_BT[:, :count].tolist(),
        "their text": [row.text for row in made] == [engine.tokenizer.decode(ids) for ids in drawn_BT[:, :count].tolist()],
        "a key for each row": len(np.unique(there.keys, axis=0)) == 2,
    }
    return all_of("chunks", "every id that was drawn, with a key of its own for each row", found)


def stop(engine: Engine) -> Probe:
    """A stop string that spans tokens ends the text before it and is never shown; so does EOS; its begin alone is text."""
    tokenizer = engine.tokenizer
    eos = int(tokenizer.encode_document("")[-1])
    found = {
        "a stop string": _told(tokenizer, "one \u20ac two", stop="\u20ac t") == ("one ", "one ", "stop"),
        "the first of two": _told(tokenizer, "abcd", stop="cd", more="bc") == ("a", "a", "stop"),
        "the begin of one": _told(tokenizer, "one \u20ac", stop="\u20ac t") == ("one \u20ac", "one \u20ac", "length"),
        "EOS": _told(tokenizer, "one", after=[eos, *_single_bytes(tokenizer, b" two")]) == ("one", "one", "stop"),
    }
    return all_of("stop", "text up to the stop string, or EOS", found)


def _told(
    tokenizer: Tokenizer, text: str, *, stop: str = "", more: str = "", after: list[int] | None = None
) -> tuple[str, str, FinishReason]:
    """The text of a row that gets the bytes of `text` as tokens, what it showed on the way, and why it ended."""
    row = _Row(tokenizer, [word for word in (stop, more) if word])
    shown = "".join(row.push(token) for token in [*_single_bytes(tokenizer, text.encode()), *(after or [])]) + row.end()
    return row.result.text, shown, row.result.finish_reason


def _single_bytes(tokenizer: Tokenizer, raw: bytes) -> list[int]:
    """One id for each byte."""
    return [int(tokenizer.vocabulary.ids[byte]) for byte in raw]


PROBES: tuple[Callable[[Engine], Probe], ...] = (prompt, streaming, stop, chunks, greedy, cache, loop)


def run_probes(engine: Engine) -> Iterator[Probe]:
    """Yield the result of every probe."""
    for probe in PROBES:
        yield probe(engine)
