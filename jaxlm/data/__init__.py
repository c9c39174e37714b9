"""Raw documents to shards to batches."""

from jaxlm.config.schema import DataConfig
from jaxlm.data.agreement import require_agreement
from jaxlm.data.batches import Batch, batch, batch_crc, row_crcs, validation_batches
from jaxlm.data.checks import check_batch, check_supervised
from jaxlm.data.content import content_sum, row_sums
from jaxlm.data.documents import STDLIB, Counts, Document, read_documents
from jaxlm.data.epoch import require_whole_epoch
from jaxlm.data.order import permute
from jaxlm.data.prefetch import Prefetcher
from jaxlm.data.shards import ShardSet, TokenStream, build_shards, open_shards
from jaxlm.data.split import split_of, training_texts

__all__ = [
    "STDLIB",
    "Batch",
    "Counts",
    "DataConfig",
    "Document",
    "Prefetcher",
    "ShardSet",
    "TokenStream",
    "batch",
    "batch_crc",
    "build_shards",
    "check_batch",
    "check_supervised",
    "content_sum",
    "open_shards",
    "permute",
    "read_documents",
    "require_agreement",
    "require_whole_epoch",
    "row_crcs",
    "row_sums",
    "split_of",
    "training_texts",
    "validation_batches",
]
