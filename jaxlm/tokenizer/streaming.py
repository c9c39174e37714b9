"""Ids of a text that comes in chunks: those of the whole, in bounded memory.

Text is collected, and cut where no pre-token changes (`pretoken.last_cut`). Where there is no such place, pre-tokens that are
final are encoded (`unfinished`), and of one that goes on and on the tokens that are final (`settled`): less than two blocks of
it are kept.

A block takes time with the square of the longest token, which is nothing where that has hundreds of bytes.

Two things are kept together however long they are, since their first ids depend on their end: white space without end after a
line end, in all patterns but GPT-2's; and, in o200k, capitals without end after a word without small letters that ends in a
caseless letter or a mark.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

import numpy as np

from jaxlm.tokenizer.engines import Engines
from jaxlm.tokenizer.forks import cached_property
from jaxlm.tokenizer.merging import merge
from jaxlm.tokenizer.pretoken import compiled, last_cut, special_pattern
from jaxlm.tokenizer.settled import Settled
from jaxlm.tokenizer.unfinished import Unfinished
from jaxlm.tokenizer.unicode import represent
from jaxlm.tokenizer.vocabulary import Vocabulary

BLOCK = 1 << 14  # bytes of a pre-token that are merged at once; more where a token is long

Encode = Callable[[str, int], np.ndarray]


class StreamEncoder:
    """Encodes one text, once.

    encode: ids (int32) of a piece of text that no token crosses at its ends, special tokens among them; it is given the place
    of its first character in the whole, for messages, and raises for what is refused. size: characters that are collected
    before a place to cut is looked for.
    """

    def __init__(self, vocabulary: Vocabulary, pattern: str, engines: Engines, encode: Encode, *, size: int):
        self._vocabulary, self._pattern, self._engines, self._encode, self._size = vocabulary, pattern, engines, encode, size
        self._finder = special_pattern(tuple(vocabulary.special_ids))
        self._reach = max(map(len, vocabulary.special_ids), default=0)
        self._text, self._start = "", 0  # what is kept, and the character of the whole at which it begins
        # Where it begins within a pre-token: what stands in for the text before it, and the bytes of its first character that
        # have ids already.
        self._context, self._skipped = "", 0

    def ids(self, chunks: Iterable[str]) -> Iterator[np.ndarray]:
        """Ids of the chunks, int32, as they become certain. Raises what `encode` raises, when it comes to the place."""
        text, wanted = "", self._size
        for chunk in chunks:
            if not isinstance(chunk, str):
                raise TypeError(f"chunks: expected str, found {type(chunk).__name__}")
            for at in range(0, len(chunk), self._size):
                text += chunk[at : at + self._size]
                if len(text) < wanted:
                    continue
                self._text, text = text, ""
                yield from self._certain()
                self._text, text = "", self._text
                wanted = len(text) + max(len(text), self._size)  # doubled, so that all searches together take linear time
        self._text, text = text, ""
        yield from self._complete(len(self._text))

    def _certain(self) -> Iterator[np.ndarray]:
        """Ids of as much of what is kept as is certain."""
        if cut := self._last_cut():
            yield from self._complete(cut)
        if len(self._text) < self._size:
            return
        end = len(self._text) - self._reach
        specials = self._finder.finditer(self._text) if self._finder else ()
        if found := [match.end() for match in specials if match.start() < end]:
            yield from self._complete(found[-1])
            end = len(self._text) - self._reach
        if end > 0 and self._context:
            unfinished = Unfinished.of(self._context + self._text[:end], self._pattern)
            if not len(unfinished.ends):
                yield from self._shortened(unfinished)
                return
            first = int(unfinished.ends[0]) - len(self._context)
            yield from self._finished(first)
            end -= first
        if end > 0:
            unfinished = Unfinished.of(self._text[:end], self._pattern)
            for begin, after in unfinished.parts():
                yield self._encode(*self._taken(after - begin))
            yield from self._shortened(unfinished)

    def _last_cut(self) -> int:
        """The last place to cut what is kept; a special token that begins before it is there whole."""
        end = len(self._text) - self._reach
        cut = last_cut(self._text, end, None)
        if cut and self._finder and self._finder.search(self._text, max(cut - self._reach, 0), cut + self._reach):
            return last_cut(self._text, end, self._finder)
        return cut

    def _complete(self, count: int) -> Iterator[np.ndarray]:
        """Ids of the first `count` characters, after which nothing crosses."""
        if self._context:
            special = self._finder.search(self._text, 0, count) if self._finder else None
            ordinary = self._context + self._text[: special.start() if special else count]
            first = compiled(self._pattern).match(represent(ordinary))
            assert first is not None
            length = first.end() - len(self._context)
            yield from self._finished(length)
            count -= length
        if count:
            yield self._encode(*self._taken(count))

    def _finished(self, count: int) -> Iterator[np.ndarray]:
        """Ids of the first `count` characters, the rest of the pre-token whose begin is encoded."""
        rest = self._utf8(count)[self._skipped :]
        done = yield from self._settled_ids(rest)
        yield self._vocabulary.ids[self._merged([rest[done:]])[0]]
        self._taken(count)
        self._context, self._skipped = "", 0

    def _shortened(self, unfinished: Unfinished) -> Iterator[np.ndarray]:
        """Ids of what is certain of the pre-token that is not final, with which what is kept begins."""
        known = self._utf8(unfinished.sure - unfinished.begin - len(self._context))
        done = yield from self._settled_ids(known[self._skipped :])
        if done:
            place = begin = self._skipped + done
            while known[begin] & 0xC0 == 0x80:  # within a character
                begin -= 1
            count = len(known[:begin].decode())
            if count:
                self._context = unfinished.context(unfinished.begin + len(self._context) + count)
            self._taken(count)
            self._skipped = place - begin

    def _settled_ids(self, known: bytes) -> Generator[np.ndarray, None, int]:
        """Ids of the tokens that are final at the begin of a pre-token; returns of how many bytes."""
        done = 0
        if len(known) >= BLOCK:
            block = size = max(BLOCK, 8 * self._settled.longest)
            while len(known) - done >= size:
                tokens, count = self._settled.tokens(known[done : done + size])
                done += count
                size = block if count else 2 * size
                yield self._vocabulary.ids[tokens]
        return done

    @cached_property
    def _settled(self) -> Settled:
        return Settled(self._vocabulary, self._merged)

    def _merged(self, pretokens: Sequence[bytes]) -> list[np.ndarray]:
        """Tokens of each of several pre-tokens, none of which is split."""
        loaded = self._engines.compiled(sum(map(len, pretokens)))
        if loaded is None:
            return [np.array(merge(list(pretoken), self._vocabulary.product), np.int32) for pretoken in pretokens]
        from jaxlm.tokenizer.compiled.pretokens import merge_pretokens

        return merge_pretokens(loaded[0], pretokens)

    def _utf8(self, count: int) -> bytes:
        """The first `count` characters as UTF-8. Raises what `encode` raises where there is none."""
        text = self._text[:count]
        try:
            return text.encode()
        except UnicodeEncodeError:
            self._encode(text, self._start)
            raise

    def _taken(self, count: int) -> tuple[str, int]:
        """The first `count` characters, which are kept no longer, and where they begin."""
        text, start = self._text[:count], self._start
        self._text, self._start = self._text[count:], start + count
        return text, start
