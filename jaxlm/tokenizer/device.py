"""The tokenizer on the device: bytes to ids as one jitted function, with which a pipeline can begin at raw text.

Axes: B row, N byte of a row, later also code point, token or id of it. Every row is a text of its own. The ids are those of
`Tokenizer.encode_ordinary`: special tokens are text like any other. Bytes that are no UTF-8 are characters that are neither
letter, number nor space, one each, so that every row has ids, and their bytes are the row. Patterns without a mask (o200k) are
refused.

All pre-tokens of all rows are merged at once. A round merges in each the pair of lowest rank, the leftmost of equals, so there
are as many rounds as merges in the pre-token that has most. Most are done long before: what is left is packed into arrays of a
quarter, and then a sixteenth, of the size.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import PartitionSpec as P

from jaxlm.tokenizer.boundaries import END, MASKS, boundaries
from jaxlm.tokenizer.pairs import NEVER, look_up, pair_table
from jaxlm.tokenizer.tokenizer import Tokenizer
from jaxlm.tokenizer.unicode import classes

PAD = -1  # the id after the ids of a row
_KEYS = 2**31 - 1  # above every rank and place in one integer
_SHRINK, _STAGES = 4, 3
_State = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]  # tokens, the next of each, chosen, products, busy


@struct.dataclass
class Tables:
    """What `encode` needs of a tokenizer.

    classes: of every code point, uint8 [0x110000]. pairs: see `pair_table`, int32 [R, 4]. ids: of every token, int32.
    """

    classes: jax.Array
    pairs: jax.Array
    ids: jax.Array
    pattern: str = struct.field(pytree_node=False)
    merges: int = struct.field(pytree_node=False)


def tables(tokenizer: Tokenizer) -> Tables:
    """The tables of a tokenizer, on the default device. Raises ValueError for a pattern that has no mask."""
    if tokenizer.pattern not in MASKS:
        raise ValueError(
            f"tokenizer: expected a pattern that the device can split by, one of {', '.join(MASKS)}, found "
            f"{tokenizer.pattern!r}; encode on the host"
        )
    vocabulary = tokenizer.vocabulary
    return Tables(
        classes=jnp.asarray(classes()),
        pairs=jnp.asarray(pair_table(vocabulary.product)),
        ids=jnp.asarray(vocabulary.ids),
        pattern=tokenizer.pattern,
        merges=len(vocabulary.merges),
    )


@jax.jit
def encode(tables: Tables, bytes_BN: jax.Array, lengths_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Ids of every row, int32 [B, N], then PAD; and how many there are, int32 [B].

    bytes_BN: uint8, UTF-8 from the beginning of each row. lengths_B: int32, bytes of each row, of which those beyond are not
    read. Where the rows are laid on axes of an explicit mesh, the results are as well, and nothing travels.
    Raises ValueError for other shapes or dtypes, for 2^31 bytes on one device, and where rows are laid across devices.
    """
    if bytes_BN.ndim != 2 or bytes_BN.dtype != np.uint8:
        raise ValueError(f"bytes: expected uint8 [B, N], found {bytes_BN.dtype} {list(bytes_BN.shape)}")
    if lengths_B.shape != bytes_BN.shape[:1] or lengths_B.dtype != np.int32:
        raise ValueError(f"lengths: expected int32 [{bytes_BN.shape[0]}], found {lengths_B.dtype} {list(lengths_B.shape)}")
    layout = jax.typeof(bytes_BN).sharding
    if not any(layout.spec):
        return _encode(tables, bytes_BN, lengths_B)
    rows, along = layout.spec
    if along is not None:
        raise ValueError(f"bytes: expected rows that are whole on their device, found them laid on {along!r}")
    mapped = jax.shard_map(
        _encode, mesh=layout.mesh, in_specs=(P(), P(rows, None), P(rows)), out_specs=(P(rows, None), P(rows))
    )
    return mapped(tables, bytes_BN, jax.sharding.reshard(lengths_B, jax.sharding.NamedSharding(layout.mesh, P(rows))))


def _encode(tables: Tables, bytes_BN: jax.Array, lengths_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows, width = bytes_BN.shape
    if rows * width >= 1 << 31:
        raise ValueError(
            f"bytes: expected less than 2^31 on one device, found {rows} rows of {width}; encode fewer rows at once"
        )
    if rows * width == 0:
        return jnp.full((rows, width), PAD, np.int32), jnp.zeros(rows, np.int32)
    index_BN = jnp.broadcast_to(jnp.arange(width, dtype=np.int32), (rows, width))
    inside_BN = index_BN < lengths_B[:, None]
    bytes_BN = jnp.where(inside_BN, bytes_BN, np.uint8(0))
    begins_BN = _pretokens(tables, bytes_BN, inside_BN)
    tokens_BN = _merged(tables, bytes_BN, inside_BN, begins_BN)
    alive_BN = tokens_BN >= 0
    ids_BN = jnp.take(tables.ids, jnp.maximum(tokens_BN, 0))
    return _packed(ids_BN, alive_BN, PAD), jnp.sum(alive_BN, axis=1, dtype=np.int32)


def _packed(x_BN: jax.Array, keep_BN: jax.Array, fill: int) -> jax.Array:
    """What is kept of each row, moved to its beginning, and `fill` behind it."""
    rows, width = x_BN.shape
    place_BN = jnp.where(keep_BN, jnp.cumsum(keep_BN, axis=1, dtype=np.int32) - 1, width)
    row_BN = jnp.broadcast_to(jnp.arange(rows, dtype=np.int32)[:, None], (rows, width))
    return jnp.full_like(x_BN, fill).at[row_BN, place_BN].set(x_BN, mode="drop")


# ---- bytes to pre-tokens -----------------------------------------------------------------------------------------


def _pretokens(tables: Tables, bytes_BN: jax.Array, inside_BN: jax.Array) -> jax.Array:
    """Whether a pre-token begins at each byte, bool [B, N]."""
    codes_BN, first_BN = _code_points(bytes_BN)
    first_BN = first_BN & inside_BN
    codes_BN = _packed(codes_BN, first_BN, -1)
    classes_BN = jnp.where(codes_BN < 0, np.uint8(END), jnp.take(tables.classes, jnp.maximum(codes_BN, 0)))
    begins_BN = boundaries(
        jnp.maximum(codes_BN, 0), classes_BN, tables.pattern, xp=jnp, cummax=functools.partial(jax.lax.cummax, axis=1)
    )
    number_BN = jnp.cumsum(first_BN, axis=1, dtype=np.int32) - 1
    return first_BN & jnp.take_along_axis(begins_BN, jnp.maximum(number_BN, 0), axis=1)


def _code_points(bytes_BN: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The code point that begins at each byte, int32 [B, N], and whether one does.

    Well-formed UTF-8 by table 3-7 of the Unicode standard; every byte of what is not is a character, of a class that does not
    matter in the patterns.
    """
    b = bytes_BN.astype(np.int32)

    def following(by: int) -> jax.Array:
        return jnp.pad(b[:, by:], ((0, 0), (0, min(by, b.shape[1]))))

    def continues(x: jax.Array) -> jax.Array:
        return (x & 0xC0) == 0x80

    one, two, three = (following(by) for by in (1, 2, 3))
    low = jnp.where(b == 0xE0, 0xA0, jnp.where(b == 0xF0, 0x90, 0x80))  # no code point in more bytes than it needs
    high = jnp.where(b == 0xED, 0x9F, jnp.where(b == 0xF4, 0x8F, 0xBF))  # no surrogate, and none beyond the last
    begun = (one >= low) & (one <= high)
    of_two = (b >= 0xC2) & (b <= 0xDF) & begun
    of_three = (b >= 0xE0) & (b <= 0xEF) & begun & continues(two)
    of_four = (b >= 0xF0) & (b <= 0xF4) & begun & continues(two) & continues(three)
    codes = jnp.where(b < 0x80, b, 0xFFFD)
    codes = jnp.where(of_two, (b & 0x1F) << 6 | one & 0x3F, codes)
    codes = jnp.where(of_three, (b & 0x0F) << 12 | (one & 0x3F) << 6 | two & 0x3F, codes)
    codes = jnp.where(of_four, (b & 0x07) << 18 | (one & 0x3F) << 12 | (two & 0x3F) << 6 | three & 0x3F, codes)

    def before(flags: jax.Array, by: int) -> jax.Array:
        return jnp.pad(flags, ((0, 0), (by, 0)))[:, : flags.shape[1]]

    inner = before(of_two | of_three | of_four, 1) | before(of_three | of_four, 2) | before(of_four, 3)
    return codes, ~inner


# ---- pre-tokens to tokens ----------------------------------------------------------------------------------------


def _merged(tables: Tables, bytes_BN: jax.Array, inside_BN: jax.Array, begins_BN: jax.Array) -> jax.Array:
    """Tokens at the bytes at which they begin, int32 [B, N]; -1 at the others."""
    rows, width = bytes_BN.shape
    size = rows * width
    flat = jnp.arange(size, dtype=np.int32)
    tokens = jnp.where(inside_BN, bytes_BN.astype(np.int32), -1).reshape(size)
    begins = (begins_BN | ~inside_BN).reshape(size)
    words = jax.lax.cummax(jnp.where(begins, flat, 0))  # a pre-token is called by where it begins
    out, at = tokens, flat
    capacity = size
    for stage in range(_STAGES):
        smaller = max(1, capacity // _SHRINK)
        tokens, busy = _rounds(tables, tokens, words, width, 0 if stage == _STAGES - 1 else smaller)
        out = out.at[at].set(tokens, mode="drop")
        if stage < _STAGES - 1:
            place = jnp.where(busy, jnp.cumsum(busy, dtype=np.int32) - 1, smaller)
            at, tokens, words = (
                jnp.full(smaller, empty, np.int32).at[place].set(x, mode="drop")
                for empty, x in ((size, at), (-1, tokens), (smaller - 1, jnp.take(place, words)))
            )
            capacity = smaller
    return out.reshape(rows, width)


def _rounds(tables: Tables, tokens: jax.Array, words: jax.Array, width: int, enough: int) -> tuple[jax.Array, jax.Array]:
    """Merge until at most `enough` tokens are in pre-tokens that can be merged further; and which are those.

    tokens: int32 [M], -1: none. words: where the pre-token of each begins.
    """
    size = len(tokens)
    index = jnp.arange(size, dtype=np.int32)
    ends = jnp.append(words[1:] != words[:-1], True)
    right = jnp.where(ends, index, index + 1)  # the next token of the pre-token, and the last one's is itself

    def best(tokens: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        rank, made = look_up(tables.pairs, tokens, jnp.take(tokens, right), jnp)
        rank = jnp.where((tokens >= 0) & (right != index), rank, NEVER)
        chosen, going = _leftmost_lowest(rank, index, words, width, tables.merges)
        return chosen, made, going & (tokens >= 0)

    def going_on(state: _State) -> jax.Array:
        return jnp.sum(state[4], dtype=np.int32) > enough

    def merge(state: _State) -> _State:
        tokens, right, chosen, made, _ = state
        gone = jnp.where(chosen, right, size)
        after = jnp.take(right, right)
        tokens = jnp.where(chosen, made, tokens).at[gone].set(-1, mode="drop")
        right = jnp.where(chosen, jnp.where(after == right, index, after), right)
        return tokens, right, *best(tokens, right)

    state = jax.lax.while_loop(going_on, merge, (tokens, right, *best(tokens, right)))
    return state[0], state[4]


def _leftmost_lowest(
    rank: jax.Array, index: jax.Array, words: jax.Array, width: int, merges: int
) -> tuple[jax.Array, jax.Array]:
    """Whether a pair is its pre-token's lowest, the leftmost of equals, and whether its pre-token has any; bool [M]."""

    def least(x: jax.Array) -> jax.Array:
        return jnp.take(jnp.full_like(x, _KEYS).at[words].min(x, indices_are_sorted=True), words)

    if merges * width < _KEYS:  # rank and place in the pre-token, in one integer
        key = jnp.where(rank == NEVER, _KEYS, jnp.where(rank == NEVER, 0, rank) * width + index - words)
        lowest = least(key)
        return (key == lowest) & (key != _KEYS), lowest != _KEYS
    lowest = least(rank)
    key = jnp.where((rank == lowest) & (rank != NEVER), index, _KEYS)
    return (key == least(key)) & (key != _KEYS), lowest != NEVER
