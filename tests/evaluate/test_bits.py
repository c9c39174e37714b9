"""Bits per byte of a finished run: against scores of single windows, written down with its parents, refused where it lies."""

import dataclasses
import gzip
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config.schema import DataConfig
from jaxlm.contract import ContractError, InputError, Manifest, check
from jaxlm.data import Batch, build_shards, read_documents, split_of
from jaxlm.evaluate import bits, evaluate, gzip_bits
from jaxlm.infer import Engine
from jaxlm.run import Run
from jaxlm.train.probes_forward import FORWARD
from jaxlm.train.step import score_step

CONTEXT = 32


@pytest.fixture(scope="module")
def copied(finished, tmp_path_factory):
    """A copy of the finished run, for evaluations beside its own."""
    path = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(finished, path)
    return path


def opened(path, step=None, **options):
    run = Run.load(path, step=step)
    run.config = dataclasses.replace(run.config, eval=dataclasses.replace(run.config.eval, **options))
    return run


@pytest.fixture
def quick(copied, monkeypatch):
    """Evaluate the copy with these options and without the probes; other documents take the place of its validation split."""
    monkeypatch.setattr(bits, "run_probes", lambda *args, **options: iter(()))

    def evaluated(documents=None, **options):
        run = opened(copied, **options)
        run.data = documents or run.data
        return evaluate(run)

    return evaluated


@pytest.fixture(scope="module")
def lines(copied, tmp_path_factory):
    """Shards of short texts, each of which fits one window."""
    root = tmp_path_factory.mktemp("lines")
    texts = [f"{word} is {word * 2}\n" for word in ("a", "if", "is", "for", "not", "def", "in", "é", "or", "我", "and", "x")]
    (root / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    cfg = DataConfig(source=(str(root),), val_fraction=0.6)
    data = build_shards(cfg, Run.load(copied).tokenizer, root / "shards")
    assert max(np.diff(data.val.starts)) <= CONTEXT
    return data, [text for text in texts if split_of(text, 0.6) == "val"]


def folders(path):
    return sorted(p.name for p in (path / "evaluations").iterdir())


def scored_alone(run, inputs, labels):
    """nll of the labels of one document at the start of a row by itself, float64."""
    row = np.zeros((4, 1, CONTEXT), np.int32)
    row[0, 0, : len(inputs)], row[1, 0, : len(labels)] = inputs, labels
    row[2, 0, : len(inputs)], row[3, 0, : len(inputs)] = 1, np.arange(len(inputs))
    nll = score_step(run.params, Batch(row[0], row[1], row[2] > 0, row[2], row[3]), bits._on_one_device(run.config))
    return np.asarray(nll, np.float64)[0, : len(labels)]


def bits_per_byte(run, stream, count, stride):
    """Text and ends of the first documents, label by label: the label at j is read in the first window that reaches it."""
    text, ends, size = [], [], 0
    for document in range(count):
        ids = stream.document(document)
        labels = len(ids) - 1
        nll, scores = np.zeros(labels), {}
        for j in range(labels):
            end = min(labels, CONTEXT + max(0, -(-(j + 1 - CONTEXT) // stride)) * stride)
            begin = max(0, end - CONTEXT)
            if begin not in scores:
                scores[begin] = scored_alone(run, ids[begin:end], ids[begin + 1 : end + 1])
            nll[j] = scores[begin][j - begin]
        text += nll[:-1].tolist()
        ends.append(nll[-1])
        size += len(run.tokenizer.decode_bytes(ids[1:-1]))
    return sum(text) / math.log(2) / size, np.mean(text), np.mean(ends)


# ---- the numbers ---------------------------------------------------------------------------------------------------


def test_short_documents_score_as_each_would_alone(quick, copied, lines):
    data, texts = lines
    found = quick(data).result
    expected = bits_per_byte(Run.load(copied), data.val, len(texts), CONTEXT)
    assert (found["bits_per_byte"], found["loss"], found["end_of_document_loss"]) == pytest.approx(expected, rel=1e-5)
    assert (found["documents"], found["bytes"]) == (len(texts), sum(len(t.encode()) for t in texts))


@pytest.mark.parametrize("stride", [0, 5, 32])
def test_long_documents_score_as_their_windows_would_one_by_one(quick, copied, stride):
    run = Run.load(copied)
    found = quick(stride=stride, max_documents=2).result
    expected = bits_per_byte(run, run.data.val, 2, stride or 16)
    assert (found["bits_per_byte"], found["loss"], found["end_of_document_loss"]) == pytest.approx(expected, rel=1e-5)


def test_the_smallest_context_is_evaluated_too(copied, lines, monkeypatch):
    monkeypatch.setattr(bits, "run_probes", lambda *args, **options: iter(()))
    run, stream = opened(copied), lines[0].val
    assert (len(run.params.embed), run.checkpoint.kind) == (320, "checkpoint")  # loaded before the config is changed
    run.data = lines[0]
    run.config = dataclasses.replace(run.config, model=dataclasses.replace(run.config.model, context_length=2))
    documents = [stream.document(d) for d in range(stream.documents)]
    seen = [
        ids[max(0, j - 1) : j + 2] for ids in documents for j in range(len(ids) - 2)
    ]  # two tokens, and the label of the last
    alone = {tuple(ids): scored_alone(run, ids[:-1], ids[1:])[-1] for ids in seen}
    assert evaluate(run).result["loss"] == pytest.approx(np.mean([alone[tuple(ids)] for ids in seen]), rel=1e-5)


def test_a_smaller_stride_gives_more_context_and_so_other_numbers(quick):
    strides = [quick(stride=stride, max_documents=4).result["bits_per_byte"] for stride in (8, 16, 32)]
    assert len(set(strides)) == 3


@pytest.mark.parametrize("size", [1, 7])
def test_the_result_does_not_depend_on_the_batch(quick, lines, size):
    for documents in (None, lines[0]):
        expected = quick(documents, max_documents=5).result
        found = quick(documents, max_documents=5, batch_size=size).result
        assert found["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], rel=1e-6)
        assert found["bits_per_byte_ci"] == pytest.approx(expected["bits_per_byte_ci"], rel=1e-6)
        assert {k: found[k] for k in ("tokens", "bytes", "gzip_bits_per_byte")} == {
            k: expected[k] for k in ("tokens", "bytes", "gzip_bits_per_byte")
        }


def test_gzip_is_that_of_each_text_by_itself(quick, copied, lines):
    (data, texts), run = lines, Run.load(copied)
    long = [d.text for d in read_documents(run.config.data) if split_of(d.text, 0.2) == "val"]
    expected = [[8 * len(gzip.compress(text.encode(), compresslevel=9)) for text in several] for several in (texts, long)]
    assert gzip_bits(run.tokenizer, data.val, len(texts)).tolist() == expected[0]
    assert gzip_bits(run.tokenizer, data.val, 2).tolist() == expected[0][:2]
    assert gzip_bits(run.tokenizer, run.data.val, len(long)).tolist() == expected[1]
    assert quick(data).result["gzip_bits_per_byte"] == sum(expected[0]) / sum(len(t.encode()) for t in texts)


def test_all_documents_are_all_bytes_and_tokens_of_the_split(finished):
    run = Run.load(finished)
    facts = Manifest.load(next((finished / "evaluations").iterdir()), "evaluation").facts
    split = run.data.manifest.facts["splits"]["val"]
    assert (facts["documents"], facts["bytes"]) == (split["documents"], split["bytes"])
    assert facts["tokens"] == split["tokens"] - 2 * split["documents"]
    low, high = facts["bits_per_byte_ci"]
    assert low < facts["bits_per_byte"] < high
    assert facts["bits_per_byte"] < math.log2(300)


def test_max_documents_are_the_first_ones(quick, finished):
    found = quick(max_documents=3)
    lines_of = [
        (path / "documents.jsonl").read_text().splitlines() for path in (found.path, next((finished / "evaluations").iterdir()))
    ]
    first, whole = ([json.loads(line) for line in one] for one in lines_of)
    assert (found.result["documents"], len(first)) == (3, 3)
    for a, b in zip(first, whole, strict=False):
        assert a == pytest.approx(b, rel=1e-6)


# ---- the artifact --------------------------------------------------------------------------------------------------


def test_the_artifact_names_its_parents_and_holds_what_was_printed(quick, copied):
    run, found = Run.load(copied), quick(max_documents=3)
    manifest = Manifest.load(found.path, "evaluation")
    assert manifest == found.manifest
    assert manifest.parents == {
        "checkpoint": run.checkpoint.fingerprint,
        "tokenizer": run.tokenizer.fingerprint,
        "data": run.data.manifest.fingerprint,
    }
    for parent in (run.checkpoint, run.tokenizer.manifest, run.data.manifest):
        assert all(finding.kept for finding in check(parent, manifest))
    manifest.require_files(found.path)
    assert {name: manifest.facts[name] for name in found.result} == found.result
    assert (manifest.facts["step"], manifest.facts["stride"], manifest.facts["seed"]) == (12, 16, 0)
    rows = [json.loads(line) for line in (found.path / "documents.jsonl").read_text().splitlines()]
    total = {name: sum(row[name] for row in rows) for name in ("nll", "end_nll", "tokens", "bytes")}
    assert total["nll"] / math.log(2) / total["bytes"] == pytest.approx(found.result["bits_per_byte"], rel=1e-12)
    assert total["end_nll"] / 3 == pytest.approx(found.result["end_of_document_loss"], rel=1e-12)
    assert total["tokens"] == found.result["tokens"]


def test_evaluating_twice_is_one_artifact_and_the_probes_are_in_it(run_copy):
    before = folders(run_copy)
    first = Manifest.load(run_copy / "evaluations" / before[0])
    again = evaluate(Run.load(run_copy))
    assert folders(run_copy) == before
    assert again.manifest.to_json() == first.to_json()
    assert len(first.facts["probes"]) == len(FORWARD)
    assert all(probe["passed"] for probe in first.facts["probes"].values())
    shutil.rmtree(run_copy / "evaluations")
    fresh = evaluate(Run.load(run_copy))
    assert (fresh.manifest.fingerprint, folders(run_copy)) == (first.fingerprint, before)


def test_other_options_and_another_checkpoint_are_another_artifact_beside(quick, copied):
    found = [quick(max_documents=2, **options) for options in ({}, {"seed": 1}, {"stride": 9}, {"resamples": 7}, {"step": 8})]
    assert len({one.path for one in found}) == 5
    assert all(one.path.name in folders(copied) for one in found)
    assert found[0].manifest.parents["checkpoint"] != found[4].manifest.parents["checkpoint"]
    assert found[4].path.name.startswith("00000008-")


def test_an_artifact_that_was_changed_is_not_taken_as_it_is(quick):
    found = quick(max_documents=2, seed=5)
    (found.path / "documents.jsonl").write_text("[]\n")
    with pytest.raises(ContractError, match=r"documents\.jsonl: expected"):
        quick(max_documents=2, seed=5)


# ---- refusals: nothing is written ----------------------------------------------------------------------------------


@pytest.fixture
def unwritten(copied):
    """The copy, which holds the same evaluations afterwards."""
    before = folders(copied)
    yield copied
    assert folders(copied) == before


def test_a_stride_beyond_the_context_is_refused(unwritten):
    with pytest.raises(InputError, match=r"--eval\.stride: expected at most the context 32, found 33"):
        evaluate(opened(unwritten, stride=33))


def test_a_run_without_a_checkpoint_is_refused(run_copy):
    shutil.rmtree(run_copy / "checkpoints")
    (run_copy / "checkpoints").mkdir()
    with pytest.raises(InputError, match="expected a checkpoint, found none"):
        evaluate(Run.load(run_copy))


def test_parameters_that_are_not_finite_are_refused_by_a_probe(unwritten):
    run = opened(unwritten)
    run.params = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(np.nan), run.params)
    with pytest.raises(ContractError, match=r"contract 'probe labels_shifted_by_one' is broken at .*00000012"):
        evaluate(run)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused_with_their_document(unwritten, quick, monkeypatch, bad):
    def spoiling(params, batch, cfg):
        nll = np.array(score_step(params, batch, cfg))
        nll[(nll > 0) & (np.asarray(batch.labels) == ord("e"))] = bad
        return nll

    monkeypatch.setattr(bits, "score_step", spoiling)
    with pytest.raises(ContractError, match=rf"'evaluation' is broken at .*00000012: .*found {bad} for id 101 in document 0"):
        quick(max_documents=3)


def test_a_model_that_sees_the_future_is_refused_before_anything_is_written(unwritten, monkeypatch):
    import jaxlm.model.attention as attention

    real, said = attention.packed, []

    def leaky(segments, positions, *, window=0):
        ranges = real(segments, positions, window=window)
        return ranges._replace(end_BT=ranges.end_BT + 1)

    monkeypatch.setattr(attention, "packed", leaky)
    with pytest.raises(ContractError, match="contract 'probe causality' is broken at"):
        evaluate(opened(unwritten), say=said.append)
    assert said == []


def rounded(params):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(leaf.dtype), params)


def swapped(params):
    blocks = jax.tree.map(lambda leaf: leaf[::-1], params.blocks)
    return dataclasses.replace(params, blocks=blocks)


@pytest.mark.parametrize("change", [rounded, swapped])
def test_parameters_that_are_not_those_of_the_checkpoint_are_neither_scored_nor_inferred_with(finished, change):
    run = Run.load(finished)
    run.__dict__["params"] = change(run.params)
    with pytest.raises(ContractError, match=r"'restored' is broken at the parameters to evaluate, of .*params/"):
        evaluate(run)
    with pytest.raises(ContractError, match=r"'restored' is broken at the parameters to infer with, of .*params/"):
        Engine.of(run)
    assert Engine.of(Run.load(finished), probes=False).cfg == run.config.model
