"""Event files for TensorBoard, read back record by record."""

import math
import struct
import sys

import pytest

from jaxlm.contract import InputError
from jaxlm.watch.tensorboard import TensorBoardSink
from jaxlm.watch.wandb import WandbSink


def read(folder):
    """Every value in the folder: {(tag, step): number or text}, and the events that begin a session anew."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    values, starts = {}, []
    for path in sorted(folder.iterdir()):
        raw, at = path.read_bytes(), 0
        while at < len(raw):  # TFRecord: length, its checksum, the bytes, their checksum
            (size,) = struct.unpack_from("<Q", raw, at)
            event = event_pb2.Event.FromString(raw[at + 12 : at + 12 + size])
            at += 16 + size
            if event.session_log.status:
                starts.append(event.step)
            for value in event.summary.value:
                text = b"".join(value.tensor.string_val).decode()
                values[value.tag, event.step] = text or value.simple_value
    return values, starts


def record(step, **more):
    layered = {"blocks/wq": [0.25 * step, "inf"]}
    return {"step": step, "loss": 2.5 / step, "nonfinite": "", "grad_norms": {"embed": 0.5, **layered}, **more}


def test_figures_come_back_layers_now_and_then(tmp_path):
    pytest.importorskip("tensorboardX")
    sink = TensorBoardSink(tmp_path / "tb", tokens_per_step=100, layers_every=3)
    for step in range(1, 5):
        sink.write(record(step, validation={"loss": 9.0}))
    sink.event({"event": "pace", "step": 4, "steps": 2, "seconds": 4.0, "waited": 1.0})
    told = {"detector": "loss_spike", "what": "loss", "layer": 2, "expected": 1, "found": 9}
    sink.event({"event": "alarm", "step": 4, **told})
    sink.event({"event": "sample", "step": 4, "pieces": ["Once", " upon"]})
    sink.event({"event": "save", "step": 4})
    sink.close()
    values, starts = read(tmp_path / "tb")
    assert starts == []
    assert {step for tag, step in values if tag == "loss"} == {1, 2, 3, 4}
    assert values["loss", 4] == pytest.approx(2.5 / 4)
    assert values["validation/loss", 2] == 9.0
    assert {step for tag, step in values if tag == "grad_norms/blocks/wq/1"} == {1, 3}
    assert {step for tag, step in values if tag == "grad_norms/embed"} == {1, 3}
    assert values["grad_norms/blocks/wq/0", 3] == 0.75
    assert values["grad_norms/blocks/wq/1", 3] == math.inf
    assert (values["tokens_per_second", 4], values["waited", 4]) == (50.0, 0.25)
    texts = {tag.removesuffix("/text_summary"): value for (tag, _), value in values.items() if isinstance(value, str)}
    assert texts == {"alarm/loss_spike": "loss, layer 2: expected 1, found 9", "sample": "Once upon"}


def test_a_resumed_run_drops_the_steps_that_it_repeats(tmp_path):
    pytest.importorskip("tensorboardX")
    for start in (0, 5):
        sink = TensorBoardSink(tmp_path / "tb", step=start, tokens_per_step=100)
        sink.write(record(start + 1))
        sink.close()
    assert read(tmp_path / "tb")[1] == [6]


def tensorboard(folder):
    return TensorBoardSink(folder, tokens_per_step=1)


def wandb(folder):
    return WandbSink(folder, name="r", config={}, run_id="1", tokens_per_step=1)


@pytest.mark.parametrize(("make", "package"), [(tensorboard, "tensorboardX"), (wandb, "wandb")])
def test_a_missing_package_is_an_error_that_names_the_extra(tmp_path, monkeypatch, make, package):
    monkeypatch.setitem(sys.modules, package, None)
    wanted = rf"expected the package {package}, found none; `pip install 'jaxlm\[{make.__name__}\]'`"
    with pytest.raises(InputError, match=wanted):
        make(tmp_path)
