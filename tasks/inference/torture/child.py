"""One driver of the torture: it plans, scores and publishes a small run, and is disturbed where it is told.

It says `ready` when everything is imported, waits for a word, works, and tells how often it passed each crash point and
used each part of the store, or the error that ended it. Its arguments:

    count                 counts what it asks of its disk
    at POINT NTH SIGNAL   sends itself SIGNAL when it reaches POINT for the NTH time
    disk FAULT            its disk fails as FAULT, a `StoreFault` as JSON, says
    impatient SECONDS     waits no longer than that for an answer of S3
"""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tasks.core.crash_points import observe
from tasks.core.errors import PenstockError
from tasks.core.object_store import S3Store
from tasks.core.settings import Settings
from tasks.inference.torture.disk_faults import install
from tasks.inference.torture.faults import StoreFault
from tasks.inference.torture.store_uses import Uses
from tasks.inference.torture.workload import AUDIT_TABLE, MODEL, drive, torture_pipeline


def work(words: Sequence[str], asked: Connection) -> int:
    """Exit code 0, or that of the error."""
    from tasks.inference.shard import resolve

    # Imported before `ready`, so that random moments fall into the work.
    for needed in ("deltalake:DeltaTable", "tasks.inference.publishing:publish", AUDIT_TABLE, MODEL):
        resolve(needed)
    settings, spec = Settings.from_environment(), torture_pipeline()
    passed: Counter[str] = Counter()
    task, *more = words or ("",)
    observe(_pass_point(passed, more if task == "at" else ()))
    uses = Uses(StoreFault.from_json(json.loads(more[0])) if task == "disk" else None)
    if task in ("count", "disk"):
        install(uses, Path(settings.store_url, spec.prefix))
    if task == "impatient":
        _be_impatient(float(more[0]))
    asked.send("ready")
    asked.recv()
    told: dict[str, Any] = {}
    code = 0
    try:
        drive(settings, spec)
    except PenstockError as error:
        told, code = {"error": type(error).__name__, "message": str(error)}, error.exit_code
    except Exception as error:
        traceback.print_exc()
        told, code = {"error": type(error).__name__, "message": f"{type(error).__name__}: {error}"}, 1
    asked.send({**told, "passed": dict(passed), "used": dict(uses.seen), "struck": uses.struck})
    return code


def _pass_point(passed: Counter[str], words: Sequence[str]) -> Callable[[str], None]:
    point, nth, number = (words[0], int(words[1]), int(words[2])) if words else ("", 0, 0)

    def pass_point(name: str) -> None:
        passed[name] += 1
        if name == point and passed[name] == nth:
            os.kill(os.getpid(), signal.Signals(number))

    return pass_point


def _be_impatient(seconds: float) -> None:
    """Both S3 clients give up waiting after this time; theirs would outlast every round."""
    from s3fs import core

    config, options = core.AioConfig, S3Store.storage_options
    core.AioConfig = lambda **more: config(**{**more, "read_timeout": seconds})

    def impatient_options(store: S3Store) -> dict[str, str]:
        return {**options(store), "timeout": f"{seconds:g}s"}

    setattr(S3Store, "storage_options", impatient_options)  # noqa: B010 - an assignment is an error to mypy
