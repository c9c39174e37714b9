"""Training: the state, the static probes, the pure step, the host loop."""

from jaxlm.config.schema import TrainConfig
from jaxlm.train.fit import fit
from jaxlm.train.probes import Probe, run_probes
from jaxlm.train.state import TrainState
from jaxlm.train.step import apply_gradients, compute_gradients, score_step, train_step

__all__ = [
    "Probe",
    "TrainConfig",
    "TrainState",
    "apply_gradients",
    "compute_gradients",
    "fit",
    "run_probes",
    "score_step",
    "train_step",
]
