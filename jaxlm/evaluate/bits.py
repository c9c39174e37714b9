"""Bits per byte of a run on its validation split, with an interval, next to what gzip makes of the same text.

bits per byte = sum over documents of the text's negative log likelihood in nats / (ln 2 * bytes of the text). It does not
depend on the tokenizer, so models with different ones can be compared. The end of a document is not part of its text; what
predicting it costs is reported beside it.
"""

from __future__ import annotations

import dataclasses
import gzip
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.checkpoint import require_restored
from jaxlm.config.schema import EvalConfig, MeshConfig, RunConfig
from jaxlm.contract import InputError, Manifest, canonical_json, fingerprint, new_artifact, record_files
from jaxlm.data import Batch, TokenStream, check_batch, validation_batches
from jaxlm.evaluate.agreement import Coverage, require_alone, require_counts, require_figures, require_placed
from jaxlm.evaluate.documents import DocumentScores, Tally, scored_batches
from jaxlm.evaluate.statistics import bootstrap_ratio
from jaxlm.parallel import make_mesh
from jaxlm.run import Run
from jaxlm.run.scores import FILE
from jaxlm.tokenizer import Tokenizer
from jaxlm.train.probes import require, run_probes
from jaxlm.train.state import environment_of, put_batch
from jaxlm.train.step import score_step

KIND = "evaluation"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Evaluation:
    """result: the numbers, as `jaxlm eval --json` prints them. manifest: of the artifact at `path`."""

    result: dict[str, Any]
    manifest: Manifest
    path: Path


def gzip_bits(tokenizer: Tokenizer, stream: TokenStream, documents: int) -> np.ndarray:
    """Bits of `gzip -9` for each of the first `documents` documents, compressed one by one, int64."""
    texts = (tokenizer.decode_bytes(stream.document(index)[1:-1]) for index in range(documents))
    return np.array([8 * len(gzip.compress(text, 9, mtime=0)) for text in texts], np.int64)


def evaluate(run: Run, *, say: Say = lambda line: None) -> Evaluation:
    """Score the validation split with the run's checkpoint and write the evaluation into the run.

    The options are those of `run.config.eval`. The static probes come first (causality among them): a model that sees the
    future scores wonderfully. What was scored is then counted, and in part scored, in another way (`jaxlm.evaluate.agreement`).
    Raises ContractError where one fails or a contract is broken, InputError without a checkpoint; nothing is written then.
    """
    cfg = _on_one_device(run.config)
    options, stream = cfg.eval, run.data.val
    stride = options.stride or max(1, cfg.model.context_length // 2)
    if stride > cfg.model.context_length:
        raise InputError(f"--eval.stride: expected at most the context {cfg.model.context_length}, found {stride}")
    count = min(stream.documents, options.max_documents) if options.max_documents else stream.documents
    mesh, began = make_mesh(cfg.mesh), time.monotonic()
    with jax.set_mesh(mesh):
        params = jax.tree.map(jax.numpy.asarray, run.params)
        where = run.checkpoints.path(run.step)
        first: Batch = next(validation_batches(stream, batch_size=2, context_length=cfg.model.context_length))
        probes = [require(probe, artifact=where) for probe in run_probes(cfg, mesh, params, first, fresh=False, training=False)]
        say(f"probes     {len(probes)} passed")
        require_restored(params, run.checkpoint, artifact=f"the parameters to evaluate, of {where}", below="params")
        tally = Tally(count, run.tokenizer.byte_lengths, artifact=where)
        coverage = Coverage(stream.starts[: count + 1], run.tokenizer.bos_id)
        scoring = dataclasses.replace(cfg, eval=EvalConfig())  # whose options are none of the compiled program's

        def score(batch: Batch) -> np.ndarray:
            placed = put_batch(batch, cfg, mesh)
            require_placed(batch, placed, artifact=where)
            return np.asarray(score_step(params, placed, scoring))

        size = {"context_length": cfg.model.context_length, "stride": stride}
        for scored in scored_batches(stream, batch_size=options.batch_size, limit=count, **size):
            check_batch(
                scored.batch, vocab_size=cfg.model.vocab_size, context_length=cfg.model.context_length, label="evaluation"
            )
            tally.add(scored, score(scored.batch))
            coverage.add(scored)
        scores = tally.scores()
        coverage.require(artifact=where)
        require_counts(scores, run.tokenizer, stream, artifact=where)
        require_alone(scores, stream, score, **size, precision=cfg.train.precision, artifact=where)
    result, lines = _result(cfg, scores, gzip_bits(run.tokenizer, stream, count)), _lines(scores)
    require_figures(result, lines, artifact=where)
    facts = {
        **result,
        "step": run.step,
        "split": "val",
        "document_rule": run.tokenizer.manifest.facts["document_rule"],
        "stride": stride,
        "context_length": cfg.model.context_length,
        "resamples": options.resamples,
        "seed": options.seed,
        "precision": cfg.train.precision,
        "probes": {probe.name: probe.fact() for probe in probes},
    }
    parents = {
        "checkpoint": run.checkpoint.fingerprint,
        "tokenizer": run.tokenizer.fingerprint,
        "data": run.data.manifest.fingerprint,
    }
    provenance = {
        "seconds": time.monotonic() - began,
        "environment": environment_of(cfg, mesh, grad_accum=1),
    }
    return _write(run, result, facts, parents, provenance, lines)


def _on_one_device(cfg: RunConfig) -> RunConfig:
    """The run's config for one device: an evaluation needs no mesh of the run's size."""
    train = dataclasses.replace(cfg.train, grad_accum=1)
    return dataclasses.replace(cfg, mesh=MeshConfig(), train=train)


def _result(cfg: RunConfig, scores: DocumentScores, gzipped: np.ndarray) -> dict[str, Any]:
    options, size = cfg.eval, int(scores.bytes.sum())
    bits = scores.nll / math.log(2)
    interval = bootstrap_ratio(
        bits, scores.bytes, resamples=options.resamples, confidence=options.confidence, seed=options.seed
    )
    return {
        "bits_per_byte": float(bits.sum()) / size,
        "bits_per_byte_ci": interval and list(interval),
        "confidence": options.confidence,
        "gzip_bits_per_byte": int(gzipped.sum()) / size,
        "loss": float(scores.nll.sum()) / int(scores.tokens.sum()),
        "end_of_document_loss": float(scores.end_nll.sum()) / len(scores.nll),
        "documents": len(scores.nll),
        "bytes": size,
        "tokens": int(scores.tokens.sum()),
    }


def _lines(scores: DocumentScores) -> list[dict[str, Any]]:
    """What the artifact holds of every document."""
    columns = zip(scores.nll.tolist(), scores.end_nll.tolist(), scores.tokens.tolist(), scores.bytes.tolist(), strict=True)
    return [
        {"document": index, "nll": nll, "end_nll": end, "tokens": tokens, "bytes": size}
        for index, (nll, end, tokens, size) in enumerate(columns)
    ]


def _write(
    run: Run,
    result: dict[str, Any],
    facts: dict[str, Any],
    parents: dict[str, str],
    provenance: dict[str, Any],
    lines: list[dict[str, Any]],
) -> Evaluation:
    """The artifact, beside earlier ones; an equal one that is there is taken as it is."""
    name = f"{run.step:08d}-{fingerprint(facts)[:8]}"
    path = run.layout.evaluations / name
    if path.exists():
        manifest = Manifest.load(path, KIND)
        manifest.require_files(path)
        return Evaluation(result, manifest, path)
    with new_artifact(path) as temporary:
        (temporary / FILE).write_bytes(b"".join(canonical_json(line) + b"\n" for line in lines))
        manifest = Manifest(KIND, facts, parents, record_files(temporary), provenance)
        manifest.save(temporary)
    return Evaluation(result, manifest, path)
