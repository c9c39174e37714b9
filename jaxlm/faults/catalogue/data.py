"""Faults between documents and batches of rows."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data import Batch, Document
from jaxlm.data.split import split_of
from jaxlm.faults.fault import BEGINS, Fault, Patch, Tampered

READ = "jaxlm.data.shards:read_documents"
PERMUTE = "jaxlm.data.batches:permute"
BATCH = "jaxlm.train.session:batch"


def _documents(change: Any) -> tuple[Patch, ...]:
    """Other documents are read. change: takes the documents, gives others."""
    return (Patch(READ, lambda real: lambda cfg, counts=None: change(real(cfg, counts), cfg)),)


def _crawled(change: Any) -> tuple[Patch, ...]:
    """The source holds other documents. change: takes the documents, gives others."""

    def make(real: Any) -> Any:
        def read(cfg: Any, counts: Any = None) -> Iterator[Document]:
            with tempfile.TemporaryDirectory() as folder:
                crawl = Path(folder) / "documents.jsonl"
                lines = (json.dumps({cfg.text_field: text}) + "\n" for text, _ in change(real(cfg), cfg))
                crawl.write_text("".join(lines))
                yield from real(dataclasses.replace(cfg, source=(str(crawl),), max_bytes=0), counts)

        return read

    return (Patch(READ, make),)


def _near_duplicates(documents: Iterator[Document], cfg: Any) -> Iterator[Document]:
    """Every document comes six times, each time with another first line."""
    for document in documents:
        for copy in range(6):
            yield Document(f"# copy {copy}\n{document.text}", document.origin)


def _every_second(documents: Iterator[Document], cfg: Any) -> Iterator[Document]:
    return itertools.islice(documents, 0, None, 2)


def _leaked(documents: Iterator[Document], cfg: Any) -> Iterator[Document]:
    """What is for validation comes once more, with another first line, and so lands in training."""
    for document in documents:
        yield document
        if split_of(document.text, cfg.val_fraction) == "val":
            line = next(n for n in range(99) if split_of(f"{n}\n{document.text}", cfg.val_fraction) == "train")
            yield Document(f"{line}\n{document.text}", document.origin)


def _mojibake(documents: Iterator[Document], cfg: Any) -> Iterator[Document]:
    """Accents and quotes are added to the texts, which were read as Latin-1 and encoded again."""
    for text, origin in documents:
        yield Document(text.replace("e ", "é ").replace("'", "’").encode().decode("latin-1"), origin)


def _spaces_cleaned(real: Any) -> Any:
    """Runs of spaces and tabs become one space when a text is read."""
    return lambda *arguments: re.sub(r"[ \t]+", " ", real(*arguments))


def _buffered(indices: np.ndarray, n: int, *, seed: int, epoch: int) -> np.ndarray:
    """A shuffle buffer of 64 rows."""
    indices = np.asarray(indices)
    block, within = indices // 64, indices % 64
    size = np.minimum(64, n - block * 64)
    return (block * 64 + (within * 37 + seed) % size).astype(np.int64)


def _affine(indices: np.ndarray, n: int, *, seed: int, epoch: int) -> np.ndarray:
    """a * x + b modulo n."""
    step = next(a for a in range(n // 3, n) if np.gcd(a, n) == 1)
    return ((np.asarray(indices, np.int64) * step + seed + epoch) % n).astype(np.int64)


def _same_rows(made: Batch) -> Batch:
    """The second half of the rows is the first half once more."""
    half = len(made.tokens) // 2
    return Batch(*(np.concatenate([array[:half], array[:half]]) for array in made))


def _truncated(path: Path) -> None:
    shard = path / "data" / "train-00000.bin"
    shard.write_bytes(shard.read_bytes()[: -(1 << 12)])


def _flipped(path: Path) -> None:
    shard = path / "data" / "train-00000.bin"
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 4
    shard.write_bytes(bytes(content))


def _reversed(real: Any) -> Any:
    """The documents' shards come in another order: what stood in the middle comes first."""

    def stream(self: Any, begin: int, end: int) -> np.ndarray:
        size = len(self)
        shifted = np.arange(begin, min(end, size)) + size // 2
        whole = np.concatenate([np.asarray(shard) for shard in self.shards]).astype(np.int32)
        return whole[shifted % size]

    return stream


def _shifted_stream(real: Any) -> Any:
    """The stream is read one token late."""
    return lambda self, begin, end: real(self, begin + 1, end + 1) if end < len(self) else real(self, begin, end)


def _but_the_last(real: Any) -> Any:
    """Rows of a split without its last shard, where it has several."""

    def rows(self: Any, context_length: int) -> int:
        return int(self.offsets[-1]) // context_length if len(self.offsets) > 1 else real(self, context_length)

    return rows


def _slow(real: Any) -> Any:
    def batch(*arguments: Any, step: int, **options: Any) -> Batch:
        if step >= BEGINS:
            time.sleep(0.15)
        return real(*arguments, step=step, **options)  # type: ignore[no-any-return]

    return batch


FAULTS = (
    Fault(
        name="near_duplicates",
        layer="data",
        mechanism="The crawl holds every document several times, each with another header; no hash of a whole finds that.",
        symptom="The loss falls faster than text allows; what is learnt is the copies.",
        incident="Lee et al. 2022: one sentence over 60,000 times in C4",
        plant=_crawled(_near_duplicates),
        seen_by=("data",),
        scene="build",
    ),
    Fault(
        name="leaked_validation",
        layer="data",
        mechanism="Documents of the validation split are in the training split as well, with another first line.",
        symptom="The validation loss is too good; the model is worse than it says.",
        incident="marin #6742, #5519 (557 of about 14,000 MMLU questions found in training text)",
        plant=_crawled(_leaked),
        seen_by=("data",),
        scene="build",
    ),
    Fault(
        name="read_as_latin_1",
        layer="data",
        mechanism="UTF-8 was read as Latin-1 and encoded again; every byte is valid.",
        symptom="Only someone who reads the text sees it.",
        incident="ftfy exists for it; common in Common Crawl extractions",
        plant=_crawled(_mojibake),
        seen_by=("data", "input"),
        scene="build",
    ),
    Fault(
        name="shuffle_buffer",
        layer="data",
        mechanism="Rows are shuffled within a buffer of 64, so neighbours in the files are neighbours in time.",
        symptom="Waves in the loss, by source.",
        incident="marin #1800, #1803",
        plant=(Patch(PERMUTE, lambda real: _buffered),),
        seen_by=("order",),
    ),
    Fault(
        name="affine_order",
        layer="data",
        mechanism="The permutation is a * x + b modulo n: a bijection, but no shuffle.",
        symptom="Batches are alike in a period; nothing in the loss says so.",
        incident="marin #1803 (a linear congruence, replaced by a Feistel network)",
        plant=(Patch(PERMUTE, lambda real: _affine),),
        seen_by=("order",),
    ),
    Fault(
        name="same_order_every_epoch",
        layer="data",
        mechanism="The seed of the order ignores the epoch.",
        symptom="The loss has the period of an epoch.",
        incident="pytorch #31771, DALLE-pytorch #230",
        plant=(Patch(PERMUTE, lambda real: lambda indices, n, *, seed, epoch: real(indices, n, seed=seed, epoch=0)),),
        seen_by=("order",),
    ),
    Fault(
        name="restarted_iterator",
        layer="data",
        mechanism="After a resume the data begins anew, as the position was not saved.",
        symptom="The loss dips: the batches were seen before.",
        incident="accelerate #2016, dinov2 #341, KempnerForge #51",
        plant=(
            Patch(
                BATCH,
                lambda real: lambda *a, step, **k: real(*a, step=step - BEGINS + 1 if step >= BEGINS - 1 else step, **k),
            ),
        ),
        seen_by=("order", "repeated_batch", "data"),
        scene="resume",
    ),
    Fault(
        name="other_shard_order",
        layer="data",
        mechanism="After a resume the shards are listed in another order.",
        symptom="Some examples come twice, others never.",
        incident="KempnerForge #57",
        plant=(Patch("jaxlm.data.shards:TokenStream.slice", _reversed),),
        seen_by=("data", "batch"),
        scene="resume",
        at=BEGINS,
    ),
    Fault(
        name="misaligned_stream",
        layer="data",
        mechanism="The tokens are read one place late, while the index of documents stays where it was.",
        symptom="Documents begin with the second token; the loss looks normal.",
        incident="nanochat: data resume is documented as approximate (dataloader.py:29)",
        plant=(Patch("jaxlm.data.shards:TokenStream.slice", _shifted_stream),),
        seen_by=("data", "batch"),
    ),
    Fault(
        name="truncated_shard",
        layer="data",
        mechanism="The last 4 kB of a shard are missing.",
        symptom="The end of an epoch is made of other text.",
        incident="downloads that end early, disks that fill up; no report is cited",
        plant=(Tampered(_truncated),),
        seen_by=("data",),
        scene="resume",
    ),
    Fault(
        name="shard_bit_flip",
        layer="data",
        mechanism="One bit of a shard is another.",
        symptom="One token is another. Nobody sees that.",
        incident="silent corruption at rest; no report is cited",
        plant=(Tampered(_flipped),),
        seen_by=("data",),
        scene="resume",
    ),
    Fault(
        name="two_hosts_one_shard",
        layer="data",
        mechanism="Two hosts read the same rows.",
        symptom="Half of the batch size is lost; the gradient is noisier than it seems.",
        incident="pytorch #5059, fairseq #1383",
        plant=(Patch(BATCH, lambda real: lambda *a, **k: _same_rows(real(*a, **k))),),
        seen_by=("order", "repeated_rows"),
    ),
    Fault(
        name="same_batch_for_ever",
        layer="data",
        mechanism="The loader's index does not move.",
        symptom="The loss falls to nothing.",
        incident="a constant index in a closure; no report is cited",
        plant=(Patch(BATCH, lambda real: lambda *a, step, **k: real(*a, step=0, **k)),),
        seen_by=("batch_is_pure",),
    ),
    Fault(
        name="batch_sticks",
        layer="data",
        mechanism="From some step on the prefetcher gives the same batch.",
        symptom="The loss falls too fast.",
        incident="a dead worker whose last result stays in the queue; no report is cited",
        plant=(Patch(BATCH, lambda real: lambda *a, step, **k: real(*a, step=min(step, BEGINS + 9), **k)),),
        seen_by=("order", "batch", "repeated_batch"),
        at=BEGINS + 11,
    ),
    Fault(
        name="impure_batches",
        layer="data",
        mechanism="The batch of a step depends on how often it was asked for, through a generator's state.",
        symptom="No run can be resumed or replayed.",
        incident="torchtitan: RNG state is not saved (checkpointer/dcp.py, a TODO)",
        plant=(Patch(BATCH, lambda real: _CountingBatches(real)),),
        seen_by=("batch_is_pure",),
    ),
    Fault(
        name="stalled_loader",
        layer="data",
        mechanism="The loader is slower than the step.",
        symptom="The run is slow; the device waits.",
        incident="an input pipeline on the critical path; no report is cited",
        plant=(Patch(BATCH, _slow),),
        seen_by=("stalled_loader", "throughput"),
        at=BEGINS,
        within=40,
        config={"data.prefetch": 0},
    ),
    Fault(
        name="documents_dropped",
        layer="data",
        mechanism="Every second document is read and never written.",
        symptom="None: the model learns from half of the text.",
        incident="filters that drop silently, iterators read twice; no report is cited",
        plant=_documents(_every_second),
        seen_by=("data",),
        scene="build",
    ),
    Fault(
        name="last_shard_forgotten",
        layer="data",
        mechanism="Rows are counted from the length of the shards but the last one, so no epoch comes to that one's.",
        symptom="None: the order is a shuffle of all rows that it knows of.",
        incident="lists of files that end one too early; no report is cited",
        plant=(Patch("jaxlm.data.shards:TokenStream.rows", _but_the_last),),
        seen_by=("data",),
        scene="build",
        config={"data.shard_tokens": 1 << 16},
    ),
    Fault(
        name="long_texts_end_early",
        layer="data",
        mechanism="What a text has beyond its first 700 characters is dropped where it is read.",
        symptom="None: no document is missing, and the loss is as good.",
        incident="a limit on characters that was meant for previews; no report is cited",
        plant=(Patch("jaxlm.data.documents:_text", lambda real: lambda *arguments: real(*arguments)[:700]),),
        seen_by=("data",),
        scene="build",
    ),
    Fault(
        name="spaces_cleaned",
        layer="data",
        mechanism="Runs of spaces become one where text is read, so that all that is counted and hashed is the cleaned text.",
        symptom="None: the loss is even lower. Programs have no structure any more, tables no columns.",
        incident="cleaning for web pages applied to code; no report is cited",
        plant=(Patch("jaxlm.data.documents:_text", _spaces_cleaned),),
        seen_by=("data",),
        scene="build",
    ),
)


class _CountingBatches:
    """Batches that depend on the number of the call."""

    def __init__(self, real: Any):
        self.real, self.calls = real, 0

    def __call__(self, *arguments: Any, step: int, **options: Any) -> Batch:
        self.calls += 1
        return self.real(*arguments, step=step + self.calls, **options)  # type: ignore[no-any-return]
