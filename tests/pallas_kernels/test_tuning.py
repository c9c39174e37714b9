"""The tables of tiles: a row for everything that a kernel takes, measured rows first, and names of what they were made for."""

import itertools

import pytest

from pallas_kernels import tuning
from pallas_kernels.hopper import HEAD_WIDTHS, Blocks, tiling_for
from pallas_kernels.tuning import Row


@pytest.mark.parametrize("length", [1, 1024, 1025, 8192, 1 << 20])
@pytest.mark.parametrize("table", tuning.TABLES)
def test_there_is_a_row_for_all_that_a_kernel_takes(table, length):
    widths, dtypes = (HEAD_WIDTHS, ("bfloat16", "float16")) if table == "hopper" else ((64, 80, 512), ("bfloat16", "float32"))
    for width, dtype in itertools.product(widths, dtypes):
        assert tuning.tiles(table, "any", dtype, width, length)


def test_the_first_row_that_fits_is_taken(monkeypatch):
    made = [("H200", "bfloat16", 64, 100), ("", "bfloat16", 64, 100), ("", "", 128, None)]
    table = tuple(Row(*key, {"forward": [64, 64, number]}, "made up") for number, key in enumerate(made))
    monkeypatch.setattr(tuning, "rows", lambda name: table)

    def taken(*key):
        return tuning.tiles("hopper", *key)["forward"][2]

    assert taken("NVIDIA H200", "bfloat16", 64, 100) == 0
    assert taken("NVIDIA H100", "bfloat16", 64, 100) == 1
    assert taken("NVIDIA H200", "bfloat16", 64, 101) == 2
    assert taken("NVIDIA H200", "float16", 64, 100) == 2
    with pytest.raises(ValueError, match=r"row for NVIDIA H200, bfloat16, heads of 256 .*hopper.json, found none; .* of 128"):
        taken("NVIDIA H200", "bfloat16", 256, 100)


def test_tiles_are_those_of_the_table(monkeypatch):
    tiles = {"forward": [64, 192, 5], "dq": [64, 64, 2], "dkv": [128, 64, 2]}
    monkeypatch.setattr(tuning, "rows", lambda name: (Row("", "", 64, None, tiles, "made up"),))
    assert tiling_for(64, "bfloat16", 9).forward == Blocks(64, 192, 5)


def test_a_digest_is_of_the_tiles_and_not_of_remarks(monkeypatch):
    before, table = tuning.digest("tpu"), tuning.rows("tpu")
    last = table[-1]
    for other, equal in ((last._replace(source="measured"), True), (last._replace(tiles={"forward": [1, 1]}), False)):
        tuning.digest.cache_clear()
        monkeypatch.setattr(tuning, "rows", lambda name, other=other: (*table[:-1], other))
        assert (tuning.digest("tpu") == before) is equal
    tuning.digest.cache_clear()


def test_what_is_given_out_is_not_the_table():
    tuning.tiles("tpu", "any", "bfloat16", 64, 1)["forward"].append(9)
    assert len(tuning.tiles("tpu", "any", "bfloat16", 64, 1)["forward"]) == 2
