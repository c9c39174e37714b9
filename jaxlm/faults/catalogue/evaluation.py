"""Faults between a trained model and the number that is published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.faults.fault import STEPS, Fault, Patch, Tampered

WINDOWS = "jaxlm.evaluate.documents:windows"
TALLY = "jaxlm.evaluate.documents:Tally"


def _without_bos(real: Callable) -> Callable:
    """Documents are scored without the token that opens them."""
    return lambda index, ids, **options: real(index, ids[1:], **options)


def _mean_of_means(real: Callable) -> Callable:
    """The loss of a batch is averaged before it is added up."""

    def add(self: Any, scored: Any, nll: np.ndarray) -> None:
        mean = nll[scored.batch.loss_mask].mean()
        real(self, scored, np.where(scored.batch.loss_mask, mean, nll).astype(np.float32))

    return add


def _padding_scored(real: Callable) -> Callable:
    """The mask of the last batch, which is filled up with padding, is true everywhere."""

    def batch(rows: Any, batch_size: int, context_length: int) -> Any:
        made = real(rows, batch_size, context_length)
        documents = np.where(made.documents < 0, made.documents.max(), made.documents)
        return made._replace(batch=made.batch._replace(loss_mask=np.ones_like(made.batch.loss_mask)), documents=documents)

    return batch


def _short_context(real: Callable) -> Callable:
    """Every window begins without the context that it should have."""
    return lambda index, ids, *, context_length, stride: real(index, ids, context_length=context_length, stride=context_length)


def _shared_rows(real: Callable) -> Callable:
    """Documents that share a row see each other."""

    def batch(rows: Any, batch_size: int, context_length: int) -> Any:
        made = real(rows, batch_size, context_length)
        t = np.broadcast_to(np.arange(context_length, dtype=np.int32), made.batch.tokens.shape).copy()
        one = np.minimum(made.batch.segments, 1)
        return made._replace(batch=made.batch._replace(segments=one, positions=np.where(one > 0, t, 0).astype(np.int32)))

    return batch


class _LeftOver:
    """`put_batch` into buffers that are filled again: of every batch but the first, the last row has not come yet."""

    def __init__(self, real: Callable):
        self.real = real
        self.before: dict[int, Any] = {}

    def __call__(self, batch: Any, *arguments: Any, **options: Any) -> Any:
        rows = len(batch.tokens)
        before, self.before[rows] = self.before.get(rows), batch
        if before is not None and rows > 1:
            batch = batch._replace(
                **{name: np.concatenate([getattr(batch, name)[:-1], getattr(before, name)[-1:]]) for name in batch._fields}
            )
        return self.real(batch, *arguments, **options)


class _OfBefore:
    """`validate` with the parameters of the validation before."""

    def __init__(self, real: Callable):
        self.real = real
        self.before: Any = None

    def __call__(self, params: Any, *arguments: Any) -> Any:
        held, self.before = self.before, jax.tree.map(lambda leaf: leaf + 0, params)
        return self.real(params if held is None else held, *arguments)


def _edited(path: Path) -> None:
    """The published number is another than that of its documents, with a fingerprint that fits."""
    from jaxlm.contract import Manifest

    root = next(p for p in (path / "evaluations").iterdir() if p.is_dir())
    held = Manifest.load(root, "evaluation")
    facts = {**held.facts, "bits_per_byte": held.facts["bits_per_byte"] * 0.9}
    (root / "manifest.json").unlink()
    Manifest(held.kind, facts, held.parents, held.files, held.provenance).save(root)


def _other_tokenizer(path: Path) -> None:
    """An evaluation of another tokenizer lies among those of the run."""
    root = next(p for p in (path / "evaluations").iterdir() if p.is_dir())
    file = root / "manifest.json"
    body = json.loads(file.read_text())
    body["parents"]["tokenizer"] = "0" * 64
    file.write_text(json.dumps(body))


FAULTS = (
    Fault(
        name="evaluation_without_bos",
        layer="evaluation",
        mechanism="Documents are scored without the opening token that training had.",
        symptom="A worse number; the model is blamed.",
        incident="lm-evaluation-harness #1465 (gemma-7b, LAMBADA: 5.9e9 for 3.46)",
        plant=(Patch(WINDOWS, _without_bos),),
        seen_by=("evaluation",),
        scene="evaluate",
    ),
    Fault(
        name="evaluation_mean_of_means",
        layer="evaluation",
        mechanism="Losses are averaged by batch, then over batches or documents.",
        symptom="A number that depends on the batch size.",
        incident="transformers #34138, mlx-lm #1855",
        plant=(Patch(f"{TALLY}.add", _mean_of_means),),
        seen_by=("evaluation",),
        scene="evaluate",
    ),
    Fault(
        name="evaluation_scores_padding",
        layer="evaluation",
        mechanism="The padding of the last batch is scored.",
        symptom="A number that depends on the batch size.",
        incident="mlx-lm #1855, transformers #34138",
        plant=(Patch("jaxlm.evaluate.documents:_batch", _padding_scored),),
        seen_by=("evaluation", "batch"),
        scene="evaluate",
    ),
    Fault(
        name="evaluation_shares_rows",
        layer="evaluation",
        mechanism="Documents that share a row see each other.",
        symptom="A slightly better number.",
        incident="axolotl #3796, transformers #46634",
        plant=(Patch("jaxlm.evaluate.documents:_batch", _shared_rows),),
        seen_by=("evaluation", "batch"),
        scene="evaluate",
    ),
    Fault(
        name="evaluation_without_overlap",
        layer="evaluation",
        mechanism="Windows do not overlap, though the stride says so: the first tokens of each have no context.",
        symptom="A worse number than the same model has elsewhere.",
        incident="transformers' guide to perplexity: GPT-2 large 19.44 without overlap, 16.44 with",
        plant=(Patch(WINDOWS, _short_context),),
        seen_by=("evaluation",),
        scene="evaluate",
    ),
    Fault(
        name="validation_of_last_time",
        layer="evaluation",
        mechanism="Each validation scores the parameters that the validation before should have scored.",
        symptom="A curve that lags; the best checkpoint is another than the one that is kept.",
        incident="a copy of the weights that is refreshed after it is used; no report is cited",
        plant=(Patch("jaxlm.train.loop:validate", _OfBefore),),
        seen_by=("evaluation",),
        at=1,
        within=STEPS - 1,
    ),
    Fault(
        name="evaluation_row_left_over",
        layer="evaluation",
        mechanism="The last row of a batch on the device is still that of the batch before; its losses go to other documents.",
        symptom="A number that is a little off, and another one for each batch size.",
        incident="buffers that are filled again while they are read; no report is cited",
        plant=(Patch("jaxlm.evaluate.bits:put_batch", _LeftOver),),
        seen_by=("evaluation",),
        scene="evaluate",
    ),
    Fault(
        name="evaluation_edited",
        layer="evaluation",
        mechanism="The number in an evaluation is not that of its documents.",
        symptom="None.",
        incident="tables that cannot be computed from what they cite; no report is cited",
        plant=(Tampered(_edited),),
        seen_by=("evaluation",),
        scene="check",
    ),
    Fault(
        name="evaluation_of_another_tokenizer",
        layer="evaluation",
        mechanism="The tokenizer was updated between training and evaluation.",
        symptom="Scores move silently.",
        incident="tokenizers updated on a model hub; no report is cited",
        plant=(Tampered(_other_tokenizer),),
        seen_by=("evaluation", "tokenizer", "manifest"),
        scene="check",
    ),
)
