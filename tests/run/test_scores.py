"""The figures of an evaluation against the scores that lie beside it: kept as written, broken where either was changed."""

import dataclasses
import json
import math

import pytest

from jaxlm.contract import Manifest, canonical_json, record_files
from jaxlm.run import audit
from jaxlm.run.scores import FIGURES, figures

LINES = [
    {"document": 0, "nll": 10.0, "end_nll": 3.0, "tokens": 5, "bytes": 20},
    {"document": 1, "nll": 2.0, "end_nll": 1.0, "tokens": 1, "bytes": 3},
]


@pytest.fixture
def evaluation(run_copy):
    return next((run_copy / "evaluations").iterdir())


def changed(root, *, facts=None, lines=lambda lines: lines):
    """The evaluation with other facts or lines, and every hash of it made anew."""
    path = root / "documents.jsonl"
    held = lines([json.loads(line) for line in path.read_bytes().splitlines()])
    path.write_bytes(b"".join(canonical_json(line) + b"\n" for line in held))
    manifest = Manifest.load(root)
    made = dataclasses.replace(manifest, files=record_files(root), facts={**manifest.facts, **(facts or {})})
    made.save(root)


def broken(path):
    return [finding for finding in audit(path) if not finding.kept]


def test_figures_are_ratios_of_sums():
    expected = {
        "bits_per_byte": 12 / (23 * math.log(2)), "loss": 2.0, "end_of_document_loss": 2.0,
        "documents": 2, "bytes": 23, "tokens": 6,
    }  # fmt: skip
    assert figures(LINES) == pytest.approx(expected, rel=1e-15)
    assert tuple(expected) == FIGURES


@pytest.mark.parametrize("wrong", [[], LINES[::-1], LINES[1:], [{**LINES[0], "bytes": 0}]])
def test_lines_that_are_not_those_of_documents_are_refused(wrong):
    with pytest.raises(ValueError, match="expected documents"):
        figures(wrong)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_that_its_documents_do_not_give_is_broken_and_named(name, run_copy, evaluation):
    stated = Manifest.load(evaluation).facts[name]
    other = stated + 1 if isinstance(stated, int) else stated * (1 - 1e-7)
    changed(evaluation, facts={name: other})
    for path in (run_copy, evaluation):
        (finding,) = broken(path)
        assert (finding.contract, finding.artifact) == ("evaluation", str(evaluation / "documents.jsonl"))
        assert (finding.expected, finding.found) == (f"{name} {other}", f"{name} {stated}")


def scaled(lines):
    return [{**line, "nll": line["nll"] * 1.001} for line in lines]


@pytest.mark.parametrize(
    "lines", [scaled, lambda lines: lines[1:], lambda lines: [*lines, lines[-1]], lambda lines: [{"a": 1}]]
)
def test_scores_that_were_changed_are_broken(lines, evaluation):
    changed(evaluation, lines=lines)
    (finding,) = broken(evaluation)
    assert finding.artifact == str(evaluation / "documents.jsonl")


@pytest.mark.parametrize("name", ["bytes", "tokens"])
def test_counts_that_are_not_those_of_the_split_are_broken_though_figures_and_scores_agree(name, evaluation):
    def more(lines):
        lines[0][name] += 2
        return lines

    lines = more([json.loads(line) for line in (evaluation / "documents.jsonl").read_bytes().splitlines()])
    changed(evaluation, facts=figures(lines), lines=more)
    (finding,) = broken(evaluation)
    assert finding.expected.startswith("the whole split: ")


def test_an_evaluation_of_some_documents_is_not_compared_with_all(evaluation):
    lines = [json.loads(line) for line in (evaluation / "documents.jsonl").read_bytes().splitlines()][:2]
    changed(evaluation, facts=figures(lines), lines=lambda _: lines)
    assert broken(evaluation) == []
