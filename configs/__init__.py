"""Configs that come with jaxlm: each a file with `config() -> RunConfig`, whose docstring says what to expect."""
