"""`jaxlm check`: kept and broken, with both values, for a person and for a script."""

from __future__ import annotations

import sys

import pytest

from jaxlm.cli import check
from jaxlm.cli.check import lines, short
from jaxlm.contract import Finding, file_sha256


def test_a_finished_run_is_kept(cli, finished):
    said = cli("check", finished)
    assert said.status == 0
    first, *rest, last = said.out.splitlines()
    assert first == str(finished)
    assert all(line.startswith("kept    ") for line in rest)
    assert last == f"{len(rest)} kept, 0 broken"
    assert any(line.startswith("kept    tokenizer   tokenizer/manifest.json: ") for line in rest)
    assert max(map(len, rest)) < 160


def test_json_lists_kept_and_broken_with_contract_artifact_and_both_values(cli, finished, run_copy):
    kept = cli("check", finished, "--json").json()
    assert kept["broken"] == []
    assert all(set(entry) == {"contract", "artifact", "expected", "found"} for entry in kept["kept"])
    path = run_copy / "tokenizer" / "bpe.json"
    before = file_sha256(path)
    path.write_bytes(path.read_bytes().replace(b'"gpt2"', b'"gpt3"'))
    said = cli("check", run_copy, "--json")
    assert said.status == 1
    broken = {entry["artifact"]: entry for entry in said.json()["broken"]}
    assert broken[str(path)] == {
        "contract": "tokenizer",
        "artifact": str(path),
        "expected": f"sha256 {before}",
        "found": f"sha256 {file_sha256(path)}",
    }
    line = next(line for line in said.err.splitlines() if line.startswith("BROKEN  tokenizer   tokenizer/bpe.json: "))
    assert f": expected sha256 {before[:12]}; found sha256 {file_sha256(path)[:12]}. Restore it from a copy" in line


def test_quiet_prints_broken_contracts_only(cli, finished, run_copy):
    assert cli("check", finished, "--quiet").out.count("\n") == 1
    (run_copy / "data" / "added").write_text("x")
    said = cli("check", run_copy, "--quiet")
    assert said.status == 1
    assert "kept  " not in said.out
    assert "BROKEN  data        data/added: expected no such file; found one" in said.out


def test_every_finding_is_one_line_with_both_values_and_what_mends_it(cli, finished, run_copy):
    kept = cli("check", finished, "--json").json()["kept"]
    assert cli("check", finished).out.count("\n") == len(kept) + 2
    (run_copy / "data" / "added").write_text("x")
    (run_copy / "events.jsonl").write_text("x\n")
    said = cli("check", run_copy)
    _, *findings, _ = said.out.splitlines()
    assert all(line.startswith(("kept    ", "BROKEN  ")) for line in findings)
    broken = [line for line in findings if line.startswith("BROKEN")]
    assert len(broken) == int(said.out.splitlines()[-1].split()[2]) > 1
    assert all(": expected " in line and "; found " in line and line.endswith(".") for line in broken)
    finding = Finding("data", "there", False, "a\nb", "c", "Do\n this.")
    assert lines(finding, run_copy) == ["BROKEN  data        there: expected a b; found c. Do this."]


def test_several_paths_are_checked_and_counted_together(cli, finished):
    said = cli("check", finished / "tokenizer", finished / "data", "--json")
    kept = said.json()["kept"]
    assert {entry["contract"] for entry in kept} == {"tokenizer", "data", "run"}
    assert f"{len(kept)} kept, 0 broken" in said.err


def test_digests_are_cut_and_long_values_end_in_dots():
    digest = "0123456789ab" + "c" * 52
    assert short(f"sha256 '{digest}',\n 5") == "sha256 '0123456789ab', 5"
    assert short("f" * 63) == "f" * 63
    assert short("x" * 200) == "x" * 157 + "..."


@pytest.mark.parametrize("kept", [True, False])
def test_on_a_terminal_no_line_is_wider_than_it(tmp_path, monkeypatch, kept):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    words = "one of many words " * 8
    finding = Finding("checkpoint", f"{tmp_path}/state/a (leaf a)", kept, f"expected {words}", words, words)
    made = lines(finding, tmp_path)
    assert max(map(len, made)) <= 80
    assert made[0].startswith(f"{'kept  ' if kept else 'BROKEN'}  checkpoint  state/a (leaf a)")
    assert " ".join(" ".join(made).split()).count("one of many words") >= 16
    assert check.__doc__
