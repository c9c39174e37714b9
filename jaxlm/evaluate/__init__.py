"""Evaluation: bits per byte over documents, intervals, the evaluation artifact."""

from jaxlm.config.schema import EvalConfig
from jaxlm.evaluate.bits import Evaluation, evaluate, gzip_bits
from jaxlm.evaluate.documents import DocumentScores, Tally, scored_batches
from jaxlm.evaluate.statistics import bootstrap_ratio

__all__ = ["DocumentScores", "EvalConfig", "Evaluation", "Tally", "bootstrap_ratio", "evaluate", "gzip_bits", "scored_batches"]
