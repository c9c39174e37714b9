"""What an evaluation checks of itself: honest scores pass, and each way to count or score something else is refused."""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest

from jaxlm.config.schema import DataConfig
from jaxlm.contract import ContractError
from jaxlm.data import TokenStream, build_shards
from jaxlm.evaluate import Tally, agreement, bits, evaluate, scored_batches
from jaxlm.evaluate.documents import ScoredBatch
from jaxlm.run import Run
from jaxlm.tokenizer import Tokenizer

CONTEXT, STRIDE = 16, 5
TEXTS = ["a", "one two", "é € 😀", "x" * 40, "import sys", "y" * 16]


def stream_of(tok, texts):
    documents = [tok.encode_document(text) for text in texts]
    return TokenStream((np.concatenate(documents),), np.array([0]), np.cumsum([0, *map(len, documents)]))


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.from_merges([(b"o", b"n"), (b"on", b"e")])


@pytest.fixture(scope="module")
def stream(tok):
    return stream_of(tok, TEXTS)


def nll_of(batch):
    """A loss of every label that depends on its document, as far as it is in the row, and on nothing else."""
    out = np.zeros(batch.tokens.shape)
    for b, t in np.argwhere(batch.segments > 0):
        out[b, t] = 1 + math.sin(batch.labels[b, t] + batch.tokens[b, t - batch.positions[b, t] : t + 1].sum())
    return np.where(batch.loss_mask, out, 0.0)


def scores_of(stream, tok, score=nll_of, size=3):
    tally, coverage = Tally(stream.documents, tok.byte_lengths), agreement.Coverage(stream.starts, tok.bos_id)
    for scored in scored_batches(stream, batch_size=size, context_length=CONTEXT, stride=STRIDE):
        tally.add(scored, score(scored.batch))
        coverage.add(scored)
    return tally.scores(), coverage


def all_checks(stream, tok, score=nll_of, size=3, *, scored=None):
    scores, coverage = scores_of(stream if scored is None else scored, tok, score, size)
    where = {"artifact": "checkpoints/1"}
    coverage.require(**where)
    agreement.require_counts(scores, tok, stream, **where)
    agreement.require_alone(scores, stream, score, context_length=CONTEXT, stride=STRIDE, precision="float32", **where)


def refused(match):
    return pytest.raises(ContractError, match=rf"'evaluation' is broken at (checkpoints/1|.*00000012): .*{match}")


# ---- without a model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 20])
def test_honest_scores_agree(stream, tok, size):
    all_checks(stream, tok, size=size)


def test_a_document_alone_is_every_label_once_in_its_first_window(stream, tok):
    ids = stream.document(3)
    rows = list(agreement.alone(ids, context_length=CONTEXT, stride=STRIDE))
    assert np.concatenate([row.labels[row.loss_mask] for row in rows]).tolist() == ids[1:].tolist()
    assert [int(row.loss_mask.sum()) for row in rows] == [16, 5, 5, 5, 5, 5]


def test_rounding_is_not_refused_and_half_precision_has_more_of_it(stream, tok):
    noise = np.random.default_rng(0)
    all_checks(stream, tok, lambda batch: nll_of(batch) * (1 + 1e-6 * noise.standard_normal(batch.tokens.shape)))
    coarse = [lambda batch, by=by: nll_of(batch) * by for by in (1.0, 1.01)]
    scores, _ = scores_of(stream, tok, coarse[0])
    options = dict(context_length=CONTEXT, stride=STRIDE, artifact="checkpoints/1")
    agreement.require_alone(scores, stream, coarse[1], precision="bfloat16", **options)
    with refused("as scored alone"):
        agreement.require_alone(scores, stream, coarse[1], precision="float32", **options)


def with_neighbours(batch):
    """The rest of the row counts as context."""
    return nll_of(batch) + np.where(batch.loss_mask, 0.01 * (batch.segments > 1), 0.0)


def by_rows(batch):
    return nll_of(batch) * (1 + 0.01 * len(batch.tokens))


def mean_of_batch(batch):
    mean = nll_of(batch).sum() / batch.loss_mask.sum()
    return np.where(batch.loss_mask, mean, 0.0)


@pytest.mark.parametrize("score", [with_neighbours, by_rows, mean_of_batch])
def test_a_loss_that_depends_on_the_batch_is_refused(score, stream, tok):
    with refused("as scored alone"):
        all_checks(stream, tok, score)


def test_long_documents_alone_are_compared_by_the_shortest(tok):
    long = stream_of(tok, ["z" * n for n in (400, 300)])
    all_checks(long, tok)
    with refused("of document 1, as scored alone"):
        all_checks(long, tok, by_rows)


@pytest.mark.parametrize("wrong", range(11))
def test_documents_all_over_the_set_are_scored_alone(wrong, tok):
    stream = stream_of(tok, [f"{i}, {i * i}" for i in range(11)])
    scores, _ = scores_of(stream, tok)
    nll = scores.nll.copy()
    nll[wrong] += 1.0
    options = dict(context_length=CONTEXT, stride=STRIDE, precision="float32", artifact="checkpoints/1")
    checked = dataclasses.replace(scores, nll=nll)
    if wrong not in (0, 1, 4, 5, 9, 10):
        return agreement.require_alone(checked, stream, nll_of, **options)
    with refused(f"of document {wrong}, as scored alone"):
        agreement.require_alone(checked, stream, nll_of, **options)


def test_a_document_that_is_too_long_to_be_scored_alone_gives_way_to_its_neighbour(tok, monkeypatch):
    monkeypatch.setattr(agreement, "WINDOWS", 2)
    long = stream_of(tok, ["a", "z" * 40, "b", "c", "d", "e", "f", "g", "y" * 40])
    scored = []

    def noted(batch):
        scored.append(len(batch.tokens) == 1 and int(batch.tokens[0, 1]))
        return nll_of(batch)

    scores, _ = scores_of(long, tok)
    agreement.require_alone(
        scores, long, noted, context_length=CONTEXT, stride=STRIDE, precision="float32", artifact="checkpoints/1"
    )
    assert scored == [ord(letter) for letter in "abcdfg"]


def test_a_batch_that_lies_on_the_devices_as_another_is_refused(stream):
    made = next(scored_batches(stream, batch_size=3, context_length=CONTEXT, stride=STRIDE)).batch
    agreement.require_placed(made, jax.device_put(made), artifact="checkpoints/1")
    for name in made._fields:
        array = getattr(made, name).copy()
        array[2, 3] ^= True
        with refused("the batch that was made, content .* on the devices"):
            agreement.require_placed(made, jax.device_put(made._replace(**{name: array})), artifact="checkpoints/1")


def other_ids(stream, change):
    ids = np.concatenate(stream.shards).copy()
    change(ids)
    return dataclasses.replace(stream, shards=(ids,))


def test_documents_that_begin_otherwise_than_in_training_are_refused(stream, tok):
    def newline_first(ids):
        ids[stream.starts[2]] = 10

    with refused("document 2 without"):
        all_checks(stream, tok, scored=other_ids(stream, newline_first))
    with refused("document 2 as in training"):
        agreement.require_counts(scores_of(stream, tok)[0], tok, other_ids(stream, newline_first), artifact="checkpoints/1")


@pytest.mark.parametrize("name", ["tokens", "bytes"])
@pytest.mark.parametrize("by", [-1, 1])
def test_another_count_is_refused_with_its_document(name, by, stream, tok):
    scores, _ = scores_of(stream, tok)
    getattr(scores, name)[3] += by
    with refused("40 tokens and 40 bytes of document 3"):
        agreement.require_counts(scores, tok, stream, artifact="checkpoints/1")


# ---- in an evaluation: refused, and nothing is written -------------------------------------------------------------


@pytest.fixture(scope="module")
def copied(finished, tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(finished, path)
    shutil.rmtree(path / "evaluations")
    return path


@pytest.fixture
def evaluated(copied, monkeypatch):
    """Evaluate some documents of the copy, without the probes, into nothing."""
    monkeypatch.setattr(bits, "run_probes", lambda *args, **options: iter(()))

    def call(documents=None, **options):
        run = Run.load(copied)
        options = {"max_documents": 3, **options}
        run.config = dataclasses.replace(run.config, eval=dataclasses.replace(run.config.eval, **options))
        run.data = documents or run.data
        return evaluate(run)

    yield call
    assert not (copied / "evaluations").exists()


@pytest.fixture(scope="module")
def short(copied, tmp_path_factory):
    """Shards of texts that share rows."""
    root = tmp_path_factory.mktemp("short")
    (root / "a.jsonl").write_text("".join(json.dumps({"text": f"{i}, {i * i}\n"}) + "\n" for i in range(12)))
    return build_shards(DataConfig(source=(str(root),), val_fraction=0.6), Run.load(copied).tokenizer, root / "shards")


real_result, real_batches, real_score, real_tally = bits._result, bits.scored_batches, bits.score_step, bits.Tally
real_put = bits.put_batch


def mean_of_means(cfg, scores, gzipped):
    loss = float((scores.nll / scores.tokens).mean())
    return {**real_result(cfg, scores, gzipped), "loss": loss}


def end_counted(cfg, scores, gzipped):
    with_end = dataclasses.replace(scores, nll=scores.nll + scores.end_nll)
    return real_result(cfg, with_end, gzipped)


def all_as_one_segment(params, batch, cfg):
    t = 0 * batch.positions + np.arange(batch.tokens.shape[1], dtype=np.int32)[None, :]
    return real_score(params, batch._replace(segments=0 * t + 1, positions=t), cfg)


class Late:
    """The last row of a batch is still that of the batch before."""

    def __init__(self):
        self.before = None

    def __call__(self, made, cfg, mesh):
        rows = len(made.tokens)
        if self.before is not None and rows > 1:
            pairs = zip(made, self.before, strict=True)
            made = type(made)(*(np.concatenate([new[:-1], old[-1:]]) for new, old in pairs))
        self.before = made if rows > 1 else self.before
        return real_put(made, cfg, mesh)


def cut_short(stream, **options):
    """Rows are scored up to position 20."""
    for batch, documents in real_batches(stream, **options):
        counted = batch.loss_mask & (np.arange(batch.tokens.shape[1]) < 20)[None, :]
        yield ScoredBatch(batch._replace(loss_mask=counted), documents)


FAULTS = {
    "a mean of means": ("_result", mean_of_means, "as the sums over documents give"),
    "the ends in the text": ("_result", end_counted, "as the sums over documents give"),
    "documents that see each other": ("score_step", all_as_one_segment, "as scored alone"),
    "ends of rows left out": ("scored_batches", cut_short, "labels of document"),
    "characters for bytes": ("Tally", lambda n, lengths, **o: real_tally(n, np.minimum(lengths, 1), **o), "bytes of document"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_evaluation_is_refused_before_it_is_written(name, evaluated, short, monkeypatch):
    attribute, wrong, match = FAULTS[name]
    monkeypatch.setattr(bits, attribute, wrong)
    with refused(match):
        evaluated(None if name == "characters for bytes" else short)


def test_rows_of_the_batch_before_are_refused_before_they_are_scored(evaluated, monkeypatch):
    monkeypatch.setattr(bits, "put_batch", Late())
    with refused("expected the batch that was made"):
        evaluated(batch_size=2)


def test_a_tokenizer_that_was_changed_since_is_refused(run_copy):
    mine = Tokenizer.load(run_copy / "tokenizer")
    other = Tokenizer.from_merges([*mine.merges[:-1], (b"\xfe", b"\xff")], mine.special_tokens, mine.pattern)
    assert other.vocab_size == mine.vocab_size
    shutil.rmtree(run_copy / "tokenizer")
    other.save(run_copy / "tokenizer")
    before = sorted(p.name for p in (run_copy / "evaluations").iterdir())
    with pytest.raises(ContractError, match=f"expected tokenizer {mine.fingerprint}, found tokenizer {other.fingerprint}"):
        evaluate(Run.load(run_copy))
    assert sorted(p.name for p in (run_copy / "evaluations").iterdir()) == before
