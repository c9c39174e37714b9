"""What every test stands on: eight CPU devices, strict rank promotion, one compilation cache for all processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Set before jax is imported, and inherited by the processes that tests start.
os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is most of what the tests take, and half of it is LLVM's optimization. JAXLM_TEST_OPTIMIZED=1 leaves that on.
LEVEL = "" if os.environ.get("JAXLM_TEST_OPTIMIZED") else " --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8{LEVEL}"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real texts: JAXLM_TEST_DATA, or ../shared/data beside the checkout. Skips where both are absent."""
    for folder in (os.environ.get("JAXLM_TEST_DATA"), ROOT.parent / "shared" / "data"):
        if folder and Path(folder).is_dir():
            return Path(folder)
    pytest.skip("no real texts: JAXLM_TEST_DATA is not set, and ../shared/data is absent")


@pytest.fixture(autouse=True, scope="session")
def _probes_remembered():
    """A process runs equal probes once: they take seconds, and most tests that train have another matter."""
    from jaxlm.faults.remembered import remembered

    with remembered():
        yield


def tiny_config(**train):
    """A run that is as small as a run can be, on a little of the standard library's text."""
    from jaxlm.config import schema

    return schema.RunConfig(
        name="tiny",
        tokenizer=schema.TokenizerConfig(vocab_size=300, train_bytes=100_000),
        # Of so few documents some hold others: the topic on compound statements those on each of them.
        data=schema.DataConfig(max_bytes=200_000, val_fraction=0.2, max_overlap=1.0),
        model=schema.ModelConfig(d_model=32, n_layers=2, n_heads=2, context_length=32, vocab_multiple=64),
        optim=schema.OptimConfig(lr=3e-3, warmup_steps=4),
        train=schema.TrainConfig(**{"steps": 12, "batch_size": 4, **train}),
        watch=schema.WatchConfig(print_every=1000),
        checkpoint=schema.CheckpointConfig(every=4),
        eval=schema.EvalConfig(every=4, batches=2, batch_size=4, resamples=100),
    )


@pytest.fixture(scope="session")
def config():
    """The config of the tiny run."""
    return tiny_config()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished and evaluated run, for reading only."""
    from jaxlm.evaluate import evaluate
    from jaxlm.run import Run
    from jaxlm.train import fit

    path = tmp_path_factory.mktemp("runs") / "tiny"
    fit(tiny_config(), out=path, say=lambda line: None)
    evaluate(Run.load(path))
    return path


@pytest.fixture
def run_copy(finished, tmp_path):
    """A copy of the finished run, to be tampered with."""
    import shutil

    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"
