"""Batches made ahead of the step, in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import TracebackType

from jaxlm.data.batches import Batch


class Prefetcher:
    """Yields (step, make(step)) for start <= step < stop, in order, up to `depth` batches ahead (0: none, no thread).

    An error in `make` is raised where its batch would have come. Use it as a context manager: leaving it stops the thread.
    """

    def __init__(self, make: Callable[[int], Batch], *, start: int, stop: int, depth: int = 2):
        self._make, self._start, self._stop = make, start, stop
        self._queue: queue.Queue[tuple[int, Future[Batch]]] = queue.Queue()
        self._free = threading.Semaphore(depth)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True) if depth > 0 else None
        if self._thread is not None:
            self._thread.start()

    def _one(self, step: int) -> Future[Batch]:
        """make(step), with its error kept for the consumer."""
        done: Future[Batch] = Future()
        try:
            done.set_result(self._make(step))
        except BaseException as error:  # it is raised again in the consumer's thread
            done.set_exception(error)
        return done

    def _fill(self) -> None:
        for step in range(self._start, self._stop):
            self._free.acquire()
            if self._ended.is_set():
                return
            made = self._one(step)
            self._queue.put((step, made))
            if made.exception() is not None:
                return

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        for step in range(self._start, self._stop):
            if self._thread is None:
                yield step, self._make(step)
            else:
                at, made = self._next(self._thread)
                assert at == step, (at, step)
                self._free.release()
                yield step, made.result()

    def _next(self, thread: threading.Thread) -> tuple[int, Future[Batch]]:
        """The next batch, waited for as long as one may come. Raises RuntimeError where none will."""
        while not self._ended.is_set():
            alive = thread.is_alive()
            try:
                return self._queue.get(timeout=0.1)
            except queue.Empty:
                if not alive:
                    break
        raise RuntimeError("expected an open prefetcher, read once; found one that is closed or has given all its batches")

    def close(self) -> None:
        """Stop the thread. What was made ahead is dropped."""
        self._ended.set()
        self._free.release()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
