"""What is sent to Weights & Biases, told by a stand-in for its package, and by the package where it is installed."""

import sys
from types import SimpleNamespace

import pytest

from jaxlm.watch.wandb import WandbSink


class Package:
    """Keeps what it is given."""

    def __init__(self):
        self.options, self.logged, self.finished = None, [], 0

    def init(self, **options):
        self.options = options
        log = lambda values, step: self.logged.append((step, values))  # noqa: E731
        return SimpleNamespace(log=log, finish=self.finish)

    def finish(self):
        self.finished += 1


def test_figures_speed_and_alarms_are_logged_at_their_steps(tmp_path, monkeypatch):
    package = Package()
    monkeypatch.setitem(sys.modules, "wandb", package)
    sink = WandbSink(tmp_path, name="r", config={"a": 1}, run_id="id", tokens_per_step=100, layers_every=2)
    for step in (1, 2, 3):
        sink.write({"step": step, "loss": 2.0, "grad_norms": {"embed": 1.0, "blocks/wq": [1.0, 2.0]}, "nonfinite": ""})
    sink.event({"event": "pace", "step": 3, "steps": 2, "seconds": 4.0, "waited": 1.0})
    sink.event({"event": "alarm", "step": 3, "detector": "spike"})
    sink.event({"event": "save", "step": 3})
    sink.close()
    assert package.options["mode"] == "offline"
    assert (package.options["id"], package.options["resume"], package.options["config"]) == ("id", "allow", {"a": 1})
    layers = {"grad_norms/embed": 1.0, "grad_norms/blocks/wq/0": 1.0, "grad_norms/blocks/wq/1": 2.0}
    assert package.logged == [
        (1, {"loss": 2.0, **layers}),
        (2, {"loss": 2.0, **layers}),
        (3, {"loss": 2.0}),
        (3, {"tokens_per_second": 50.0, "waited": 0.25}),
        (3, {"alarm/spike": 1}),
    ]
    assert package.finished == 1


@pytest.mark.slow
def test_the_package_writes_its_files_without_a_network(tmp_path):
    pytest.importorskip("wandb")
    sink = WandbSink(tmp_path, name="r", config={}, run_id="id", tokens_per_step=1)
    sink.write({"step": 1, "loss": 2.0})
    sink.close()
    assert [path.name for path in (tmp_path / "wandb").rglob("run-id.wandb")] == ["run-id.wandb"]
