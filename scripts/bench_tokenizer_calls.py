"""Short calls: what one costs beside tiktoken's, where the work is little and the call itself is most of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

DOCUMENTS, CHARACTERS = 100, 1800  # joined by a special token


def calls(tok: Any, peer: Any, text: str, rounds: int) -> list[dict[str, Any]]:
    """Microseconds a call, the least of several, of a tokenizer that has met all of it and of tiktoken with its merges."""
    from jaxlm.tokenizer import Tokenizer

    fast = Tokenizer(tok.merges, tok.special_ids, tok.pattern, ids=tok.vocabulary.ids.tolist())
    fast.encode_ordinary(text)  # so much that compiled code is there
    pieces = [text[at : at + CHARACTERS] for at in range(0, DOCUMENTS * CHARACTERS, CHARACTERS)]
    joined = tok.special_tokens[0].join(pieces)
    rows = []
    for size in (10, 200, 2000):
        short = text[1000 : 1000 + size]
        ids = fast.encode_ordinary(short)
        for what, ours, theirs in (
            ("encode", lambda short=short: fast.encode_ordinary(short), lambda short=short: peer.encode_ordinary(short)),
            ("decode", lambda ids=ids: fast.decode_bytes(ids), lambda ids=ids: peer.decode_bytes(ids)),
        ):
            rows.append(_row(f"{what}, {size} characters, {len(ids)} ids", ours, theirs, 200, rounds))
    specials = set(tok.special_tokens)
    both = lambda: fast.encode(joined, "all"), lambda: peer.encode(joined, allowed_special=specials)
    return [*rows, _row(f"encode, {DOCUMENTS} documents joined by {tok.special_tokens[0]}", *both, 3, rounds)]


def _row(what: str, ours: Callable[[], Any], theirs: Callable[[], Any], count: int, rounds: int) -> dict[str, Any]:
    if list(ours()) != list(theirs()):
        raise AssertionError(f"{what}: expected what tiktoken makes, found something else")
    best = [float("inf")] * 2
    for _ in range(5 * rounds):
        for which, call in enumerate((ours, theirs)):
            began = time.process_time()
            for _ in range(count):
                call()
            best[which] = min(best[which], (time.process_time() - began) / count)
    return {"what": what, "jaxlm_us": best[0] * 1e6, "tiktoken_us": best[1] * 1e6}
