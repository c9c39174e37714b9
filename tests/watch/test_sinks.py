"""The chained logs: every byte vouched for, half a line after a kill dropped, a resumed run cut back to its checkpoint."""

import errno
import json
import os
import resource
from types import SimpleNamespace

import pytest

from jaxlm.watch import ChainedLog, Mark, read_log, verify_log
from jaxlm.watch.sinks import last_record


@pytest.fixture
def path(tmp_path):
    with ChainedLog(tmp_path / "log.jsonl") as log:
        for step in range(1, 6):
            log.append({"step": step, "loss": 1.0 / step, "words": "naïve ∞"})
    return tmp_path / "log.jsonl"


def test_records_come_back_as_they_were_written(path):
    records = [record for record, _ in read_log(path)]
    assert records == [{"step": step, "loss": 1.0 / step, "words": "naïve ∞"} for step in range(1, 6)]
    assert all("chain" in json.loads(line) for line in path.read_text().splitlines())
    assert verify_log(path, contract="log").kept


def test_any_changed_byte_breaks_the_chain(path):
    whole = path.read_bytes()
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1
        path.write_bytes(bytes(changed))
        assert not verify_log(path, contract="log").kept, at


def test_a_dropped_or_repeated_line_breaks_the_chain(path):
    lines = path.read_bytes().splitlines(keepends=True)
    for changed in (lines[:2] + lines[3:], lines[:2] + lines[1:], lines[1:]):
        path.write_bytes(b"".join(changed))
        assert not verify_log(path, contract="log").kept


def test_a_log_cut_at_a_line_lacks_what_was_marked(path):
    end = list(read_log(path))[-1][1]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    assert verify_log(path, contract="log").kept
    finding = verify_log(path, contract="log", at_least=end)
    assert not finding.kept
    assert "3 lines" in str(finding.found)
    path.unlink()
    assert not verify_log(path, contract="log").kept


def test_half_a_line_after_a_kill_is_dropped_and_writing_goes_on(path):
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 6, "lo')
    found = verify_log(path, contract="log")
    assert (found.kept, found.found) == (False, "half a line at the end")
    assert "`jaxlm train` of the run drops it" in found.remedy
    assert verify_log(path, contract="log", open_end=True).kept
    with ChainedLog(path) as log:
        assert log.mark.lines == 5
        log.append({"step": 6})
    assert verify_log(path, contract="log").kept
    assert [record["step"] for record, _ in read_log(path)] == [1, 2, 3, 4, 5, 6]


def test_a_whole_line_that_breaks_the_chain_is_never_dropped(path):
    lines = path.read_bytes().splitlines(keepends=True)
    marks = [mark for _, mark in read_log(path)]
    for at in range(5):
        broken = b"".join([*lines[:at], lines[at].replace(b"step", b"stop"), *lines[at + 1 :], b'{"half'])
        path.write_bytes(broken)
        chain = marks[at - 1].chain if at else "0" * 16
        with pytest.raises(ValueError, match=rf"^{path}: expected line {at + 1} to continue the chain {chain}, found another$"):
            ChainedLog(path)
        assert path.read_bytes() == broken
    with ChainedLog(path, keep=marks[3]) as log:
        assert log.mark == marks[3]
    assert path.read_bytes() == b"".join(lines[:4])


@pytest.mark.parametrize("room", [0, 1, 10])
def test_a_line_for_which_there_is_no_room_is_an_error_that_names_the_log_and_leaves_none_of_it(path, room):
    whole, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    with ChainedLog(path) as log:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + room, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                log.append({"step": 6})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
        assert path.read_bytes() == whole
        assert log.mark.lines == 5
        log.append({"step": 6})
    assert verify_log(path, contract="log", at_least=log.mark).kept


def test_a_line_that_the_system_takes_in_pieces_is_written_whole(path, monkeypatch):
    with ChainedLog(path) as log:
        with monkeypatch.context() as patch:
            patch.setattr(log, "_file", SimpleNamespace(write=lambda rest, file=log._file: file.write(rest[:7])))
            log.append({"step": 6, "words": "∞" * 20})
        log.append({"step": 7})
    assert verify_log(path, contract="log", at_least=log.mark).kept
    assert [record["step"] for record, _ in read_log(path)] == [1, 2, 3, 4, 5, 6, 7]


def test_a_flush_that_fails_names_the_log_and_closes_it(path, monkeypatch):
    def failing(_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    log = ChainedLog(path)
    monkeypatch.setattr(os, "fsync", failing)
    for flush in (log.sync, log.close):
        with pytest.raises(OSError, match="Disk quota exceeded") as caught:
            flush()
        assert caught.value.filename == str(path)
    assert log._file.closed


def test_a_resumed_log_is_cut_back_to_the_mark_and_repeats_bit_by_bit(path):
    whole = path.read_bytes()
    marks = [mark for _, mark in read_log(path)]
    with ChainedLog(path, keep=marks[2]) as log:
        for step in (4, 5):
            log.append({"step": step, "loss": 1.0 / step, "words": "naïve ∞"})
    assert path.read_bytes() == whole
    with pytest.raises(ValueError, match=r"expected 3 lines with chain 0+, found 3 lines with chain [0-9a-f]{16}$"):
        ChainedLog(path, keep=Mark(3, "0" * 16))
    with ChainedLog(path, keep=Mark(0, "0" * 16)):
        pass
    assert path.read_bytes() == b""


@pytest.mark.parametrize("block", [1, 7, 1 << 16])
def test_the_last_record_is_read_from_the_end(tmp_path, block):
    path = tmp_path / "new.jsonl"
    with ChainedLog(path) as log:
        assert last_record(path, block=block) is None
        for step in range(1, 6):
            log.append({"step": step, "text": "x" * step * 10})
            assert last_record(path, block=block) == {"step": step, "text": "x" * step * 10}
