"""Learning merges by the definition, on a few words of the corpus: whether what trains the tokenizer does the same.

A tokenizer of worse merges encodes and decodes like any other, and nothing later compares its merges with those that the text
asks for. So what learns is given some words of the text, with their counts, and a plain version that counts all pairs again
before every merge is given the same. Source: Sennrich et al. 2016, algorithm 1.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping

import numpy as np

from jaxlm.contract import ContractError
from jaxlm.tokenizer.counts import Counts

SOME = 128  # words, the most frequent ones, and as many spread over all of them
SHORT = 32  # bytes of a word that is taken, at most
MERGES = 32  # with those words in some 20 ms

# Hugging Face's trainer numbers bytes in the order of the characters that GPT-2's files write for them: those that can be
# printed stand for themselves, and the others come after them.
PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
OTHERS = tuple(byte for byte in range(256) if byte not in PRINTABLE)
NUMBERED = {"bytes": bytes(range(256)), "ids": bytes([*PRINTABLE, *OTHERS])}  # by the rule for ties: the byte of each number


def require_learned(counts: Mapping[bytes, int] | Counts, learn: Callable, *, ties: str) -> None:
    """Raise ContractError where `learn` makes other merges of some of these words than the definition does.

    counts: of pre-tokens. learn: as `learn_merges`; it is given the words in the form in which the counts are.
    """
    words = some_of(counts)
    expected = merges_by_definition(words, MERGES, ties)
    found = learn(Counts.of(words) if isinstance(counts, Counts) else words, MERGES, ties=ties)
    if found == expected:
        return
    same = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), min(len(found), len(expected)))
    raise ContractError(
        "tokenizer",
        artifact=f"the merges of {len(words)} words of the text",
        expected=f"{expected[same : same + 3]} from merge {same} on, the most frequent pairs",
        found=f"{found[same : same + 3]}",
        remedy="Training does not merge the most frequent pair: the tokenizer would be none of this text. Use the version of "
        "jaxlm whose tests pass.",
    )


def some_of(counts: Mapping[bytes, int] | Counts) -> dict[bytes, int]:
    """Short words with their counts: the most frequent ones, and some that are spread over all of them."""
    if isinstance(counts, Counts):
        frequent = np.argpartition(counts.counts, -SOME)[-SOME:] if len(counts) > SOME else np.arange(len(counts))
        spread = np.linspace(0, len(counts) - 1, SOME).astype(int)
        chosen = {}
        for index in sorted({*frequent.tolist(), *spread.tolist()}):
            begin = int(counts.ends[index - 1]) if index else 0
            chosen[counts.text[begin : int(counts.ends[index])].tobytes()] = int(counts.counts[index])
    else:
        words = list(counts)
        chosen = dict(heapq.nlargest(SOME, counts.items(), key=lambda item: item[1]))
        chosen |= {word: counts[word] for word in words[:: max(1, len(words) // SOME)]}
    return {word: count for word, count in chosen.items() if len(word) <= SHORT}


def merges_by_definition(counts: Mapping[bytes, int], wanted: int, ties: str) -> list[tuple[bytes, bytes]]:
    """The first `wanted` merges, every pair counted again before each. ties: see `learn_merges`."""
    words = [([bytes([byte]) for byte in word], count) for word, count in counts.items() if count > 0]
    ids = {bytes([byte]): number for number, byte in enumerate(NUMBERED[ties])}
    merges: list[tuple[bytes, bytes]] = []
    while len(merges) < wanted:
        pairs: dict[tuple[bytes, bytes], int] = {}
        for word, count in words:
            for i in range(len(word) - 1):
                pair = word[i], word[i + 1]
                pairs[pair] = pairs.get(pair, 0) + count
        if not pairs:
            break
        most = max(pairs.values())
        tied = [pair for pair, count in pairs.items() if count == most]
        best = max(tied) if ties == "bytes" else min(tied, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        merges.append(best)
        ids[best[0] + best[1]] = len(ids)
        for word, _ in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = [best[0] + best[1]]
                i += 1
    return merges
