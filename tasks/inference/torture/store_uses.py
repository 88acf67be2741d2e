"""Counts what a driver asks of the store, and says when it has to fail."""

from __future__ import annotations

import threading
import time
from collections import Counter

from tasks.inference.torture.faults import StoreFault, target_of, use


class Uses:
    """Counts what is asked of a store, and says when the fault is on. Safe to share between threads."""

    def __init__(self, fault: StoreFault | None = None) -> None:
        self.fault = fault
        self.seen: Counter[str] = Counter()
        self.struck = 0
        self._matched = 0
        self._until: float | None = None
        self._lock = threading.Lock()

    def strikes(self, operation: str, key: str) -> bool:
        """Count one operation on a key of the pipeline; whether it has to fail."""
        target = target_of(key)
        fault = self.fault
        with self._lock:
            self.seen[use(operation, target)] += 1
            if fault is None or operation not in fault.operations:
                return False
            if fault.target is not None and target != fault.target:
                return False
            self._matched += 1
            if self._matched < fault.nth:
                return False
            now = time.monotonic()
            if self._until is None:
                self._until = now + fault.for_s
            elif now > self._until:
                return False
            self.struck += 1
            return True
