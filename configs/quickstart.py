"""jaxlm quickstart

About four minutes of training on two CPU cores. Expect about 1.7 bits per byte on validation text, where `gzip -9` of each
document needs about 2.0.
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
)


def config() -> RunConfig:
    return RunConfig(
        name="quickstart",
        tokenizer=TokenizerConfig(vocab_size=4096),
        data=DataConfig(val_fraction=0.04),
        model=ModelConfig(d_model=128, n_layers=4, n_heads=4, context_length=256),
        optim=OptimConfig(lr=5e-3, warmup_steps=30),
        train=TrainConfig(steps=720, batch_size=8),
        checkpoint=CheckpointConfig(every=120),
        eval=EvalConfig(every=120, batches=8),
    )
