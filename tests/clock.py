"""A clock for tests: what they see does not depend on how busy the machine is."""

import time
from concurrent.futures import Future
from dataclasses import dataclass


@dataclass
class Clock:
    """Stands in for the module `time`; it goes on by `step` seconds a reading, and by what is slept."""

    step: float = 0.0
    now: float = 100.0

    def monotonic(self) -> float:
        self.now += self.step
        return self.now

    perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def go_on_until(clock: Clock, task: Future) -> None:
    """Let time pass until the task is done, and no longer."""
    while not task.done():
        clock.sleep(0.02)
        time.sleep(0.001)
