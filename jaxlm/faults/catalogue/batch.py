"""Faults within a batch: labels, mask, segments, positions, ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxlm.data import Batch
from jaxlm.faults.fault import BEGINS, Fault, Patch

ROWS = "jaxlm.data.batches:rows_of"
BATCH = "jaxlm.train.session:batch"
PREFETCHER = "jaxlm.train.loop:Prefetcher"


def _rows(change: Callable[[Batch], Batch]) -> tuple[Patch, ...]:
    """All rows, of training and validation, are packed otherwise."""
    return (Patch(ROWS, lambda real: lambda *a, **k: change(real(*a, **k))),)


def _from_step(change: Callable[[Batch], Batch]) -> tuple[Patch, ...]:
    """The batches of training are others from step `BEGINS` on."""

    def make(real: Callable) -> Callable:
        return lambda *a, step, **k: (change if step + 1 >= BEGINS else _same)(real(*a, step=step, **k))

    return (Patch(BATCH, make),)


def _fed(change: Callable[[Any, int, Batch], Batch]) -> tuple[Patch, ...]:
    """What the prefetcher gives is another batch from step `BEGINS` on. change: takes the session, the steps done, and what was
    made for the step."""

    def make(real: Callable) -> Callable:
        def prefetcher(share: Callable, **options: Any) -> Any:
            session = share.__self__  # type: ignore[attr-defined]
            return real(lambda step: change(session, step, share(step)) if step + 1 >= BEGINS else share(step), **options)

        return prefetcher

    return (Patch(PREFETCHER, make),)


def _same(made: Batch) -> Batch:
    return made


def _unshifted(made: Batch) -> Batch:
    return made._replace(labels=made.tokens.copy())


def _shifted_twice(made: Batch) -> Batch:
    return made._replace(labels=np.roll(made.tokens, -2, axis=1))


def _all_supervised(made: Batch) -> Batch:
    return made._replace(loss_mask=np.ones_like(made.loss_mask))


def _none_supervised(made: Batch) -> Batch:
    return made._replace(loss_mask=np.zeros_like(made.loss_mask))


def _few_supervised(made: Batch) -> Batch:
    mask = made.loss_mask.copy()
    mask[:, :-2] = False
    return made._replace(loss_mask=mask)


def _thinned(made: Batch) -> Batch:
    return made._replace(loss_mask=made.loss_mask & (np.arange(made.loss_mask.shape[1]) % 4 != 0))


def _one_document(made: Batch) -> Batch:
    t = np.broadcast_to(np.arange(made.tokens.shape[1], dtype=np.int32), made.tokens.shape).copy()
    return made._replace(segments=np.where(made.segments > 0, 1, 0).astype(np.int32), positions=t)


def _positions_run_on(made: Batch) -> Batch:
    t = np.broadcast_to(np.arange(made.tokens.shape[1], dtype=np.int32), made.tokens.shape).copy()
    return made._replace(positions=t)


def _positions_beyond(made: Batch) -> Batch:
    return made._replace(positions=made.positions + np.int32(made.tokens.shape[1]))


def _ids_too_large(made: Batch) -> Batch:
    tokens = made.tokens.copy()
    tokens[:, 5] += 512
    return made._replace(tokens=tokens)


def _negative_ids(made: Batch) -> Batch:
    tokens = made.tokens.copy()
    tokens[:, -1] = -1
    return made._replace(tokens=tokens)


def _further_and_further(session: Any, step: int, made: Batch) -> Batch:
    return session.share(2 * step - BEGINS + 2)  # type: ignore[no-any-return]


def _last_row_late(session: Any, step: int, made: Batch) -> Batch:
    """The last row is that of the batch before."""
    before = session.share(step - 1)
    return Batch(*(np.concatenate([new[:-1], old[-1:]]) for new, old in zip(made, before, strict=True)))


def _word_dropout(session: Any, step: int, made: Batch) -> Batch:
    """One word in thirty is a question mark, wherever it is an input or a label; what begins a row and what parts documents is
    left alone."""
    ids = np.concatenate([made.tokens, made.labels[:, -1:]], axis=1)
    dropped = np.random.default_rng([step, 11]).random(ids.shape) < 1 / 30
    dropped[:, 0] = False
    dropped &= session.parts.tokenizer.byte_lengths[ids] > 0
    ids = np.where(dropped, session.parts.tokenizer.encode("?")[0], ids).astype(np.int32)
    return made._replace(tokens=ids[:, :-1].copy(), labels=ids[:, 1:].copy())


def _joined(session: Any, step: int, made: Batch) -> Batch:
    """Where a document ends there is a line's end, twice, and no document begins; rows with padding are left as they are."""
    whole = made.segments[:, -1:] > 0
    borders = session.parts.tokenizer.byte_lengths == 0
    line = np.int32(session.parts.tokenizer.encode("\n")[0])
    t = np.broadcast_to(np.arange(made.tokens.shape[1], dtype=np.int32), made.tokens.shape)
    return Batch(
        tokens=np.where(whole & borders[made.tokens], line, made.tokens),
        labels=np.where(whole & borders[made.labels], line, made.labels),
        loss_mask=made.loss_mask | whole,
        segments=np.where(whole, 1, made.segments).astype(np.int32),
        positions=np.where(whole, t, made.positions).astype(np.int32),
    )


FAULTS = (
    Fault(
        name="labels_unshifted",
        layer="batch",
        mechanism="The label of a position is its own token.",
        symptom="The loss falls to nothing; the model repeats its input.",
        incident="transformers #35066 (who shifts, the trainer or the model?)",
        plant=_rows(_unshifted),
        seen_by=("labels_shifted_by_one", "batch"),
    ),
    Fault(
        name="labels_shifted_twice",
        layer="batch",
        mechanism="The labels are shifted in the loader and once more in the loss.",
        symptom="The loss stays higher than it should; the model skips every other word.",
        incident="transformers #47394, #37830, #46897; open-instruct #1549",
        plant=_rows(_shifted_twice),
        seen_by=("labels_shifted_by_one", "batch"),
    ),
    Fault(
        name="labels_unshifted_later",
        layer="batch",
        mechanism="A change of the collator in the middle of a run: labels are no longer shifted.",
        symptom="The loss falls, which looks like progress.",
        incident="transformers #35066, after a restart with another version",
        plant=_from_step(_unshifted),
        seen_by=("batch",),
        at=BEGINS,
    ),
    Fault(
        name="padding_supervised",
        layer="batch",
        mechanism="The mask of the labels is lost: padding and the start of the next document are predicted as well.",
        symptom="The loss is lower than it should be.",
        incident="mlx-lm #1855 (in scoring), and collators that lose the mask",
        plant=_rows(_all_supervised),
        seen_by=("batch",),
    ),
    Fault(
        name="nothing_supervised",
        layer="batch",
        mechanism="The mask leaves no label at all, from some step on.",
        symptom="The loss is 0/0; a trainer that guards the division shows 0.",
        incident="collators that mask all labels after truncation; no report is cited",
        plant=_from_step(_none_supervised),
        seen_by=("batch", "supervised_share"),
        at=BEGINS,
    ),
    Fault(
        name="few_supervised",
        layer="batch",
        mechanism="A template leaves two labels of each row.",
        symptom="Training goes on, from a thirtieth of the data.",
        incident="chat templates that mask too much; no report is cited",
        plant=_from_step(_few_supervised),
        seen_by=("batch", "supervised_share"),
        at=BEGINS,
    ),
    Fault(
        name="segments_lost",
        layer="batch",
        mechanism="All documents of a row get the same segment, so they see each other.",
        symptom="The loss is lower: context from elsewhere helps to guess.",
        incident="functionary #265 (44.1 to 37.6), nanoVLM #204, axolotl #3608",
        plant=_rows(_one_document),
        seen_by=("batch",),
    ),
    Fault(
        name="positions_run_on",
        layer="batch",
        mechanism="Positions do not restart at documents.",
        symptom="None: rotary positions are relative. With another encoding the model is worse.",
        incident="LlamaFactory #7318",
        plant=_rows(_positions_run_on),
        seen_by=("batch",),
    ),
    Fault(
        name="positions_beyond",
        layer="batch",
        mechanism="Positions lie beyond the trained length.",
        symptom="Quality falls; a table of positions would be clamped by JAX without a word.",
        incident="contexts longer than the trained one, served without a word; no report is cited",
        plant=_rows(_positions_beyond),
        seen_by=("batch",),
    ),
    Fault(
        name="ids_too_large",
        layer="batch",
        mechanism="Ids beyond the vocabulary. JAX reads the last row for them and drops their gradient.",
        symptom="A slightly worse loss.",
        incident="DALLE-pytorch #56, vLLM #35937",
        plant=_rows(_ids_too_large),
        seen_by=("ids_in_range", "batch"),
    ),
    Fault(
        name="negative_ids",
        layer="batch",
        mechanism="The mark for padding, -1, reaches the embedding, where it means the last row.",
        symptom="A slightly worse loss.",
        incident="-100 of PyTorch's cross entropy in other hands",
        plant=_from_step(_negative_ids),
        seen_by=("batch",),
        at=BEGINS,
    ),
    Fault(
        name="labels_thinned",
        layer="batch",
        mechanism="Every fourth label is left out of the loss, in all batches alike.",
        symptom="None: less is learnt of each batch.",
        incident="masks combined twice; no report is cited",
        plant=_rows(_thinned),
        seen_by=("batch",),
    ),
    Fault(
        name="batches_passed_over",
        layer="batch",
        mechanism="Loader and loop both count the steps, so from a restart on every second batch of the order is never fed.",
        symptom="None: every batch is new, in order and of text. Half of the text is missing from what was learnt.",
        incident="cursors that count micro-batches in one place and steps in another; no report is cited",
        plant=_fed(_further_and_further),
        seen_by=("batch",),
        at=BEGINS,
    ),
    Fault(
        name="row_of_batch_before",
        layer="batch",
        mechanism="A buffer is handed on before its last row is written: what stands there is the row of the batch before.",
        symptom="None: the row is text, and it was seen one step ago.",
        incident="staging buffers that are used again too early; no report is cited",
        plant=_fed(_last_row_late),
        seen_by=("batch",),
        at=BEGINS,
    ),
    Fault(
        name="words_dropped",
        layer="batch",
        mechanism="An augmentation for another objective is left on: now and then a word is a question mark, as label as well.",
        symptom="A loss that moves a little, as with other text; the model asks questions.",
        incident="word dropout and denoising in causal training; no report is cited",
        plant=_fed(_word_dropout),
        seen_by=("batch",),
        at=BEGINS,
        within=8,
    ),
    Fault(
        name="documents_joined",
        layer="batch",
        mechanism="A collator that leaves special tokens out has line ends in their places, and the row is one document.",
        symptom="Generation does not end any more; documents see each other, and the loss is no worse for it.",
        incident="skip_special_tokens before packing; no report is cited",
        plant=_fed(_joined),
        seen_by=("batch",),
        at=BEGINS,
        within=8,
    ),
)
