"""Bad input on the terminal: one error that names file, field and fix, an exit code, and nothing else changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from shutil import copyfile

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from cli_support import Penstock, as_files, edit, kept, toy_folder

from tasks.core import Settings


@dataclass(frozen=True)
class Case:
    """What is wrong, the command that meets it, and what the error must name."""

    name: str
    arguments: str
    names: tuple[str, ...]
    error: str = "DataError"
    spoil: Callable[[Settings], object] = lambda settings: None
    code: int = 2


def in_source(old: str, new: str) -> Callable[[Settings], object]:
    return lambda settings: edit(toy_folder(settings) / "source.py", old, new)


def in_yaml(old: str, new: str) -> Callable[[Settings], object]:
    return lambda settings: edit(toy_folder(settings) / "pipeline.yaml", old, new)


def truncated(settings: Settings) -> None:
    path = as_files(settings) / "2024-01-07.parquet"
    path.write_bytes(path.read_bytes()[:-200])


def delivered_twice(settings: Settings) -> None:
    rows = as_files(settings)
    copyfile(rows / "2024-01-07.parquet", rows / "2024-01-07-again.parquet")


def emptied(settings: Settings) -> None:
    path = as_files(settings) / "2024-01-07.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)


def sent_again(settings: Settings) -> None:
    rows = as_files(settings)
    table = pq.read_table(rows / "2024-01-07.parquet")
    times = pc.add(table["asked_at"], timedelta(days=1))
    index = table.column_names.index("asked_at")
    pq.write_table(table.set_column(index, "asked_at", times), rows / "2024-01-08.parquet")


def raising(file: str, signature: str) -> Callable[[Settings], object]:
    def spoil(settings: Settings) -> None:
        path = toy_folder(settings) / file
        edit(path, signature, f"{signature}\n    raise RuntimeError('the unit is wrong')")

    return spoil


TRAIN = "training run toy {snapshot} --validation-first-day 2024-01-29"
CASES = [
    Case(
        "a misspelt key",
        "data snapshot toy",
        ("pipelines/toy/pipeline.yaml: lables: unknown key, did you mean 'label'?", "docs/pipeline.md"),
        "ConfigError",
        in_yaml("owner: tests", "owner: tests\nlables: {column: bought}"),
    ),
    Case(
        "two wrong fields",
        "data snapshot toy",
        ("pipeline.yaml", "label: is required", "lables: unknown key"),
        "ConfigError",
        in_yaml("label: {", "lables: {"),
    ),
    Case(
        "a missing column",
        "data snapshot toy",
        ("source.py", "lacks column bought", "did you mean bougt", "pipeline.yaml"),
        spoil=in_source('"bought": pa', '"bougt": pa'),
    ),
    Case(
        "an empty partition",
        "data snapshot toy",
        ("2024-01-07",),
        spoil=emptied,
    ),
    Case("a truncated file", "data snapshot toy", ("rows/2024-01-07.parquet",), spoil=truncated),
    Case(
        "a file delivered twice",
        "data snapshot toy",
        ("2024-01-07.parquet", "2024-01-07-again.parquet"),
        spoil=delivered_twice,
    ),
    Case(
        "a day delivered twice",
        "data snapshot toy",
        ("2024-01-07", "2024-01-08", "one delivery arrived twice"),
        spoil=sent_again,
    ),
    Case(
        "a label of one class",
        "data snapshot toy",
        ("source.py", "column bought", "is 1 in every labelled row"),
        spoil=in_source("(rng.random(n) < 1 / (1 + np.exp(-logit)))", "(logit == logit)"),
    ),
    Case(
        "a model.py that raises",
        TRAIN,
        ("toy/model.py", "the unit is wrong"),
        "PipelineCodeError",
        raising("model.py", "def build(spec: NetworkSpec) -> nn.Module:"),
    ),
    Case(
        "a features.py that raises",
        TRAIN,
        ("toy/features.py", "the unit is wrong"),
        "PipelineCodeError",
        raising("features.py", "def features(rows: pa.Table) -> pa.Table:"),
    ),
    Case(
        "a suite that is not there",
        "validation run toy {snapshot}",
        ("nowhere.json",),
        "",
        in_yaml("suite: toy", "suite: nowhere"),
    ),
    Case(
        "a suite that is not there, before any row is read",
        "data snapshot toy",
        (
            "toy/pipeline.yaml: validation.suite: names suite 'toys', and ",
            "has no toys.json, did you mean 'toy'?",
            "name one of: ",
        ),
        "ConfigError",
        lambda settings: (in_yaml("suite: toy", "suite: toys")(settings), truncated(settings)),
    ),
    Case(
        "a misspelt feature",
        "data snapshot toy",
        (
            "toy/features.py",
            "does not return visit (did you mean visits?)",
        ),
        "PipelineCodeError",
        in_yaml("visits", "visit"),
    ),
    Case(
        "a null condition on a column that is not there",
        "data snapshot toy",
        (
            "toy/pipeline.yaml: drift.null_when.price.vists: is neither",
            "did you mean visits?",
            "use one of: asked_at",
        ),
        "ConfigError",
        in_yaml("drift: {", "drift: {null_when: {price: {vists: 0}}, "),
    ),
    Case("an unknown pipeline", "data snapshot tay", ("tay: is not a pipeline", "toy"), "NotFound"),
    Case(
        "a day that is none",
        "data snapshot toy --train-first-day 2024-02-31",
        ("train_first_day", "2024-02-31", "YYYY-MM-DD"),
        "ConfigError",
    ),
    Case(
        "days in the wrong order",
        "data snapshot toy --train-first-day 2024-02-01 --train-last-day 2024-01-01",
        ("last_day: 2024-01-01 is before first_day 2024-02-01",),
        "ConfigError",
    ),
    Case(
        "a scoring day for a training snapshot",
        "data snapshot toy --first-day 2024-02-01",
        ("--first-day", "--scoring"),
        "ConfigError",
    ),
    Case("an unknown snapshot", "validation run toy 0123456789abcdef", ("0123456789abcdef",), "NotFound"),
    Case("an unknown run", "inference status toy 0123456789abcdef", ("0123456789abcdef",), "NotFound"),
    Case(
        "an unknown prediction",
        "audit show toy 018d5e6f-0000-8000-8000-000000000000",
        ("018d5e6f-0000-8000-8000-000000000000",),
        "NotFound",
    ),
    Case(
        "a decision without a reason",
        "registry bar toy 1 --actor ada --reason=",
        ("--reason: is empty", "say who decides, and why"),
        "ConfigError",
    ),
    Case(
        "a decision of nobody",
        "registry promote toy 1 --actor= --reason better",
        ("--actor: is empty", "say who decides, and why"),
        "ConfigError",
    ),
    Case("no prediction id", "audit show toy yesterday", ("yesterday",), "InvalidQuery"),
    Case("no prediction id to decode", "audit id yesterday", ("yesterday",), "InvalidQuery"),
    Case(
        "an entity without its pipeline",
        "audit id 018d5e6f-0000-8000-8000-000000000000 --entity c1",
        ("--pipeline", "--entity"),
        "ConfigError",
    ),
    Case(
        "nothing live to score with", "data snapshot toy --scoring", ("no champion", "toy.train"), "NotFound"
    ),
    Case("nothing published to measure", "monitoring run toy", ("no published predictions",), "NotFound"),
    Case(
        "a rollback that does not say from where",
        "registry rollback toy --actor ada --reason bad",
        ("--leaving", "no version is live"),
        "ConfigError",
    ),
    Case(
        "an unknown version",
        "registry promote toy 7 --actor ada --reason good",
        ("toy version 7", "is not registered"),
        "NotFound",
    ),
    Case(
        "an evaluation that is not there",
        "registry register toy evaluation/nowhere/evidence.json",
        ("evaluation/nowhere/evidence.json",),
        "NotFound",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_bad_input_ends_in_one_error_that_names_the_place_and_the_fix(
    case: Case, penstock: Penstock, frozen: tuple[Settings, str], training_here: object
) -> None:
    settings, snapshot = frozen
    case.spoil(settings)
    before = kept(settings)
    ended = penstock(*case.arguments.format(snapshot=snapshot).split(), at=settings)
    assert ended.code == case.code
    assert ended.out == ""
    assert "Traceback" not in ended.err
    for text in (*case.names, "Fix: "):
        assert text in ended.err.replace("\n", " ") or text in ended.err
    head = ended.err.splitlines()[0]
    assert head.startswith(case.error) and head.split()[0].isidentifier()
    assert ended.err.count("Fix: ") == 1
    assert before.items() <= kept(settings).items()
