"""Every impossible value is named; every field that changes numbers enters the fingerprint, and no other."""

import dataclasses
import math
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.config import config_fingerprint
from jaxlm.config.overrides import field_types
from jaxlm.config.schema import (
    ConfigError,
    EvalConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TokenizerConfig,
    TrainConfig,
    numbers,
    sections,
)

nan, inf = math.nan, math.inf
AT_LEAST_0, AT_LEAST_1 = (-1,), (0, -1)
SHARE = (nan, -0.1, 1.1, inf)

# Of every field whose type does not say all: values that cannot be.
IMPOSSIBLE = {
    "name": ("", "  ", "../x", "a/b", ".."),
    "tokenizer.vocab_size": (256, 0, -1),
    "tokenizer.special_tokens": ((), ("",), ("<a>", ""), ("<a>", "<b>", "<a>"), ("a",), ("<a>\n",), ("\ud800x",)),
    "tokenizer.train_bytes": AT_LEAST_0,
    "data.source": ((), ("",), ("a", "")),
    "data.text_field": ("",),
    "data.val_fraction": (*SHARE, 0.0, 1.0),
    "data.order_seed": AT_LEAST_0,
    "data.shard_tokens": (0, 1023),
    "data.max_bytes": AT_LEAST_0,
    "data.min_supervised": (*SHARE, 0.0),
    "data.max_mojibake": SHARE,
    "data.max_overlap": SHARE,
    "data.max_repeated": SHARE,
    "data.prefetch": AT_LEAST_0,
    "model.vocab_size": AT_LEAST_0,
    "model.d_model": AT_LEAST_1,
    "model.n_layers": AT_LEAST_1,
    "model.n_heads": (*AT_LEAST_1, 3, 5, 512),
    "model.n_kv_heads": (-1, 3, 8),
    "model.head_dim": (-1, 7, 63),
    "model.d_ff": AT_LEAST_0,
    "model.context_length": AT_LEAST_1,
    "model.norm_eps": (-1e-6, nan, inf),
    "model.rope_theta": (1.0, 0.0, -5.0, nan, inf),
    "model.attention_softcap": (-1.0, nan, inf),
    "model.logit_softcap": (-1.0, nan, inf),
    "model.window": AT_LEAST_0,
    "model.dropout": (nan, -0.1, 1.0, inf),
    "model.vocab_multiple": AT_LEAST_1,
    "model.init_std": (0.0, -1.0, nan, inf),
    "optim.lr": (0.0, -1e-3, nan, inf),
    "optim.b1": (nan, -0.1, 1.0, inf),
    "optim.b2": (nan, -0.1, 1.0, inf),
    "optim.eps": (0.0, -1.0, nan, inf),
    "optim.weight_decay": (-0.1, nan, inf),
    "optim.no_decay": ("(", "*", "[a"),
    "optim.clip_norm": (-0.1, nan, inf),
    "optim.warmup_steps": AT_LEAST_0,
    "optim.schedule_from": AT_LEAST_0,
    "optim.decay_share": (*SHARE, 0.0),
    "optim.min_lr_ratio": SHARE,
    "train.steps": AT_LEAST_1,
    "train.batch_size": AT_LEAST_1,
    "train.grad_accum": (*AT_LEAST_1, 3, 64),
    "train.seed": (-1, 1 << 32),
    "train.z_loss": (-1.0, nan, inf),
    "train.max_skipped": AT_LEAST_1,
    "train.loss_chunk": AT_LEAST_0,
    "mesh.data": AT_LEAST_1,
    "mesh.fsdp": AT_LEAST_1,
    "mesh.tensor": AT_LEAST_1,
    "mesh.context": AT_LEAST_1,
    "watch.print_every": AT_LEAST_1,
    "watch.metrics_port": AT_LEAST_0,
    "watch.pace_every": AT_LEAST_0,
    "watch.samples_every": AT_LEAST_0,
    "watch.bundles": AT_LEAST_0,
    "watch.max_rollbacks": AT_LEAST_0,
    "watch.replicas_every": AT_LEAST_0,
    "watch.recompute_every": AT_LEAST_0,
    "watch.step_timeout": (-1.0, nan, inf),
    "watch.heartbeat": AT_LEAST_1,
    "checkpoint.every": AT_LEAST_1,
    "checkpoint.keep_last": AT_LEAST_1,
    "checkpoint.keep_best": AT_LEAST_0,
    "eval.every": AT_LEAST_1,
    "eval.batches": AT_LEAST_0,
    "eval.batch_size": AT_LEAST_1,
    "eval.stride": AT_LEAST_0,
    "eval.max_documents": AT_LEAST_0,
    "eval.resamples": AT_LEAST_1,
    "eval.confidence": (*SHARE, 0.0, 1.0),
    "eval.seed": AT_LEAST_0,
}
ANY_TEXT = {"tokenizer.path", "data.path", "data.separator", "watch.stop_at", "watch.skip_at", "watch.rollback_at"}

# Of every field: another value that can be. Kept beside the defaults by `test_every_field_has_another_value`.
ANOTHER = {
    int: lambda value: 2 * value or 2,
    float: lambda value: value / 2 or 0.25,
    bool: lambda value: not value,
    str: lambda value: value + "x",
}


def another(name, value):
    kind = field_types()[name]
    if typing.get_origin(kind) is typing.Literal:
        return next(choice for choice in typing.get_args(kind) if choice != value)
    return (*value, "another") if isinstance(value, tuple) else ANOTHER[kind](value)


def value_of(config, name):
    for part in name.split("."):
        config = getattr(config, part)
    return config


def with_value(name, value, base=RunConfig()):
    section, _, field = name.rpartition(".")
    if not section:
        return dataclasses.replace(base, **{field: value})
    return dataclasses.replace(base, **{section: dataclasses.replace(getattr(base, section), **{field: value})})


# ---- impossible values -------------------------------------------------------------------------------------------


def test_every_field_has_impossible_values_or_a_type_that_says_all():
    closed = {n for n, kind in field_types().items() if kind is bool or typing.get_origin(kind) is typing.Literal}
    assert set(IMPOSSIBLE) | ANY_TEXT | closed == set(field_types())
    assert set(IMPOSSIBLE) & (ANY_TEXT | closed) == set()


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_values_are_refused_in_the_spelling_of_the_command_line(name):
    for value in IMPOSSIBLE[name]:
        with pytest.raises(ConfigError) as caught:
            with_value(name, value)
        assert caught.value.field == name
        assert str(caught.value).startswith(f"--{name.replace('_', '-')}: expected ")
        assert str(caught.value).endswith(f", found {value!r}")


@pytest.mark.parametrize("name", [n for n in field_types() if typing.get_origin(field_types()[n]) is typing.Literal])
def test_a_word_that_is_no_choice_is_answered_with_the_choices(name):
    with pytest.raises(ConfigError, match=f"expected one of {', '.join(typing.get_args(field_types()[name]))}, found 'other'"):
        with_value(name, "other")


@settings(deadline=None, max_examples=60)
@given(d_model=st.integers(1, 400), n_heads=st.integers(1, 500))
def test_the_nearest_number_of_heads_divides_the_width_and_none_is_nearer(d_model, n_heads):
    distances = {n: abs(n - n_heads) for n in range(1, d_model + 1) if d_model % n == 0}
    try:
        ModelConfig(d_model=d_model, n_heads=n_heads, pos="none")
        nearest = n_heads
    except ConfigError as error:
        nearest = int(error.expected.split(f"a divisor of --model.d-model {d_model} (the nearest is ")[1].split(")")[0])
    assert distances[nearest] == min(distances.values())


def test_fields_that_depend_on_each_other_are_judged_together():
    ModelConfig(d_model=100, n_heads=3, head_dim=32)
    ModelConfig(d_model=30, n_heads=2, pos="none")
    with pytest.raises(ConfigError, match=r"--model.head-dim: expected an even width \(it is 15\)"):
        ModelConfig(d_model=30, n_heads=2)
    with pytest.raises(ConfigError, match=r"--model.n-kv-heads: expected a divisor of --model.n-heads 6, found 4"):
        ModelConfig(d_model=12, n_heads=6, n_kv_heads=4)
    with pytest.raises(ConfigError, match=r"--train.grad-accum: expected a divisor of --train.batch-size 8, found 3"):
        TrainConfig(batch_size=8, grad_accum=3)
    TokenizerConfig(vocab_size=258, special_tokens=("<a>", "<b>"))
    with pytest.raises(ConfigError, match=r"--tokenizer.vocab-size: expected >= 258"):
        TokenizerConfig(vocab_size=257, special_tokens=("<a>", "<b>"))
    RunConfig(optim=OptimConfig(warmup_steps=10), train=TrainConfig(steps=10))
    RunConfig(optim=OptimConfig(schedule="constant", warmup_steps=11), train=TrainConfig(steps=10))
    with pytest.raises(ConfigError, match=r"--optim.warmup-steps: expected at most --train.steps 10, found 11"):
        RunConfig(optim=OptimConfig(warmup_steps=11), train=TrainConfig(steps=10))
    RunConfig(optim=OptimConfig(warmup_steps=4, schedule_from=6), train=TrainConfig(steps=10))
    with pytest.raises(ConfigError, match=r"at most --train.steps 10 less --optim.schedule-from, found 5"):
        RunConfig(optim=OptimConfig(warmup_steps=5, schedule_from=6), train=TrainConfig(steps=10))
    with pytest.raises(ConfigError, match=r"--optim.schedule-from: expected less than --train.steps 10, found 10"):
        RunConfig(optim=OptimConfig(warmup_steps=0, schedule_from=10), train=TrainConfig(steps=10))
    RunConfig(train=TrainConfig(batch_size=12, grad_accum=3), mesh=MeshConfig(data=2, fsdp=2))
    with pytest.raises(ConfigError, match=r"--train.batch-size: .* multiple of grad_accum \* data \* fsdp = 12, found 6"):
        RunConfig(train=TrainConfig(batch_size=6, grad_accum=3), mesh=MeshConfig(data=2, fsdp=2))


# ---- derived values ----------------------------------------------------------------------------------------------


def test_zero_means_derived():
    model = ModelConfig(d_model=96, n_heads=6, vocab_size=300, vocab_multiple=128)
    assert (model.kv_heads, model.head_width, model.ff_width, model.padded_vocab) == (6, 16, 256, 384)
    stated = dataclasses.replace(model, n_kv_heads=2, head_dim=32, d_ff=100, vocab_multiple=100)
    assert (stated.kv_heads, stated.head_width, stated.ff_width, stated.padded_vocab) == (2, 32, 100, 300)
    assert dataclasses.replace(model, ffn="gelu").ff_width == 4 * 96
    assert MeshConfig(data=2, fsdp=3, tensor=5, context=7).size == 210
    assert RunConfig(train=TrainConfig(batch_size=6), model=ModelConfig(context_length=10)).tokens_per_step == 60
    with pytest.raises(ConfigError, match=r"--model.vocab-size: expected a size"):
        _ = ModelConfig().padded_vocab


# ---- the fingerprint ---------------------------------------------------------------------------------------------


def is_runtime(name):
    section, _, field = name.rpartition(".")
    kind = sections()[section] if section else RunConfig
    return "runtime" in {f.name: f for f in dataclasses.fields(kind)}[field].metadata


@pytest.mark.parametrize("name", field_types())
def test_a_field_enters_the_fingerprint_unless_it_changes_no_number(name):
    base = RunConfig(train=TrainConfig(batch_size=64))
    changed = with_value(name, another(name, value_of(base, name)), base)
    assert changed != base
    assert (config_fingerprint(changed) == config_fingerprint(base)) == is_runtime(name)


def test_the_fields_that_change_no_number_are_these():
    assert [name for name in field_types() if is_runtime(name)] == [
        "name", "tokenizer.path", "data.path", "data.max_mojibake", "data.max_overlap", "data.max_repeated",
        "data.prefetch", "model.scan_layers", "model.attention", "train.remat",
        "mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.context", "mesh.rules",
        "watch.live", "watch.print_every", "watch.tensorboard", "watch.wandb", "watch.metrics_port", "watch.pace_every",
        "watch.samples_every", "watch.bundles", "watch.stop_at", "watch.skip_at", "watch.rollback_at", "watch.max_rollbacks",
        "watch.replicas_every", "watch.recompute_every", "watch.step_timeout",
        "watch.heartbeat",
        "checkpoint.every", "checkpoint.keep_last", "checkpoint.keep_best", "checkpoint.asynchronous",
        "eval.batch_size", "eval.stride", "eval.max_documents", "eval.resamples", "eval.confidence", "eval.seed",
    ]  # fmt: skip


def test_every_section_and_field_is_named_once():
    assert {f"{name}.{f.name}" for name, kind in sections().items() for f in dataclasses.fields(kind)} | {"name"} == set(
        field_types()
    )
    assert all(kind.section == name for name, kind in sections().items())
    assert set(numbers(RunConfig())) == set(sections())


def test_a_whole_number_has_the_fingerprint_of_the_number_it_is():
    assert config_fingerprint(RunConfig(optim=OptimConfig(clip_norm=1))) == config_fingerprint(RunConfig())
    assert config_fingerprint(RunConfig(eval=EvalConfig(every=201))) != config_fingerprint(RunConfig())
