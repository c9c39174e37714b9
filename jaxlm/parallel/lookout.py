"""The lookout: threads in every process of a cluster that see when another is lost, and agree with the others on a stop.

Without it, a process whose neighbour is gone waits in a collective for ever, or is aborted from C++ with no word a person
could use. Every process gives a sign of life each tick; process 0 looks at all of them, the others at process 0 and at
what it makes known. Each one ends itself, with a message and the status `LOST`, at most `heartbeat` seconds and a few ticks
after a neighbour fell silent, whatever its main thread waits for. Where a neighbour failed by itself and could say so, it
ends with the status of that one: the same command would fail again.

One thread calls process 0, whose answer may never come; the other judges how old the last answer is.
"""

from __future__ import annotations

import ctypes
import signal
import socket
import threading
import time
import traceback
from typing import Any

from jaxlm.contract import InputError
from jaxlm.parallel import processes
from jaxlm.parallel.leaving import leave

LOST = 4  # exit status: another process was lost; the same command goes on
CONNECTION = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Connection", "coordination")  # in an error of a step
UNANSWERED = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")  # how an error of a call to process 0 begins
GO_ON = "Nothing that was saved is lost; the same command goes on, also with fewer processes and another --mesh."


def status_of(error: BaseException) -> int:
    """The exit status that a process has from an error of its own, as `jaxlm train` has it."""
    return 2 if isinstance(error, InputError) else 3 if isinstance(error, KeyboardInterrupt) else 1


class Lookout:
    """The threads. heartbeat: seconds of silence after which a process counts as lost.

    Start it after `processes.start`, close it when all processes have reached their end (`processes.barrier`). One may follow
    another in the same processes: each has keys of its own.
    """

    def __init__(self, *, heartbeat: float):
        self.heartbeat, self.tick = heartbeat, min(1.0, heartbeat / 5)
        self.index, self.count, self.client = processes.index(), processes.count(), processes.client()
        key = processes.numbered("lookout")
        self.life, self.news, self.heard, self.steps = (f"{key}/{name}/" for name in ("life", "news", "heard", "steps"))
        self._seen = {other: ("", time.monotonic()) for other in self._watched()}
        self._answered = time.monotonic()  # when process 0 last answered every question of a tick
        self._turn = threading.Condition()  # guards what follows
        self._done = 0
        self._agreeing = False
        self._stop: tuple[int, str] | None = None
        self._asked = ""
        self._ended = threading.Event()
        self._failing: tuple[int, str] | None = None  # status and words that this process itself fails with
        self._abort = self._on_abort() if self.index else None
        self._threads = [
            threading.Thread(target=work, name=f"lookout {work.__name__}", daemon=True) for work in (self._watch, self._judge)
        ]
        for thread in self._threads:
            thread.start()

    def _watched(self) -> list[int]:
        return self._others() if self.index == 0 else [0]

    def _others(self) -> list[int]:
        return [other for other in range(self.count) if other != self.index]

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
            self._turn.wait_for(lambda: not self._agreeing)
            self._done = step
            return self._stop[1] if self._stop is not None and step >= self._stop[0] else None

    def tell(self, error: BaseException) -> None:
        """Tell the others that this process fails with `error`, and give them the time to hear it.

        Where the error looks like a broken connection, its cause is another process: then the thread is given the time to
        find out which, and ends this process with a better message; if it finds none, this process ends itself as `LOST`.
        """
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:1000]
        broken = isinstance(error, (RuntimeError, ValueError)) and any(word in text for word in CONNECTION)
        if broken:
            self._ended.wait(self.heartbeat + 8 * self.tick)
        self._failing = (LOST if broken else status_of(error), text)
        try:
            self.client.key_value_set(f"{self.news}failed/{self.index}", "{} {}".format(*self._failing), allow_overwrite=True)
            self._until_heard(self._others())
        except Exception as failed:  # nobody is left to tell
            error.add_note(f"the other processes could not be told: {failed}")
        if broken:
            trace = "".join(traceback.format_exception(error))
            leave(LOST, f"error: the connection to another process broke: {text}. {GO_ON}", before=trace)

    def close(self) -> None:
        """Stop looking. Where this process fails, jax may still abort it, and that is still said in words."""
        self._ended.set()
        for thread in self._threads:
            thread.join(self.heartbeat)  # a call without an answer is not waited for
        if self._abort is not None and self._failing is None:
            signal.signal(signal.SIGABRT, signal.SIG_DFL)

    # ---- the thread that calls process 0 -------------------------------------------------------------------------

    def _watch(self) -> None:
        beat = 0
        while not self._ended.wait(self.tick / 10 if self._agreeing else self.tick):
            beat += 1
            try:
                self._turn_of_watch(beat)
                self._answered = time.monotonic()
            except Exception as error:
                if not self._ended.is_set():
                    self._failed(error)

    def _turn_of_watch(self, beat: int) -> None:
        self.client.key_value_set(f"{self.life}{self.index}", str(beat), allow_overwrite=True)
        news = {key.removeprefix(self.news): value for key, value in self.client.key_value_dir_get(self.news)}
        signs = dict(self.client.key_value_dir_get(self.life) if self.index == 0 else self._sign_of_0())
        self._hear(news)
        self._look(signs)
        if self._asked and "stop" not in news:
            self._ask(self._asked)
        if "stop" in news and self._stop is None:
            self._agree(news["stop"])

    def _sign_of_0(self) -> list[tuple[str, str]]:
        # A key that is not there yet is an error to `try_get`: whoever has given no sign within the heartbeat is lost too.
        try:
            return [(f"{self.life}0", self.client.key_value_try_get(f"{self.life}0"))]
        except Exception as error:
            if "NOT_FOUND" in str(error):
                return []
            raise

    def _hear(self, news: dict[str, str]) -> None:
        """End this process where another one has failed, or process 0 has found one lost."""
        bad = {key: text for key, text in news.items() if key.startswith(("failed/", "lost/"))}
        if not bad:
            return
        self.client.key_value_set(f"{self.heard}{self.index}", "", allow_overwrite=True)
        if self._failing is not None:  # it ends with its own words
            return
        for key, text in bad.items():
            kind, _, other = key.partition("/")
            if int(other) == self.index:
                continue
            if self.index == 0:  # which takes the news away with it
                self._until_heard([each for each in self._others() if kind == "failed" or each != int(other)])
            if kind == "lost":
                leave(LOST, f"error: {text}")
            status, _, words = text.partition(" ")
            mend = GO_ON if int(status) == LOST else "Mend that first; nothing that was saved is lost."
            leave(int(status), f"error: process {other} of {self.count} failed: {words} {mend}")

    def _until_heard(self, others: list[int]) -> None:
        """Wait until these have heard the news, but not long: some may be lost."""
        deadline = time.monotonic() + 5 * self.tick
        while time.monotonic() < deadline:
            heard = {key for key, _ in self.client.key_value_dir_get(self.heard)}
            if all(f"{self.heard}{other}" in heard for other in others):
                return
            time.sleep(self.tick / 5)

    def _look(self, signs: dict[str, str]) -> None:
        now = time.monotonic()
        for other, (sign, since) in self._seen.items():
            found = signs.get(f"{self.life}{other}", "")
            if found != sign:
                self._seen[other] = (found, now)
            elif now - since > self.heartbeat and self._failing is None:
                message = f"process {other} of {self.count} is lost: no sign of life for {self.heartbeat:g} s. {GO_ON}"
                if self.index == 0:
                    self.client.key_value_set(f"{self.news}lost/{other}", message, allow_overwrite=True)
                    self._until_heard([each for each in self._others() if each != other])
                leave(LOST, f"error: {message}")

    def _ask(self, name: str) -> None:
        """Make a stop known; of several, the first one counts, in all processes."""
        try:
            self.client.key_value_set(f"{self.news}stop", name)
        except Exception as error:
            if "ALREADY_EXISTS" not in str(error):
                raise

    def _agree(self, name: str) -> None:
        """Fix the last step: one past the largest number of steps that a process has done. The main thread is held meanwhile.

        Each says once how many it has done, and waits, tick by tick, for what all others say: so all find the same.
        """
        with self._turn:
            self._agreeing, done = True, self._done
        self.client.key_value_set(f"{self.steps}{self.index}", str(done), allow_overwrite=True)
        said = [int(value) for _, value in self.client.key_value_dir_get(self.steps)]
        if len(said) == self.count:
            with self._turn:
                self._stop, self._agreeing = (max(said) + 1, name), False
                self._turn.notify_all()

    def _failed(self, error: Exception) -> None:
        """A turn of the thread failed: process 0 is lost, or this thread is at fault."""
        if self._failing is not None:
            return
        words = " ".join(str(error).split())[:500]
        if not words.startswith(UNANSWERED):
            trace = "".join(traceback.format_exception(error))
            where = f"the lookout of process {self.index} of {self.count}"
            leave(1, f"error: {where} failed: {type(error).__name__}: {words}", before=trace)
        if self.index:  # in process 0 itself the other thread judges whether it lasts
            leave(LOST, f"error: {self._unreachable()} ({words}) {GO_ON}")

    # ---- the thread that judges ----------------------------------------------------------------------------------

    def _judge(self) -> None:
        woke = time.monotonic()
        while not self._ended.wait(self.tick):
            now = time.monotonic()
            if now - woke > self.heartbeat / 2:  # this process itself was held: that says nothing of the others
                self._answered = now
            woke = now
            if self._old():
                self._leave_unanswered()

    def _old(self) -> bool:
        """Whether the last answer of process 0 is older than the heartbeat."""
        return time.monotonic() - self._answered > self.heartbeat + self.tick

    def _leave_unanswered(self) -> None:
        if self._failing is not None:
            leave(self._failing[0], f"error: {self._failing[1]}")
        leave(LOST, f"error: {self._unreachable()} No answer for {self.heartbeat:g} s. {GO_ON}")

    def _unreachable(self) -> str:
        return f"process 0 of {self.count}, which coordinates the others, is lost: it cannot be reached any more."

    def _on_abort(self) -> Any:
        """Say in words why, where jax aborts this process from C++ because process 0 is gone. Returns what must be kept alive.

        jax ends a process within a moment of losing the coordinator, by abort(), from a thread of its own that Python is not
        asked about. A handler of Python's own would run too late: abort() ends the process as soon as the handler in C returns.
        """
        host, _, port = processes.coordinator().rpartition(":")

        def handler(number: int) -> None:
            if self._failing is not None or self._old():
                self._leave_unanswered()
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
            except OSError:
                leave(LOST, f"error: {self._unreachable()} {GO_ON}")

        kept = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)
        libc = ctypes.CDLL(None)
        libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
        libc.signal(signal.SIGABRT, ctypes.cast(kept, ctypes.c_void_p))
        return kept
