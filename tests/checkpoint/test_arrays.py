"""Named arrays to a directory and back; the directory of a leaf."""

from __future__ import annotations

import os

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.checkpoint.arrays import LONGEST, leaf_directory, leaves_of_files, read_arrays, write_arrays

names = st.lists(st.text(st.characters(exclude_characters="/", exclude_categories=("Cs",))), min_size=1, max_size=4).map(
    "/".join
)


@settings(max_examples=500, deadline=None)
@given(first=names, second=names)
def test_two_names_never_share_a_directory_and_each_is_one_plain_file_name(first, second):
    made = leaf_directory(first)
    assert (made == leaf_directory(second)) == (first == second)
    assert 0 < len(made.encode()) <= LONGEST
    assert made.isascii()
    assert "/" not in made
    assert "\x00" not in made
    assert made.strip(".") or first.strip("/") == ""


def test_long_names_that_begin_alike_are_kept_apart():
    long = [f"{'layer/' * 80}{i}" for i in range(2)]
    assert len({leaf_directory(name) for name in long}) == 2
    assert leaf_directory("params/blocks/wq") == "params.blocks.wq"
    assert leaf_directory("a.b/c") == "a%2Eb.c"


def test_a_file_is_told_the_leaf_that_it_belongs_to():
    leaves = ["a/b", "ü", "x" * 400]
    files = {f"state/{leaf_directory(name)}/0.0": name for name in leaves}
    others = ["manifest.json", "state/_METADATA", "elsewhere/a.b/0", "state/a/0"]
    assert leaves_of_files([*files, *others], leaves) == files | dict.fromkeys(others)


DTYPES = ["float32", "float16", "bfloat16", "float64", "int8", "int32", "int64", "uint8", "uint32", "bool", "complex64"]


def sample(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random bits, so that NaNs with payloads, subnormals and negative zeros are among them."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    raw = np.random.default_rng(seed).integers(0, 2 if dtype == "bool" else 256, (*shape, kind.itemsize), np.uint8)
    return raw.view(kind)[..., 0]


def test_every_dtype_and_shape_comes_back_bit_by_bit(tmp_path):
    shapes = [(), (1,), (3,), (2, 3, 4), (5, 1, 1, 2)]
    arrays = {f"{dtype}/{i}": sample(dtype, shape, i) for dtype in DTYPES for i, shape in enumerate(shapes)}
    arrays |= {"odd name \n*?/%2E..~ü": sample("int32", (2,)), "n" * 600: sample("int8", (3,))}
    write_arrays(tmp_path / "new", arrays)
    read = read_arrays(tmp_path / "new", arrays)
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (read[name].dtype, read[name].shape, read[name].tobytes()) == (array.dtype, array.shape, array.tobytes()), name


def test_equal_arrays_give_equal_files_and_a_chunk_is_the_bytes_in_c_order(tmp_path):
    array = np.asfortranarray(sample("float32", (3, 4)))
    for place in ("one", "two"):
        write_arrays(tmp_path / place, {"a/b": array})
    files = [{p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != "_METADATA"}
             for root in (tmp_path / "one", tmp_path / "two")]  # fmt: skip
    assert files[0] == files[1]
    assert (tmp_path / "one" / "a.b" / "0.0").read_bytes() == array.tobytes(order="C")


def test_arrays_without_elements_need_no_files(tmp_path):
    write_arrays(tmp_path / "new", {"empty": np.zeros((0, 3), np.float32)})
    assert os.listdir(tmp_path / "new") == []
    assert read_arrays(tmp_path / "new", []) == {}


def test_a_directory_that_exists_is_not_written_into(tmp_path):
    with pytest.raises(FileExistsError):
        write_arrays(tmp_path, {"a": np.zeros(1)})
