"""features.py: its version, and what happens when it breaks its contract."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow as pa
import pytest
from fresh_imports import imported_by

from tasks.core.errors import OutOfMemory, PipelineCodeError
from tasks.core.spec import CategoricalSpec, FeatureSpec
from tasks.model import FeatureCode

SPEC = FeatureSpec(numeric=("a",), categorical={"c": CategoricalSpec()})
ROWS = pa.table({"a": [1, 2, None], "c": ["x", None, "y"]})
HEAD = 'import pyarrow as pa\nFEATURE_VERSION = "3"\n'


def code(body: str) -> FeatureCode:
    return FeatureCode(f"{HEAD}def features(rows):\n    {body}\n", origin="features.py")


def test_importing_the_door_for_feature_code_does_not_import_torch() -> None:
    assert imported_by("from tasks.model import FeatureCode, FeatureEncoder, Bundle", "torch") == []


def test_columns_come_back_in_the_order_of_the_spec_with_canonical_types() -> None:
    found = code('return pa.table({"c": rows["c"].dictionary_encode(), "a": rows["a"]})').compute(ROWS, SPEC)
    assert found.schema == pa.schema([("a", pa.float64()), ("c", pa.string())])
    assert found.to_pydict() == {"a": [1.0, 2.0, None], "c": ["x", None, "y"]}


def test_the_version_follows_the_source_but_not_its_line_ends(tmp_path: Path) -> None:
    source = HEAD + "def features(rows):\n    return rows\n"
    unix, windows = tmp_path / "unix.py", tmp_path / "windows.py"
    unix.write_bytes(source.encode())
    windows.write_bytes(source.replace("\n", "\r\n").encode())
    version = FeatureCode.from_file(unix).version
    assert FeatureCode.from_file(windows).version == version
    assert version.startswith("3+") and len(version) == 14
    assert FeatureCode(source + "# more\n", origin="x").version != version


def test_it_survives_pickling() -> None:
    before = code("return rows")
    after = pickle.loads(pickle.dumps(before))
    assert after.version == before.version
    assert after.compute(ROWS, SPEC).equals(before.compute(ROWS, SPEC))


@pytest.mark.parametrize(
    "body",
    [
        "import numpy; numpy.zeros(1 << 57)",
        "import torch; torch.zeros(1 << 60, dtype=torch.uint8)",
        "pa.allocate_buffer(1 << 60)",
    ],
)
def test_features_that_get_no_memory_are_no_mistake_of_their_author(body: str) -> None:
    with pytest.raises(OutOfMemory, match=r"features\(rows\) needs more memory than this machine") as caught:
        code(body).compute(ROWS, SPEC)
    assert caught.value.which == "features.py:4"
    assert "GiB when an allocation failed" in caught.value.what and "shard_rows" in caught.value.fix


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return rows['nowhere']", "features.py:4"),
        ("return 7", "returned int"),
        ("return rows.slice(1)", "2 rows for 3"),
        ("return rows.select(['a'])", "does not return c"),
        (
            "return rows.rename_columns(['a', 'C'])",
            "does not return c (did you mean C?)",
        ),
        ("return rows.append_column('d', rows['a'])", "returns d, which pipeline.yaml does not list"),
        (
            "return pa.table({'a': rows['c'], 'c': rows['c']})",
            "'a' is numeric in pipeline.yaml but has type string",
        ),
    ],
)
def test_a_broken_contract_names_the_file_and_what_is_wrong(body: str, says: str) -> None:
    with pytest.raises(PipelineCodeError) as caught:
        code(body).compute(ROWS, SPEC)
    assert says in str(caught.value) and "features.py" in caught.value.which and caught.value.fix


def test_names_are_checked_on_rows_of_which_features_may_raise(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(PipelineCodeError, match=r"did you mean C\?"):
        code("return rows.rename_columns(['a', 'C'])").error_on(ROWS, SPEC)
    other_types = code("return pa.table({'a': rows['c'], 'c': rows['c']})")
    assert other_types.error_on(ROWS, SPEC) == ""
    assert not caplog.messages
    raised = code("return rows['nowhere']").error_on(ROWS, SPEC)
    assert (
        raised.startswith("features.py:4: features(rows) raised KeyError") and "correct that line" in raised
    )
    assert caplog.messages == [f"features.py cannot be tried before the data gate: {raised}"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def features(rows): return rows", "FEATURE_VERSION"),
        ('FEATURE_VERSION = "1"', "features(rows)"),
        ('FEATURE_VERSION = "1"\ndef features(rows:\n', "features.py:2"),
        ('FEATURE_VERSION = "1"\nimport nothing_of_this_name\n', "features.py:2"),
    ],
)
def test_a_file_that_does_not_import_or_lacks_a_name_is_refused(source: str, says: str) -> None:
    with pytest.raises(PipelineCodeError) as caught:
        FeatureCode(source, origin="features.py")
    assert says in str(caught.value)
