"""SIGTERM and Ctrl-C become a request; handlers are put back."""

import os
import signal
import threading

import pytest

from jaxlm.train.stop import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_handler_put_back(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal is number
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts_at_once():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal is signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_outside_of_the_main_thread_no_handler_is_touched():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with StopRequest() as stop:
            seen.append((stop.signal, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


class Cluster:
    """A lookout that agrees on the step that it is told."""

    def __init__(self):
        self.asked, self.stop = [], None

    def ask(self, name):
        self.asked.append(name)

    def reached(self, step):
        return "SIGTERM" if self.stop is not None and step >= self.stop else None


def test_in_a_cluster_a_signal_asks_and_the_agreed_step_stops():
    lookout = Cluster()
    with StopRequest(lookout) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert lookout.asked == ["SIGINT"]
        assert not stop.reached(4)
        lookout.stop = 6
        assert not stop.reached(5)
        assert stop.reached(6)
        assert stop.signal is signal.SIGTERM  # the one agreed on


def test_alone_a_signal_stops_at_once():
    with StopRequest() as stop:
        assert not stop.reached(4)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reached(5)
