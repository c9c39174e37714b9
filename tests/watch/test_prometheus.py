"""The metrics of a run, scraped over HTTP and read by Prometheus' own parser."""

import math
import urllib.error
import urllib.request

import pytest

from jaxlm.contract import InputError
from jaxlm.watch.prometheus import CONTENT, PrometheusSink

parser = pytest.importorskip("prometheus_client.parser")

RECORD = {
    "step": 7,
    "loss": 2.5,
    "bits_per_byte": 1.25,
    "grad_norm": "nan",
    "lr": 1e-3,
    "finite": True,
    "nonfinite": "",
    "grad_norms": {"embed": 0.5, "blocks/wq": [0.25, "inf"]},
    "activations": {"residual_rms": [1.0, 2.0]},
    "validation": {"loss": 3.0, "bits_per_byte": 1.5},
}


@pytest.fixture
def sink():
    sink = PrometheusSink(0, run='a "b"\\\n', tokens_per_step=100, durable=lambda: 4)
    yield sink
    sink.close()


def scraped(sink, path="/metrics"):
    """Samples by (metric, labels but the run); the types by metric."""
    with urllib.request.urlopen("http://{}:{}{}".format(*sink.address, path)) as answer:
        assert answer.headers["Content-Type"] == CONTENT
        families = list(parser.text_string_to_metric_families(answer.read().decode()))
    samples = {}
    for family in families:
        assert family.documentation
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("run") == 'a "b"\\\n'
            samples[sample.name, tuple(sorted(labels.items()))] = sample.value
    return samples, {family.name: family.type for family in families}


def test_a_scrape_has_every_figure_with_its_labels(sink):
    sink.write(RECORD)
    for _ in range(2):
        sink.event({"event": "alarm", "step": 7, "detector": "loss_spike"})
    sink.event({"event": "pace", "step": 7, "steps": 5, "seconds": 2.0, "waited": 0.1})
    sink.event({"event": "save", "step": 7})
    samples, types = scraped(sink)
    assert math.isnan(samples.pop(("jaxlm_grad_norm", ())))
    assert samples == {
        ("jaxlm_step", ()): 7.0,
        ("jaxlm_loss", ()): 2.5,
        ("jaxlm_bits_per_byte", ()): 1.25,
        ("jaxlm_lr", ()): 1e-3,
        ("jaxlm_finite", ()): 1.0,
        ("jaxlm_tokens_per_second", ()): 250.0,
        ("jaxlm_last_durable_step", ()): 4.0,
        ("jaxlm_alarms_total", (("detector", "loss_spike"),)): 2.0,
        ("jaxlm_grad_norms", (("parameter", "embed"),)): 0.5,
        ("jaxlm_grad_norms", (("layer", "0"), ("parameter", "blocks/wq"))): 0.25,
        ("jaxlm_grad_norms", (("layer", "1"), ("parameter", "blocks/wq"))): math.inf,
        ("jaxlm_activations_residual_rms", (("layer", "0"),)): 1.0,
        ("jaxlm_activations_residual_rms", (("layer", "1"),)): 2.0,
        ("jaxlm_validation_loss", ()): 3.0,
        ("jaxlm_validation_bits_per_byte", ()): 1.5,
    }
    assert types.pop("jaxlm_alarms") == "counter"
    assert set(types.values()) == {"gauge"}


def test_a_validation_stays_until_the_next_and_the_rest_is_the_newest(sink):
    sink.write(RECORD)
    sink.write({"step": 8, "loss": 2.0})
    samples, _ = scraped(sink)
    assert samples["jaxlm_validation_loss", ()] == 3.0
    assert samples["jaxlm_loss", ()] == 2.0
    assert ("jaxlm_lr", ()) not in samples


def test_before_the_first_step_there_is_little_to_say():
    sink = PrometheusSink(0, run="r", tokens_per_step=1)
    assert [f.name for f in parser.text_string_to_metric_families(sink.text())] == ["jaxlm_alarms"]
    sink.close()


def test_only_metrics_are_served_on_this_machine_only(sink):
    assert sink.address[0] == "127.0.0.1"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        scraped(sink, "/")


def test_a_port_in_use_or_none_at_all_is_a_mistake_of_the_user_and_a_closed_one_is_free(sink):
    port = sink.address[1]
    with pytest.raises(InputError, match=f"--watch.metrics-port: expected a port of 127.0.0.1 that is free, found {port}: "):
        PrometheusSink(port, run="r", tokens_per_step=1)
    with pytest.raises(InputError, match="found 70000"):
        PrometheusSink(70000, run="r", tokens_per_step=1)
    other = PrometheusSink(0, run="r", tokens_per_step=1)
    other.close()
    PrometheusSink(other.address[1], run="r", tokens_per_step=1).close()
