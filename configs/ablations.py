"""jaxlm ablate

A small base, and what becomes of it when one thing is left out or changed, with
the same number of tokens in every run. Expect the higher rates to diverge, float16 without its scale to learn more slowly, and
batches of 8 rows to get further than those of 128.
"""

from jaxlm.config.schema import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TokenizerConfig,
    TrainConfig,
    WatchConfig,
)


def config() -> RunConfig:
    return RunConfig(
        name="ablations",
        tokenizer=TokenizerConfig(vocab_size=1024, train_bytes=2_000_000),
        data=DataConfig(max_bytes=20_000_000, val_fraction=0.04),
        model=ModelConfig(d_model=64, n_layers=4, n_heads=4, context_length=128),
        optim=OptimConfig(lr=5e-3, warmup_steps=10),
        train=TrainConfig(steps=100, batch_size=32),
        watch=WatchConfig(print_every=1_000_000, samples_every=0, bundles=1),
        checkpoint=CheckpointConfig(every=100, keep_last=1, keep_best=0),
        eval=EvalConfig(every=25, batches=8),
    )


def ablations(base: RunConfig) -> dict[str, dict[str, object]]:
    """What each run changes of the base: fields by their dotted names."""
    lr = base.optim.lr
    return {
        "no-norm": {"model.norm": "none"},
        "post-norm": {"model.norm": "post"},
        "no-residual": {"model.residual": False},
        "no-positions": {"model.pos": "none"},
        "silu": {"model.ffn": "silu", "model.d_ff": 3 * base.model.ff_width // 2},  # two matrices, as large as three were
        "no-warmup": {"optim.warmup_steps": 0},
        "lr-x4": {"optim.lr": 4 * lr},
        "lr-x16": {"optim.lr": 16 * lr},  # about the edge
        "lr-x64": {"optim.lr": 64 * lr},
        "fp16-unscaled": {"train.precision": "float16", "train.loss_scaling": False},
        **{f"batch-{rows}": {"train.batch_size": rows} for rows in (1, 8, 32, 128) if rows != base.train.batch_size},
    }
