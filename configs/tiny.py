"""jaxlm train configs/tiny.py

About half a minute on two CPU cores, most of it compiling. Expect a validation loss near 4.5 nats: enough to see every part
of a run, not to read what it writes.
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
