"""One thread that computes, and the search that streams through it."""

import itertools
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import PriorityQueue
from typing import Any

from torch import Tensor

URGENT, SOON, PATIENT = 0, 1, 2  # what somebody looks at; what comes into view; the search


class Worker:
    """One thread that computes: what somebody waits for first, the search between. So nothing else needs a lock."""

    def __init__(self) -> None:
        self._queue: PriorityQueue[tuple[int, int, Callable[[], Any] | None, Future[Any]]] = PriorityQueue()
        self._numbers = itertools.count()
        threading.Thread(target=self._run, daemon=True, name="explorer").start()

    def submit(self, call: Callable[[], Any], priority: int = URGENT) -> Future[Any]:
        future: Future[Any] = Future()
        self._queue.put((priority, next(self._numbers), call, future))
        return future

    def stop(self) -> None:
        """The thread ends with what it is at."""
        self.submit(lambda: None, -1)
        self._queue.put((-1, next(self._numbers), None, Future()))

    def _run(self) -> None:
        while True:
            _, _, call, future = self._queue.get()
            if call is None:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # it belongs to who waits
                future.set_exception(error)


@dataclass
class Search:
    """The search over the pictures: batches are read in a thread of its own and taken by the worker's."""

    worker: Worker
    batches: Callable[[int], Iterable[tuple[Tensor, Tensor]]]  # from a number on -> (inputs, numbers)
    take: Callable[[Tensor, Tensor], None]
    total: int
    done: int = 0
    state: str = "waiting"  # running, stopped, done, failed
    error: str = ""
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, or go on where it was stopped."""
        if self.state in ("running", "done"):
            return
        if self._thread is not None:
            self._thread.join()
        self._stop.clear()
        self.state, self.error = "running", ""
        self._thread = threading.Thread(target=self._run, daemon=True, name="explorer-search")
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self.state == "running":
            self.state = "stopped"

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def report(self) -> dict[str, Any]:
        return {"state": self.state, "done": self.done, "total": self.total, "error": self.error}

    def _run(self) -> None:
        try:
            task: Future[None] | None = None  # the last batch's; the next is read meanwhile
            for inputs, numbers in self.batches(self.done):
                if task is not None:
                    task.result()
                if self._stop.is_set():
                    break
                task = self.worker.submit(partial(self._take, inputs, numbers), PATIENT)
            if task is not None:
                task.result()
        except Exception as error:
            self.state, self.error = "failed", " ".join(str(error).split()) or type(error).__name__
            return
        if not self._stop.is_set():
            self.state = "done"

    def _take(self, inputs: Tensor, numbers: Tensor) -> None:
        self.take(inputs, numbers)
        self.done += len(numbers)
