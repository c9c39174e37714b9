"""Files of other libraries, in and out: tokenizers of Hugging Face, GPT-2 and tiktoken, with the same ids or not at all."""

from jaxlm.interop.formats import FORMATS, read_tokenizer, write_tokenizer
from jaxlm.interop.gpt2_files import read_gpt2_files, write_gpt2_files
from jaxlm.interop.hf_json import read_tokenizer_json, write_tokenizer_json
from jaxlm.interop.tiktoken_ranks import read_tiktoken, tiktoken_arguments, write_tiktoken

__all__ = [
    "FORMATS",
    "read_gpt2_files",
    "read_tiktoken",
    "read_tokenizer",
    "read_tokenizer_json",
    "tiktoken_arguments",
    "write_gpt2_files",
    "write_tiktoken",
    "write_tokenizer",
    "write_tokenizer_json",
]
