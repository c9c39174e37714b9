"""jaxlm train configs/tiny.py

A minute or two on two CPU cores, nearly all of it compiling and probing before the first step; less once the compiled programs
are kept. Expect a validation loss between 5 and 5.5 nats, where ids drawn at random have 6.2: enough to see every part of a
run, not to read what it writes.
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
        name="tiny",
        tokenizer=TokenizerConfig(vocab_size=512, train_bytes=500_000),
        data=DataConfig(max_bytes=1_000_000, val_fraction=0.1),
        model=ModelConfig(d_model=64, n_layers=2, n_heads=2, context_length=64),
        optim=OptimConfig(lr=3e-3, warmup_steps=10),
        train=TrainConfig(steps=60, batch_size=8),
        watch=WatchConfig(print_every=20),
        checkpoint=CheckpointConfig(every=20),
        eval=EvalConfig(every=20, batches=4),
    )
