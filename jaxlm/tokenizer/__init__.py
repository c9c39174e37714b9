"""Byte-level BPE: training the merges, text to ids and back."""

from jaxlm.config.schema import TokenizerConfig
from jaxlm.tokenizer.stream import StreamDecoder
from jaxlm.tokenizer.tokenizer import Tokenizer
from jaxlm.tokenizer.train import train_from_config, train_tokenizer, train_tokenizer_from_files

__all__ = [
    "StreamDecoder",
    "Tokenizer",
    "TokenizerConfig",
    "train_from_config",
    "train_tokenizer",
    "train_tokenizer_from_files",
]
