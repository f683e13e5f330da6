"""One thread that computes, and the search that streams through it."""

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

URGENT, SOON, PATIENT = 0, 1, 2  # what somebody looks at; what comes into view; the search
# Seconds without anything more urgent, asked or answered, before a task of these begins: a page asks for one thing
# after the other
PAUSES = {URGENT: 0.0, SOON: 0.1, PATIENT: 0.3}
Task = tuple[int, int, Callable[[], Any] | None, Future[Any]]  # priority, number, what to call, who waits


class Worker:
    """One thread that computes: what somebody waits for first, the search between. So nothing else needs a lock."""

    def __init__(self) -> None:
        self._tasks: list[Task] = []  # a heap
        self._news = threading.Condition()
        self._asked = dict.fromkeys((URGENT, SOON), -1.0)  # when something so urgent was last asked or answered
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._run, daemon=True, name="explorer")
        self._thread.start()

    def submit(self, call: Callable[[], Any], priority: int = URGENT) -> Future[Any]:
        return self._put(call, priority)

    def stop(self) -> None:
        """Ends the thread with what it is at: a process that ended while it computes would be aborted."""
        self._put(None, -1)
        self._thread.join()

    def _put(self, call: Callable[[], Any] | None, priority: int) -> Future[Any]:
        future: Future[Any] = Future()
        with self._news:
            heapq.heappush(self._tasks, (priority, next(self._numbers), call, future))
            self._said(priority)
            self._news.notify()
        return future

    def _said(self, priority: int) -> None:
        if priority in self._asked:
            self._asked[priority] = time.monotonic()

    def _left(self, priority: int) -> float:
        """How long such a task must wait yet."""
        last = max((at for other, at in self._asked.items() if other < priority), default=-1.0)
        return last + PAUSES.get(priority, 0.0) - time.monotonic()

    def _next(self) -> Task:
        """The most urgent task, once it may begin."""
        with self._news:
            while True:
                left = self._left(self._tasks[0][0]) if self._tasks else None
                if left is not None and left <= 0:
                    return heapq.heappop(self._tasks)
                self._news.wait(left)

    def _run(self) -> None:
        while True:
            priority, _, call, future = self._next()
            if call is None:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # it belongs to who waits
                future.set_exception(error)
            self._said(priority)


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
