"""Append from many threads and fold all the while: `hot_child.py POINT NTH THREADS FIRST ACKNOWLEDGED`.

Dies by SIGKILL when it reaches POINT for the NTH time (`-`: it is killed from outside). Every append that returned is written to
the file ACKNOWLEDGED, one request number a line, by a write of its own.
"""

from __future__ import annotations

import os
import sys
import threading
from itertools import count

from crash_child import die_at
from hot_support import online_row

from tasks.audit.hot import HotLimits, HotLog
from tasks.core import Settings, load_pipeline


def main() -> None:
    point, nth, threads, first = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    told = os.open(sys.argv[5], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    settings = Settings.from_environment()
    numbers = count(first)
    log = HotLog(settings, load_pipeline(settings, "toy"), node="child", limits=HotLimits(seal_rows=40))
    if point != "-":
        die_at(point, nth)

    def serve() -> None:
        while True:
            number = next(numbers)
            log.append([online_row(number)])
            os.write(told, f"{number}\n".encode())

    for _ in range(threads):
        threading.Thread(target=serve, daemon=True).start()
    log.start_folding(every_s=0.01)
    threading.Event().wait()


if __name__ == "__main__":
    main()
