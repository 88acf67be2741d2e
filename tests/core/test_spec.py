"""`pipeline.yaml`: every field is documented, and every mistake is named with its field and fix."""

from __future__ import annotations

import re
from datetime import date, timedelta
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from tasks.core import PipelineSpec, Settings, load_pipeline, pipeline_names
from tasks.core.errors import ConfigError, NotFound
from tasks.core.spec import parse_pipeline
from tasks.core.yaml_text import read_yaml

PROJECT = Path(__file__).parents[2]
TOY = PROJECT / "tests" / "toy_project" / "pipelines" / "toy" / "pipeline.yaml"


def sections(model: type[BaseModel] = PipelineSpec, prefix: str = "") -> dict[str, list[str]]:
    """Field names of every record in `pipeline.yaml`, by the path of the record."""
    found: dict[str, list[str]] = {prefix: list(model.model_fields)}
    for name, field in model.model_fields.items():
        for inner in _models(field.annotation):
            found |= sections(inner, f"{prefix}.{name}".lstrip("."))
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not get_origin(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for arg in get_args(annotation) for model in _models(arg)]


def documented() -> dict[str, dict[str, str]]:
    """Field to default, by section, as the tables of docs/pipeline.md list them."""
    found: dict[str, dict[str, str]] = {}
    section = ""
    for line in (PROJECT / "docs" / "pipeline.md").read_text().splitlines():
        if heading := re.match(r"## `?([a-z_.]+)`?$", line):
            section = "" if heading[1] == "top" else heading[1]
        if row := re.match(r"\| `([a-z0-9_]+)` \| (.*?) \|", line):
            found.setdefault(section, {})[row[1]] = row[2]
    return found


def test_every_field_has_a_line_in_docs_and_every_line_is_a_field() -> None:
    windows = ("split.train", "split.validation")
    expected = {path: sorted(names) for path, names in sections().items() if path not in windows}
    assert {path: sorted(rows) for path, rows in documented().items()} == expected


def test_defaults_in_the_docs_are_those_of_the_code() -> None:
    def models(model: type[BaseModel], prefix: str = "") -> dict[str, type[BaseModel]]:
        found = {prefix: model}
        for name, field in model.model_fields.items():
            for inner in _models(field.annotation):
                found |= models(inner, f"{prefix}.{name}".lstrip("."))
        return found

    docs = documented()
    for path, model in models(PipelineSpec).items():
        for name, field in model.model_fields.items():
            if path not in docs or _models(field.annotation):
                continue
            said = docs[path][name].strip("`")
            if field.is_required():
                assert said == "required", f"{path}.{name}"
            else:
                default = field.get_default(call_default_factory=True)
                default = list(default) if isinstance(default, tuple) else default
                assert yaml.safe_load(said) == default, f"{path}.{name}"


def test_every_pipeline_of_the_project_loads() -> None:
    settings = Settings.at_home(PROJECT / ".penstock", project=PROJECT)
    assert "flight_delay" in pipeline_names(settings)
    for name in pipeline_names(settings):
        assert load_pipeline(settings, name).name == name


def test_a_monitor_that_goes_by_the_calendar_does_not_expire_the_explanations_of_the_demo() -> None:
    settings = Settings.at_home(PROJECT / ".penstock", project=PROJECT)
    kept = load_pipeline(settings, "flight_delay").explanations.expire_days
    assert date(2013, 1, 1) + timedelta(days=kept) > date(2030, 1, 1)


def broken(change: Any) -> ConfigError:
    raw = yaml.safe_load(TOY.read_text())
    change(raw)
    with pytest.raises(ConfigError) as caught:
        parse_pipeline(yaml.safe_dump(raw), origin="toy/pipeline.yaml")
    assert "toy/pipeline.yaml" in str(caught.value)
    return caught.value


def test_a_wrong_key_is_named_with_the_right_one() -> None:
    error = broken(lambda raw: raw.update(entity_keys=raw.pop("entity_key")))
    assert "entity_keys: unknown key, did you mean 'entity_key'?" in error.what
    assert "entity_key: is required" in error.what


def test_a_wrong_key_inside_a_section_is_named_with_its_path() -> None:
    error = broken(lambda raw: raw["training"].update(epoch=3))
    assert error.which == "toy/pipeline.yaml: training.epoch"
    assert "did you mean 'epochs'?" in error.what


def test_a_missing_field_is_named() -> None:
    error = broken(lambda raw: raw["label"].pop("column"))
    assert error.which.endswith("label.column")
    assert "is required" in error.what


def test_a_value_of_the_wrong_kind_is_shown() -> None:
    error = broken(lambda raw: raw["gates"].update(min_auc=7))
    assert error.which.endswith("gates.min_auc")
    assert "(got 7)" in error.what


def test_every_problem_is_listed_at_once() -> None:
    error = broken(lambda raw: (raw["gates"].update(min_auc=7), raw["source"].pop("uri"), raw.pop("owner")))
    assert all(field in error.what for field in ("gates.min_auc", "source.uri", "owner"))


@pytest.mark.parametrize("column", ["bought", "paid"])
def test_a_feature_that_is_an_outcome_is_refused(column: str) -> None:
    error = broken(lambda raw: raw["features"]["numeric"].append(column))
    assert f"features ['{column}'] are outcomes" in error.what


@pytest.mark.parametrize(
    ("said", "field", "words"),
    [
        (
            {"prize": {"visits": 0}},
            "(whole file)",
            "names ['prize'], which are no features; use some of: price",
        ),
        ({"price": {"price": None}}, "(whole file)", "null_when.price asks the feature itself"),
        ({"price": {"paid": 0}}, "(whole file)", "null_when.price asks ['paid'], which are outcomes"),
        ({"price": {"bought": None}}, "(whole file)", "asks ['bought'], which are outcomes"),
        ({"price": {}}, "drift.null_when.price", "at least 1 item"),
        ({"price": None}, "drift.null_when.price", "valid dictionary"),
        ({"price": {"visits": []}}, "drift.null_when.price.visits", "the list is empty"),
        (
            {"price": {"visits": {"below": 3}}},
            "drift.null_when.price.visits",
            "{'below': 3} is a dict: write a number",
        ),
        ({"price": {"visits": [0, [1]]}}, "drift.null_when.price.visits", "[1] is a list"),
        ({"price": {"visits": float("nan")}}, "drift.null_when.price.visits", "write null"),
        ({"price": {"asked_at": date(2024, 1, 1)}}, "drift.null_when.price.asked_at", "is a date"),
    ],
    ids=str,
)
def test_a_null_condition_that_cannot_hold_is_refused(said: dict[str, Any], field: str, words: str) -> None:
    error = broken(lambda raw: raw["drift"].update(null_when=said))
    assert error.which.endswith(f": {field}") and words in error.what


def test_null_conditions_keep_the_kind_of_their_values() -> None:
    raw = yaml.safe_load(TOY.read_text())
    raw["drift"]["null_when"] = {"price": {"visits": [0, 1.5, True, "no", None], "device": "phone"}}
    said = parse_pipeline(yaml.safe_dump(raw), origin="toy").drift.null_when
    assert repr(said) == "{'price': {'device': ('phone',), 'visits': (0, 1.5, True, 'no', None)}}"


def test_windows_that_overlap_or_run_backwards_are_refused() -> None:
    assert (
        "validation must start after train ends"
        in broken(lambda raw: raw["split"]["validation"].update(first_day="2024-01-20")).what
    )
    assert (
        "is before first_day" in broken(lambda raw: raw["split"]["train"].update(last_day="2023-01-01")).what
    )
    assert "give both train and validation windows" in broken(lambda raw: raw["split"].pop("train")).what


def test_a_key_that_stands_twice_is_refused_where_yaml_would_keep_the_last() -> None:
    twice = "name: toy\ngates:\n  min_auc: 0.7\nlabel: {column: y}\ngates: {max_ece: 0.1}\n"
    with pytest.raises(ConfigError, match=r"pipeline\.yaml:5: is not valid YAML: 'gates' stands .* line 2"):
        parse_pipeline(twice, origin="pipeline.yaml")
    within = "name: toy\ngates:\n  min_auc: 0.7\n  max_ece: 0.1\n  min_auc: 0.6\n"
    with pytest.raises(ConfigError, match=r"pipeline\.yaml:5: .*'min_auc' stands here a second time"):
        parse_pipeline(within, origin="pipeline.yaml")


def test_yaml_keys_may_be_merged_and_need_not_be_words() -> None:
    merged = "usual: &usual {a: 1, b: 2}\nown:\n  <<: *usual\n  a: 3\n2: two\n"
    assert read_yaml(merged) == {"usual": {"a": 1, "b": 2}, "own": {"a": 3, "b": 2}, 2: "two"}
    with pytest.raises(yaml.YAMLError, match="unhashable key"):
        read_yaml("{[1]: 2}")


def test_a_yaml_mistake_names_its_line() -> None:
    with pytest.raises(ConfigError, match=r"toy/pipeline\.yaml:3: is not valid YAML"):
        parse_pipeline(
            "name: toy\nowner: me\ntags: [a\nsource: {}\n".replace("[a\n", "[a]]\n"),
            origin="toy/pipeline.yaml",
        )
    with pytest.raises(ConfigError, match="must be a mapping"):
        parse_pipeline("- a\n", origin="toy/pipeline.yaml")


def test_a_name_that_is_not_the_folder_and_an_unknown_pipeline_are_named(settings: Settings) -> None:
    settings.pipelines_dir.joinpath("toy").rename(settings.pipelines_dir / "other")
    with pytest.raises(ConfigError, match="says 'toy' but its folder is 'other'"):
        load_pipeline(settings, "other")
    with pytest.raises(NotFound, match="toy: is not a pipeline"):
        load_pipeline(settings, "toy")
