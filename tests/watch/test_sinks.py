"""The chained logs: every byte vouched for, half a line after a kill dropped, a resumed run cut back to its checkpoint."""

import json

import pytest

from jaxlm.watch import ChainedLog, Mark, read_log, verify_log


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
    assert not verify_log(path, contract="log").kept
    assert verify_log(path, contract="log", open_end=True).kept
    with ChainedLog(path) as log:
        assert log.mark.lines == 5
        log.append({"step": 6})
    assert verify_log(path, contract="log").kept
    assert [record["step"] for record, _ in read_log(path)] == [1, 2, 3, 4, 5, 6]


def test_a_resumed_log_is_cut_back_to_the_mark_and_repeats_bit_by_bit(path):
    whole = path.read_bytes()
    marks = [mark for _, mark in read_log(path)]
    with ChainedLog(path, keep=marks[2]) as log:
        for step in (4, 5):
            log.append({"step": step, "loss": 1.0 / step, "words": "naïve ∞"})
    assert path.read_bytes() == whole
    with pytest.raises(ValueError, match="expected 3 lines"):
        ChainedLog(path, keep=Mark(3, "0" * 16))
    with ChainedLog(path, keep=Mark(0, "0" * 16)):
        pass
    assert path.read_bytes() == b""
