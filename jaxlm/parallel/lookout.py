"""The lookout: a thread in every process of a cluster that sees when another is lost, and agrees with the others on a stop.

Without it, a process whose neighbour is gone waits in a collective for ever, or is aborted from C++ with no word a person
could use. Every process gives a sign of life each tick; process 0 looks at all of them, the others at process 0 and at
what it makes known. Each one ends itself, with a message and the status `LOST`, at most `heartbeat` seconds and a few ticks
after a neighbour fell silent, whatever its main thread waits for.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

from jaxlm.parallel import processes

LOST = 4  # exit status: another process was lost or failed; the same command goes on
NEWS = "jaxlm/news/"
LIFE = "jaxlm/life/"
CONNECTION = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Connection", "coordination")


def leave(status: int, message: str) -> NoReturn:
    """End this process at once, without the farewells in which jax would wait for the others."""
    print(f"jaxlm: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


class Lookout:
    """The thread. heartbeat: seconds of silence after which a process counts as lost.

    Start it after `processes.start`, close it when all processes have reached their end (`processes.barrier`).
    """

    def __init__(self, *, heartbeat: float):
        self.heartbeat, self.tick = heartbeat, min(1.0, heartbeat / 5)
        self.index, self.count, self.client = processes.index(), processes.count(), processes.client()
        self._seen = {other: ("", time.monotonic()) for other in self._watched()}
        self._turn = threading.Condition()  # guards what follows
        self._done = 0
        self._asked = ""
        self._stop: tuple[int, str] | None = None
        self._ended = threading.Event()
        self._failing = ""  # what this process itself fails with
        self._abort = self._on_abort() if self.index else None
        self._thread = threading.Thread(target=self._watch, name="lookout", daemon=True)
        self._thread.start()

    def _watched(self) -> list[int]:
        return [other for other in range(self.count) if other != self.index] if self.index == 0 else [0]

    # ---- what the main thread calls ------------------------------------------------------------------------------

    def ask(self, name: str) -> None:
        """Ask all processes to stop at the same step. name: of the signal."""
        self._asked = self._asked or name

    def reached(self, step: int) -> str | None:
        """The name of the signal where `step`, just done, is the last one agreed on, else None. Call it after every step.

        It costs a lock: the agreement is made by the threads, while the main threads are held here. The steps done in the
        processes differ by one at most, since a step ends only when all have begun it; so one past the largest of them is
        ahead of every process, and each of them gets there.
        """
        with self._turn:
            self._done = step
            return self._stop[1] if self._stop is not None and step >= self._stop[0] else None

    def tell(self, error: BaseException) -> None:
        """Tell the others that this process fails with `error`, and give them the time to hear it.

        Where the error looks like a broken connection, its cause is another process: then the thread is given the time to
        find out which, and ends this process with a better message.
        """
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:1000]
        if isinstance(error, (RuntimeError, ValueError)) and any(word in text for word in CONNECTION):
            self._ended.wait(self.heartbeat + 4 * self.tick)
        self._failing = text
        try:
            self.client.key_value_set(f"{NEWS}failed/{self.index}", text, allow_overwrite=True)
            time.sleep(3 * self.tick)  # process 0 takes the news away with it
        except Exception as failed:  # nobody is left to tell
            print(f"jaxlm: {failed}", file=sys.stderr)

    def close(self) -> None:
        """Stop looking."""
        self._ended.set()
        self._thread.join()
        if self._abort is not None:
            signal.signal(signal.SIGABRT, signal.SIG_DFL)

    # ---- the thread ----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        beat = 0
        while not self._ended.wait(self.tick):
            beat += 1
            try:
                self.client.key_value_set(f"{LIFE}{self.index}", str(beat), allow_overwrite=True)
                news = dict(self.client.key_value_dir_get(NEWS))
                signs = dict(self.client.key_value_dir_get(LIFE) if self.index == 0 else self._sign_of_0())
                self._hear(news)
                self._look(signs)
                if self._asked:
                    self.client.key_value_set(f"{NEWS}stop", self._asked, allow_overwrite=True)
                if f"{NEWS}stop" in news and self._stop is None:
                    self._agree(news[f"{NEWS}stop"])
            except Exception as error:
                if not self._ended.is_set():
                    self._unreachable(error)

    def _sign_of_0(self) -> list[tuple[str, str]]:
        # A key that is not there yet is an error to `try_get`: whoever has given no sign within the heartbeat is lost too.
        try:
            return [(f"{LIFE}0", self.client.key_value_try_get(f"{LIFE}0"))]
        except Exception as error:
            if "NOT_FOUND" in str(error):
                return []
            raise

    def _hear(self, news: dict[str, str]) -> None:
        """End this process where another one has failed, or process 0 has found one lost."""
        if self._failing:  # it ends with its own words
            return
        if self.index == 0 and any(key.startswith((f"{NEWS}failed", f"{NEWS}lost")) for key in news):
            time.sleep(4 * self.tick)  # the others read it from process 0, which takes the news away with it
        for key, message in news.items():
            kind, _, other = key.removeprefix(NEWS).partition("/")
            if kind == "failed" and int(other) != self.index:
                leave(LOST, f"error: process {other} of {self.count} failed: {message} {self._go_on()}")
            if kind == "lost" and int(other) != self.index:
                leave(LOST, f"error: {message}")

    def _look(self, signs: dict[str, str]) -> None:
        now = time.monotonic()
        for other, (sign, since) in self._seen.items():
            found = signs.get(f"{LIFE}{other}", "")
            if found != sign:
                self._seen[other] = (found, now)
            elif now - since > self.heartbeat:
                message = f"process {other} of {self.count} is lost: no sign of life for {self.heartbeat:g} s. {self._go_on()}"
                if self.index == 0:
                    self.client.key_value_set(f"{NEWS}lost/{other}", message, allow_overwrite=True)
                    time.sleep(3 * self.tick)  # the others read it from process 0
                leave(LOST, f"error: {message}")

    def _agree(self, name: str) -> None:
        """Fix the last step: one past the largest number of steps that a process has done. The main thread is held."""
        with self._turn:
            self.client.key_value_set(f"jaxlm/stop/{self.index}", str(self._done))
            self.client.wait_at_barrier("jaxlm/stop", round(self.heartbeat * 1000))
            done = [int(value) for _, value in self.client.key_value_dir_get("jaxlm/stop/")]
            self._stop = (max(done) + 1, name)

    def _unreachable(self, error: Exception) -> None:
        """A call to process 0 failed. Process 0 itself goes on: then it was another's fault, and its sign will be missing."""
        if self.index and not self._failing:
            leave(LOST, f"error: {_without_coordinator(self.count)} ({' '.join(str(error).split())[:200]}) {self._go_on()}")

    def _on_abort(self) -> Any:
        """Say in words why, where jax aborts this process from C++ because process 0 is gone. Returns what must be kept alive.

        jax ends a process within a moment of losing the coordinator, by abort(), from a thread of its own that Python is not
        asked about. A handler of Python's own would run too late: abort() ends the process as soon as the handler in C returns.
        """
        host, _, port = processes.coordinator().rpartition(":")

        def handler(number: int) -> None:
            if self._failing:
                leave(1, f"error: {self._failing}")
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
            except OSError:
                leave(LOST, f"error: {_without_coordinator(self.count)} {self._go_on()}")

        kept = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)
        libc = ctypes.CDLL(None)
        libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
        libc.signal(signal.SIGABRT, ctypes.cast(kept, ctypes.c_void_p))
        return kept

    @staticmethod
    def _go_on() -> str:
        return "Nothing that was saved is lost; the same command goes on, also with fewer processes and another --mesh."


def _without_coordinator(count: int) -> str:
    return f"process 0 of {count}, which coordinates the others, is lost: it cannot be reached any more."
