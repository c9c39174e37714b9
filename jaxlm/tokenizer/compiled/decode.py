"""Ids to bytes: the bytes of every id lie one after another, and are copied eight at a time."""

from __future__ import annotations

import numpy as np

from jaxlm.tokenizer.compiled.jit import compiled
from jaxlm.tokenizer.compiled.memory import load_i32, load_i64, load_u64, store_u64
from jaxlm.tokenizer.vocabulary import Vocabulary

WORD = 8  # bytes that are copied at once, up to WORD - 1 of them too many


@compiled
def decoded_length(ids, count, size, lengths):
    """Bytes that `count` ids (int32) stand for; -1 - k where the k-th is no id. lengths: int32 [size], -1 for what is no id."""
    total = np.int64(0)
    for k in range(count):
        number = np.int64(load_i32(ids + 4 * k))
        if number < 0 or number >= size:
            return -1 - k
        length = np.int64(load_i32(lengths + 4 * number))
        if length < 0:
            return -1 - k
        total += length
    return total


@compiled
def decode_ids(ids, count, lengths, starts, blob, out):
    """Copy the bytes of `count` ids to `out`, which has room for WORD more; their places in `blob` are in `starts` (int64)."""
    at = out
    for k in range(count):
        number = np.int64(load_i32(ids + 4 * k))
        length = np.int64(load_i32(lengths + 4 * number))
        begin = blob + load_i64(starts + 8 * number)
        done = np.int64(0)
        while done < length:
            store_u64(at + done, load_u64(begin + done))
            done += WORD
        at += length
    return at - out


class Decoder:
    """The bytes of every id of a vocabulary. Threads may share it."""

    def __init__(self, vocabulary: Vocabulary):
        vocab = vocabulary.vocab
        self._range, self._size = vocabulary.range, vocabulary.size
        self._lengths = np.array([len(vocab[i]) if i in vocab else -1 for i in range(self._size)], np.int32)
        sizes = np.maximum(self._lengths, 0).astype(np.int64)
        self._starts = np.cumsum(sizes) - sizes
        joined = b"".join([vocab.get(i, b"") for i in range(self._size)])
        self._blob = np.frombuffer(joined + bytes(WORD), np.uint8)
        self._addresses = self._lengths.ctypes.data, self._starts.ctypes.data, self._blob.ctypes.data

    def decode(self, ids: np.ndarray) -> bytes:
        """The bytes that ids (int32, contiguous) stand for. Raises ValueError for an integer that is no id."""
        given, (lengths, starts, blob) = ids.ctypes.data, self._addresses
        total = decoded_length(given, len(ids), self._size, lengths)
        if total < 0:
            raise ValueError(f"expected ids in {self._range}, found {ids[-1 - total]}")
        out = np.empty(total + WORD, np.uint8)
        decode_ids(given, len(ids), lengths, starts, blob, out.ctypes.data)
        return out[:total].tobytes()
