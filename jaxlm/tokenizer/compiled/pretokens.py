"""Bytes to tokens, each text taken as one pre-token, whatever is in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxlm.tokenizer.compiled.encode import Engine
from jaxlm.tokenizer.compiled.jit import compiled
from jaxlm.tokenizer.compiled.memory import load_i64, store_i64
from jaxlm.tokenizer.compiled.merge import SHORT, SHORT_SCRATCH, merge_long, merge_short


@compiled
def merge_texts(pairs, shift, mask, text, ends, count, scratch, out):
    """Write the tokens of `count` texts, one after another as they are in `text`, as int32 to `out` (room for one a byte).

    Returns how many there are, -1 where memory runs out.

    ends: int64 [count], where each text ends; is overwritten by where its tokens end. scratch: of SHORT_SCRATCH bytes.
    """
    begin, written = np.int64(0), np.int64(0)
    for k in range(count):
        end = load_i64(ends + 8 * k)
        if end - begin > SHORT:
            made = merge_long(pairs, shift, mask, text + begin, end - begin, out + 4 * written)
            if made < 0:
                return np.int64(-1)
            written += made
        elif end > begin:
            written += merge_short(pairs, shift, mask, text + begin, end - begin, scratch, out + 4 * written)
        store_i64(ends + 8 * k, written)
        begin = end
    return written


def merge_pretokens(engine: Engine, pretokens: Sequence[bytes]) -> list[np.ndarray]:
    """Tokens, by their numbers inside, of each pre-token, int32; together below 2**31 bytes. Raises MemoryError."""
    text = np.frombuffer(b"".join(pretokens), np.uint8)
    ends = np.cumsum([len(pretoken) for pretoken in pretokens], dtype=np.int64)
    scratch, out, pairs = np.empty(SHORT_SCRATCH, np.uint8), np.empty(len(text), np.int32), engine.tables.pairs
    places = (text.ctypes.data, ends.ctypes.data, len(ends), scratch.ctypes.data, out.ctypes.data)
    written = merge_texts(pairs.address, pairs.shift, pairs.mask, *places)
    if written < 0:
        raise MemoryError(f"expected memory for a pre-token of up to {max(map(len, pretokens))} bytes, found none")
    return np.split(out[:written].copy(), ends[:-1])
