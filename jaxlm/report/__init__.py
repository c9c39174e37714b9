"""Pages that show what was made and measured: one look, one set of parts, each page one file that needs no other."""

from jaxlm.report.tokenizer import tokenizer_page

__all__ = ["tokenizer_page"]
