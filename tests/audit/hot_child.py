"""Append from many threads and fold all the while: `hot_child.py POINT NTH THREADS FIRST ACKNOWLEDGED`.

Every other thread appends `EACH` rows at once, as columns.

Dies by SIGKILL when it reaches POINT for the NTH time (`-`: it is killed from outside). Every append that returned is written to
the file ACKNOWLEDGED, one request number a line, by a write of its own.
"""

from __future__ import annotations

import os
import sys
import threading
from itertools import count, islice

from crash_child import die_at
from hot_support import EACH, columns_of, online_row

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

    def serve(each: int) -> None:
        while True:
            mine = list(islice(numbers, each))
            rows = [online_row(number) for number in mine]
            log.append(rows if each == 1 else [columns_of(rows)])
            os.write(told, "".join(f"{number}\n" for number in mine).encode())

    for thread in range(threads):
        threading.Thread(target=serve, args=(EACH if thread % 2 else 1,), daemon=True).start()
    log.start_folding(every_s=0.01)
    threading.Event().wait()


if __name__ == "__main__":
    main()
