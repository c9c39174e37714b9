"""`jaxlm eval`: the numbers for a person and for a script, and options that change no run."""

from __future__ import annotations

import gzip
import json

from jaxlm.run import Run

from .conftest import listing


def test_json_has_the_numbers_and_they_are_those_of_the_artifact(cli, run_copy):
    said = cli("eval", run_copy, "--json")
    assert said.status == 0
    body = said.json()
    low, high = body["bits_per_byte_ci"]
    assert low < body["bits_per_byte"] < high
    run = Run.load(run_copy)
    texts = [run.tokenizer.decode_bytes(run.data.val.document(i)[1:-1]) for i in range(run.data.val.documents)]
    assert body["documents"] == len(texts)
    assert body["bytes"] == sum(map(len, texts))
    assert body["tokens"] == len(run.data.val) - 2 * len(texts)
    assert body["gzip_bits_per_byte"] == 8 * sum(len(gzip.compress(text, 9)) for text in texts) / body["bytes"]
    with open(f"{body['evaluation']}/manifest.json") as file:
        facts = json.load(file)["facts"]
    assert {name: facts[name] for name in ("bits_per_byte", "bits_per_byte_ci", "tokens")} == {
        name: body[name] for name in ("bits_per_byte", "bits_per_byte_ci", "tokens")
    }
    assert cli("check", run_copy, "--quiet").status == 0


def test_options_of_the_evaluation_are_taken_for_this_one_and_the_run_stays_as_it_is(cli, run_copy):
    before = listing(run_copy)
    words = ("--step", "8", "--eval.max-documents", "2", "--eval.confidence", "0.5", "--eval.stride=8")
    body = cli("eval", run_copy, *words, "--json").json()
    assert (body["documents"], body["step"], body["confidence"]) == (2, 8, 0.5)
    after = listing(run_copy)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"evaluations"}
    said = cli("eval", run_copy, *words)
    assert f"bits per byte   {body['bits_per_byte']:.4f}   50% interval over documents" in said.out
    numbers = [line for line in said.out.splitlines() if line.startswith(("bits", "gzip", "loss"))]
    assert len(numbers) == 3
    assert max(map(len, numbers)) <= 80


def test_fields_of_other_sections_are_refused(cli, finished):
    before = listing(finished)
    said = cli("eval", finished, "--model.n-layers", "3")
    assert said.status == 2
    assert "--model.n-layers" in said.err
    assert listing(finished) == before
