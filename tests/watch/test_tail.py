"""A log read while it grows: the records of `read_log`, each once; cut back, replaced, half written, damaged."""

import pytest

from jaxlm.watch import ChainedLog, read_log
from jaxlm.watch.tail import Tail


@pytest.fixture
def path(tmp_path):
    with ChainedLog(tmp_path / "log.jsonl") as log:
        for step in range(1, 6):
            log.append({"step": step, "loss": 1.0 / step, "words": 'naïve ∞ "chain": "0000000000000000"}'})
    return tmp_path / "log.jsonl"


def test_the_records_are_those_of_read_log(path):
    assert list(Tail(path).new()) == [record for record, _ in read_log(path)]
    with ChainedLog(path) as log:
        log.append({})
        log.append({"step": 6})
    assert list(Tail(path).new()) == [record for record, _ in read_log(path)]


def test_each_record_comes_once_and_half_a_line_waits(path):
    tail = Tail(path)
    assert len(list(tail.new())) == 5
    assert not tail.changed()
    assert list(tail.new()) == []
    with ChainedLog(path) as log:
        log.append({"step": 6})
    whole = path.read_bytes()
    with open(path, "ab") as file:
        file.write(b'{"step": 7, "lo')
    assert tail.changed()
    assert [record["step"] for record in tail.new()] == [6]
    assert list(tail.new()) == []
    assert (tail.lines, tail.times, tail.broken) == (6, 0, False)
    path.write_bytes(whole)


def test_a_log_that_is_not_there_yet_is_read_when_it_is(tmp_path):
    tail = Tail(tmp_path / "log.jsonl")
    assert list(tail.new()) == []
    with ChainedLog(tmp_path / "log.jsonl") as log:
        log.append({"step": 1})
        assert [record["step"] for record in tail.new()] == [1]
    assert tail.times == 0


def test_a_log_that_was_cut_back_is_begun_anew(path):
    tail, marks = Tail(path), [mark for _, mark in read_log(path)]
    assert len(list(tail.new())) == 5
    with ChainedLog(path, keep=marks[2]) as log:
        log.append({"step": 40})
    assert [record["step"] for record in tail.new()] == [1, 2, 3, 40]
    assert tail.times == 1
    with ChainedLog(path, keep=marks[0]) as log:
        log.append({"step": 50, "words": "longer than all that was there" * 50})
    assert [record["step"] for record in tail.new()] == [1, 50]
    assert tail.times == 2


def test_any_changed_byte_ends_the_reading_before_its_line(path):
    whole, starts = path.read_bytes(), [0]
    for line in whole.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for at in range(len(whole) - 1):
        changed = bytearray(whole)
        changed[at] ^= 1
        path.write_bytes(bytes(changed))
        tail = Tail(path)
        assert len(list(tail.new())) == sum(start <= at for start in starts) - 1, at
        assert tail.broken
        assert not tail.changed()


def test_a_dropped_line_breaks_the_chain(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))
    tail = Tail(path)
    assert [record["step"] for record in tail.new()] == [1, 2]
    assert tail.broken
