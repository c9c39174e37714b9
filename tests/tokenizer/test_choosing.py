"""When compiled code is used: for no little text, from the disk for some, made for much; and what fails is not tried again."""

from __future__ import annotations

import os

import pytest

from jaxlm.tokenizer import choosing
from jaxlm.tokenizer.choosing import COMPILE_BYTES, MOST_THREADS, READY_BYTES, Kernels, thread_count
from jaxlm.tokenizer.compiled.jit import compiled


class Doubtful(Kernels):
    """Kernels that are on the disk or not, and can be made or not."""

    def __init__(self, *, on_disk: bool = False, error: Exception | None = None):
        super().__init__("decode")
        self.on_disk, self.error, self.tried = on_disk, error, []

    @property
    def are_loaded(self) -> bool:
        """No."""
        return False

    def _load(self, *, make: bool) -> bool:
        self.tried.append(make)
        if self.error:
            raise self.error
        return self.on_disk or make


def test_the_price_is_paid_when_so_much_text_has_come_that_it_pays():
    for work, on_disk, expected in (
        (READY_BYTES - 1, True, False),
        (READY_BYTES, True, True),
        (READY_BYTES, False, False),
        (COMPILE_BYTES - 1, False, False),
        (COMPILE_BYTES, False, True),
    ):
        assert Doubtful(on_disk=on_disk).are_worth(work) is expected


@pytest.mark.parametrize("error", [ModuleNotFoundError("numba"), ImportError("wants another NumPy")])
def test_what_cannot_be_imported_is_tried_once_for_each_price(error):
    kernels = Doubtful(error=error)
    warned = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing.warnings, "warn", lambda text, **_: warned.append(text))
        for _ in range(3):
            assert not kernels.are_worth(READY_BYTES)
        for _ in range(3):
            assert not kernels.are_worth(10 * COMPILE_BYTES)
    assert kernels.tried == [False, True]
    assert all("wants another NumPy" in text for text in warned)
    assert len(warned) == (0 if isinstance(error, ModuleNotFoundError) else 2)


def test_what_is_required_and_cannot_be_had_says_what_mends_it():
    with pytest.raises(ImportError, match=r"for 'compiled', found: numba; pip install numba, or use 'auto'"):
        Doubtful(error=ModuleNotFoundError("numba")).require()
    with pytest.raises(ImportError, match=r"for 'compiled', found: this; do that, or use 'auto'"):
        Doubtful(error=ImportError("this; do that")).require()


def test_kernels_are_all_that_their_modules_compile():
    names = {function.function.__name__ for function in choosing.ENCODING.functions()}
    assert {"encode_texts", "fill", "decoded_length", "decode_ids", "merge_texts"} <= names
    names = {function.function.__name__ for function in choosing.TRAINING.functions()}
    assert {"count_block", "rehash", "add_rows", "take_out", "lay_out", "count_pairs", "list_pairs", "merge_pairs"} <= names
    assert all(isinstance(function, compiled) for function in choosing.TRAINING.functions())


def test_loading_one_of_them_is_not_loading_them_all(tmp_path, monkeypatch):
    from jaxlm.tokenizer.compiled import decode

    monkeypatch.setenv("JAXLM_CACHE_DIR", str(tmp_path))
    first, second = (compiled(function.function) for function in (decode.decoded_length, decode.decode_ids))
    monkeypatch.setattr(decode, "decoded_length", first)
    monkeypatch.setattr(decode, "decode_ids", second)
    kernels = Kernels("decode")
    first.load(make=True)
    assert not kernels.are_worth(READY_BYTES)
    assert not kernels.are_loaded
    assert kernels.are_worth(COMPILE_BYTES)
    assert kernels.are_loaded


def test_where_numba_is_told_not_to_compile_the_advice_is_to_let_it(tmp_path, monkeypatch):
    import numba

    from jaxlm.tokenizer.compiled import decode

    monkeypatch.setenv("JAXLM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    monkeypatch.setattr(decode, "decoded_length", compiled(decode.decoded_length.function))
    with pytest.raises(ImportError, match=r"found: NUMBA_DISABLE_JIT is set; unset it, or use 'auto'"):
        Kernels("decode").require()


def test_threads_are_as_many_as_asked_for_or_one_for_each_processor():
    assert thread_count(3) == 3
    assert 1 <= thread_count(None) <= min(MOST_THREADS, os.cpu_count() or 1)
    for wrong in (0, -3):
        with pytest.raises(ValueError, match=f"threads: expected at least 1, or None, found {wrong}"):
            thread_count(wrong)
