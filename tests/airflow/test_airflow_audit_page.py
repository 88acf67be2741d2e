"""The audit page: who may read it, that nothing in it runs, and that its drawings say what the record says."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace
from html import unescape
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import pytest
from audit_site import API, EVIL, PAGE, READS, Site
from hypothesis import given
from hypothesis import strategies as st

from plugins import audit_api, audit_charts
from plugins.audit_charts import distribution_words, waterfall, waterfall_steps
from tasks import wiring
from tasks.audit import AuditRecord, by_prediction
from tasks.core.errors import ServiceUnavailable
from tasks.wiring.audit_pages import FeatureDistribution, training_distribution

WINDOW = "start=2024-03-01T00:00&end=2024-03-03T00:00"
UNKNOWN = "018df9c3-4a00-8b6e-9d41-5f0c2a7e1b33"


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow's answer on a DAG's runs depends on who asks and on the DAG."""
    from airflow.api_fastapi.app import get_auth_manager

    def may(*, user: Any, details: Any, **_: Any) -> bool:
        return details.id.rpartition(".")[0] in READS[user.username]

    monkeypatch.setattr(get_auth_manager(), "is_authorized_dag", may)


def explained(site: Site) -> AuditRecord:
    """A prediction of the newest run whose explanation was kept."""
    records = (by_prediction(site.settings, site.toy, identifier) for identifier in site.ids)
    return next(record for record in records if record.explanation == "stored")


def with_record(site: Site, record: AuditRecord, **more: Any) -> Any:
    """The page's functions, answering with this record."""
    own = {"audit_record": lambda *_: record, **more}
    names = ("audited_pipelines", "audit_window", "prediction_links", "training_distribution", "utc_bounds")
    return SimpleNamespace(**{name: getattr(wiring, name) for name in names}, **own)


@pytest.mark.parametrize("path", ["/", f"/?pipeline=toy&{WINDOW}", f"/toy/{UNKNOWN}", "/run/toy.score/r1"])
def test_nobody_reads_the_page_without_logging_in(site: Site, path: str) -> None:
    client = site.client(user=None)
    assert client.get(PAGE + path).status_code == 401
    browser = client.get(PAGE + path, headers={"accept": "text/html"})
    assert browser.status_code == 303
    assert "login" in browser.headers["location"]


@pytest.mark.parametrize("path", [f"/?pipeline=toy&{WINDOW}", f"/toy/{UNKNOWN}", "/run/toy.score/r1"])
def test_a_user_without_access_is_refused(site: Site, path: str) -> None:
    client = site.client(role=None)
    refused = client.get(PAGE + path)
    assert refused.status_code == 403
    assert client.get(PAGE + path.replace("toy", "no_such")).text == refused.text
    assert "No pipeline to read" in client.get(f"{PAGE}/").text


def test_the_page_offers_only_what_the_user_may_read(site: Site, limited: None) -> None:
    assert ">other</a>" in site.client("ada").get(f"{PAGE}/").text
    vic = site.client("vic")
    assert "other" not in vic.get(f"{PAGE}/").text
    assert vic.get(f"{PAGE}/?pipeline=other&{WINDOW}").status_code == 403
    assert vic.get(f"{PAGE}/other/{site.other_id}").status_code == 403


def test_pages_run_no_script_and_send_forms_only_here(site: Site) -> None:
    hostile = next(
        identifier
        for identifier in site.ids
        if EVIL in str(by_prediction(site.settings, site.toy, identifier).entity_id)
    )
    for path in (f"/?pipeline=toy&{WINDOW}", f"/toy/{hostile}", f"/toy/{hostile}?view=print"):
        answer = site.client().get(PAGE + path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "form-action 'self'" in policy
        assert "script-src" not in policy
        assert "no-store" in answer.headers["cache-control"]
        assert "<script" not in answer.text
        assert "=1+1&lt;script&gt;" in answer.text
    others = site.client(read_wiring=SimpleNamespace(dag_run_evidence=lambda *_: []))
    policy = others.get("/penstock/run/toy.train/r1").headers["content-security-policy"]
    assert "form-action 'none'" in policy


@pytest.mark.parametrize(
    "field", ["id", "start", "end", "entity_id", "model_version", "min_prediction", "cursor", "view"]
)
def test_what_was_typed_comes_back_escaped(site: Site, field: str) -> None:
    answer = site.client().get(f"{PAGE}/", params={"pipeline": "toy", field: f'">{EVIL}'})
    assert answer.status_code in (200, 400)
    assert "<script" not in answer.text


def test_an_id_leads_to_its_prediction(site: Site) -> None:
    client = site.client()
    answer = client.get(f"{PAGE}/", params={"pipeline": "toy", "id": f" {site.ids[0].upper()} "})
    assert (answer.status_code, answer.headers["location"]) == (303, f"{PAGE}/toy/{site.ids[0]}")
    wrong = client.get(f"{PAGE}/", params={"pipeline": "toy", "id": "42"})
    assert wrong.status_code == 400
    assert "is not a prediction id" in wrong.text


def test_the_address_that_one_would_guess_leads_to_the_search(site: Site) -> None:
    answer = site.client().get(f"{PAGE}/toy", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "/penstock/audit/?pipeline=toy")


def test_an_address_without_a_page_is_said_on_a_page(site: Site) -> None:
    answer = site.client().get(f"{PAGE}/toy/1/2/3")
    assert answer.status_code == 404 and answer.headers["content-type"].startswith("text/html")
    assert "Not found" in answer.text


def test_pages_of_a_window_lose_and_repeat_nothing(site: Site) -> None:
    client, seen, address = site.client(), [], f"{PAGE}/?pipeline=toy&{WINDOW}"
    while address:
        text = client.get(address).text
        seen += re.findall(rf'href="{PAGE}/toy/([0-9a-f-]{{36}})"', text)
        following = re.search(r'href="([^"]+)" rel="next"', text)
        address = unescape(following.group(1)) if following else ""
    assert seen == list(site.ids)


def test_a_window_without_a_row_says_that_days_expire_and_where_that_stands(site: Site) -> None:
    text = site.client().get(f"{PAGE}/?pipeline=toy&{WINDOW}&model_version=99").text
    assert "No prediction passes" in text
    assert "explanations.expire_days; <code>penstock audit events toy</code>" in text


def test_an_older_scoring_that_a_filter_finds_is_marked_and_linked_by_its_run(site: Site) -> None:
    text = site.client().get(f"{PAGE}/?pipeline=toy&{WINDOW}&model_version=1").text
    assert text.count("superseded</span>") == 50
    assert f"{PAGE}/toy/{site.ids[0]}?run_id={site.first_run}" in text
    older = site.client().get(f"{PAGE}/toy/{site.ids[0]}?run_id={site.first_run}").text
    newest = by_prediction(site.settings, site.toy, site.ids[0]).run_id
    assert "A later run predicted this again" in older
    assert f"run_id={newest}" in older
    assert f"run_id={site.first_run}" in site.client().get(f"{PAGE}/toy/{site.ids[0]}").text


def test_links_to_exports_ask_the_api_for_the_same_window(site: Site) -> None:
    client = site.client()
    text = client.get(f"{PAGE}/?pipeline=toy&{WINDOW}&min_prediction=0.4").text
    link = unescape(re.search(rf'href="({API}[^"]+format=csv)"', text).group(1))  # type: ignore[union-attr]
    asked = parse_qs(urlsplit(link).query)
    assert (asked["start"], asked["min_prediction"]) == (["2024-03-01T00:00:00+00:00"], ["0.4"])
    exported = client.get(link)
    assert exported.status_code == 200
    window = client.get(f"{PAGE}/?pipeline=toy&{WINDOW}&min_prediction=0.4&view=print").text
    assert exported.text.count("\n") - 1 == window.count('class="id"')
    one = client.get(f"{PAGE}/toy/{site.ids[0]}").text
    for link in re.findall(rf'href="({API}[^"]+)"', one):
        assert client.get(unescape(link)).status_code == 200


def test_in_the_tab_files_are_offered_as_an_address(site: Site) -> None:
    framed = {"sec-fetch-dest": "iframe"}
    text = site.client().get(f"{PAGE}/?pipeline=toy&{WINDOW}", headers=framed).text
    assert "format=csv" not in text
    assert "in a window of its own" in text


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("start=2024-03-03T00:00&end=2024-03-01T00:00", "before it starts"),
        ("start=2024-03-01T00:00", "give both ends"),
        ("start=now&end=2024-03-01T00:00", "is not a moment"),
        (f"{WINDOW}&min_prediction=high", "is not a number"),
        (f"{WINDOW}&min_prediction=nan", "give a probability"),
        (f"{WINDOW}&model_version=-1", "number of a model version"),
        (f"{WINDOW}&cursor=xyz", "is not a cursor"),
    ],
)
def test_a_wrong_question_keeps_the_form_and_says_why(site: Site, query: str, words: str) -> None:
    answer = site.client().get(f"{PAGE}/?pipeline=toy&{query}")
    assert answer.status_code == 400
    assert words in answer.text
    assert '<form class="ask"' in answer.text


def test_what_does_not_exist_says_so_and_leads_back(site: Site) -> None:
    client = site.client()
    gone = client.get(f"{PAGE}/toy/{UNKNOWN}")
    assert gone.status_code == 404
    assert f'href="{PAGE}/"' in gone.text
    assert client.get(f"{PAGE}/toy/nonsense").status_code == 400
    nowhere = client.get(f"{PAGE}/?pipeline=no_such")
    assert (nowhere.status_code, "There is no such pipeline" in nowhere.text) == (404, True)


def test_the_page_tells_value_shift_training_and_origin(site: Site) -> None:
    record = explained(site)
    text = unescape(site.client().get(f"{PAGE}/toy/{record.prediction_id}").text)
    assert record.attributions is not None
    for name, shift in record.attributions.items():
        assert audit_charts.signed(shift) in text
        assert f"<td>{name}</td>" in text
    assert f"row {record.source_row} of <code>{record.source_key}</code>" in text
    assert f"/#/models/toy/versions/{record.model_version}" in text
    assert "of training rows, rank" in text
    assert text.count('<svg class="small"') == len(record.features)


def test_of_an_online_prediction_the_page_names_the_request_and_no_row(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = replace(explained(site), source_snapshot=None, source_key="request-7", source_row=None)
    monkeypatch.setattr("tasks.wiring.audit_record", lambda *_: record)
    text = site.client().get(f"{PAGE}/toy/{record.prediction_id}").text
    assert "<dt>Request</dt><dd><code>request-7</code>" in text
    assert "Row of origin" not in text and "None" not in text


def test_the_landing_page_says_what_can_be_asked(site: Site) -> None:
    words = "Choose the pipeline that made the prediction"
    assert words in site.client().get(f"{PAGE}/").text
    assert words not in site.client().get(f"{PAGE}/?pipeline=toy").text


def test_a_value_that_training_never_saw_is_marked(site: Site) -> None:
    hostile = next(
        record
        for record in (by_prediction(site.settings, site.toy, identifier) for identifier in site.ids)
        if record.features["city"] == EVIL and record.bundle_digest == site.bundle
    )
    text = site.client().get(f"{PAGE}/toy/{hostile.prediction_id}").text
    row = text.split("<td>city</td>", 1)[1].split("</tr>", 1)[0]
    assert "unseen" in row


def test_without_the_bundle_the_page_says_what_is_missing(site: Site) -> None:
    older = site.client().get(f"{PAGE}/toy/{site.ids[0]}?run_id={site.first_run}")
    assert older.status_code == 200
    assert "bundle is no longer in the store" in older.text


def test_an_explanation_that_was_not_kept_is_computed_when_asked_for(site: Site) -> None:
    record = next(
        record
        for record in (by_prediction(site.settings, site.toy, identifier) for identifier in site.ids)
        if record.explanation is None
    )
    path = f"{PAGE}/toy/{record.prediction_id}"
    shifts = dict.fromkeys(record.features, 0.5)
    answers: list[Any] = [
        replace(record, attributions=shifts, base_value=-1.0, residual=0.0, explanation="computed"),
        ServiceUnavailable("others are being computed", which="explanation", fix="ask again"),
    ]

    def explain(*_: Any) -> AuditRecord:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        found: AuditRecord = answer
        return found

    client = site.client()
    client.app.routes[-1].app.dependency_overrides[audit_api.read_explainer] = lambda: explain
    plain = client.get(path).text
    assert "No explanation of this prediction was kept" in plain
    assert f'href="{path}?explain=1"' in plain
    computed = client.get(f"{path}?explain=1").text
    assert "Computed for this page" in computed
    assert '<svg class="waterfall"' in computed
    busy = client.get(f"{path}?explain=1")
    assert busy.status_code == 503
    assert busy.headers["retry-after"]
    assert "others are being computed" in busy.text
    assert "<td>price</td>" in busy.text
    assert answers == []


def test_an_erased_prediction_shows_what_remains_and_nothing_else(site: Site) -> None:
    record = explained(site)
    erased = replace(
        record,
        entity_id=None,
        prediction=None,
        features={},
        attributions=None,
        top_features=(),
        base_value=None,
        residual=None,
        explanation=None,
        erasure_id="e" * 16,
    )
    client = site.client(read_wiring=with_record(site, erased))
    text = client.get(f"{PAGE}/toy/{record.prediction_id}?explain=1").text
    assert "The data subject was erased" in text
    assert "e" * 16 in text
    assert record.run_id in text
    assert str(record.entity_id) not in text
    assert "<svg" not in text


def test_the_print_view_has_a_page_size_and_no_navigation(site: Site) -> None:
    for path in (f"/toy/{site.ids[0]}?view=print", f"/?pipeline=toy&{WINDOW}&view=print"):
        text = site.client().get(PAGE + path).text
        assert "@page { size: A4" in text
        assert "<form" not in text
        assert "<nav" not in text


def test_a_runs_tab_leads_to_the_window_that_it_predicted(site: Site) -> None:
    from datetime import date

    from tasks.wiring.audit_pages import RunWindow

    ours = SimpleNamespace(
        run_window=lambda *_: RunWindow("r", date(2024, 3, 1), date(2024, 3, 2), 2),
        utc_bounds=wiring.utc_bounds,
    )
    answer = site.client(read_wiring=ours).get(f"{PAGE}/run/toy.score/manual__2024-03-03T00:00:00+00:00")
    assert answer.status_code == 303
    asked = parse_qs(urlsplit(answer.headers["location"]).query)
    assert asked == {
        "pipeline": ["toy"],
        "start": ["2024-03-01T00:00"],
        "end": ["2024-03-03T00:00"],
        "model_version": ["2"],
    }
    none = site.client(read_wiring=SimpleNamespace(run_window=lambda *_: None))
    assert "has published no predictions" in none.get(f"{PAGE}/run/toy.train/r1").text


def test_the_metadata_store_says_which_dag_run_predicted(site: Site) -> None:
    from datetime import date

    from tasks.wiring.audit_pages import prediction_links, run_window
    from tasks.wiring.context import open_context

    record = by_prediction(site.settings, site.toy, site.ids[0])
    assert prediction_links(site.settings, "toy", record).dag_run == ""
    open_context(site.settings, "toy").metadata.record_run(
        site.toy,
        record.run_id,
        status="published",
        first_day=date(2024, 3, 1),
        last_day=date(2024, 3, 2),
        dag_run="toy.score/manual 1",
    )
    links = prediction_links(site.settings, "toy", record)
    assert links.dag_run == f"{site.settings.airflow_url}/dags/toy.score/runs/manual%201"
    found = run_window(site.settings, "toy.score", "manual 1")
    assert found is not None
    assert (found.run_id, found.last_day) == (record.run_id, date(2024, 3, 2))
    assert run_window(site.settings, "toy.train", "manual 1") is None
    assert run_window(site.settings, "no_such.score", "manual 1") is None


def bars(svg: str) -> list[tuple[float, float, str]]:
    """(left, right, title) of every bar of a waterfall, top to bottom."""
    root = ElementTree.fromstring(svg)
    found = []
    for polygon in root.iter("polygon"):
        xs = [float(point.split(",")[0]) for point in polygon.get("points", "").split()]
        found.append((min(xs), max(xs), polygon.findtext("title") or ""))
    return found


shift = st.floats(-20, 20, allow_nan=False).map(lambda x: round(x, 4))


@given(
    shifts=st.lists(shift, min_size=1, max_size=30),
    base=st.floats(-12, 12),
    residual=st.floats(-0.5, 0.5),
    k=st.integers(1, 15),
)
def test_the_waterfalls_bars_add_up_from_the_base_value_to_the_logit(
    record: AuditRecord, shifts: list[float], base: float, residual: float, k: int
) -> None:
    named = {f"f{i}": value for i, value in enumerate(shifts)}
    given_ = replace(
        record, features=dict.fromkeys(named, 1.5), attributions=named, base_value=base, residual=residual
    )
    steps = waterfall_steps(given_, k)
    logit = base + sum(shifts) + residual
    ends = [base] if not steps else [step.end for step in steps]
    assert ends[-1] == pytest.approx(logit, abs=6e-4)
    assert all(after.start == before.end for before, after in itertools.pairwise(steps))
    sizes = [abs(step.shift) for step in steps if not step.rest]
    assert sizes == pytest.approx(sorted(sizes))
    drawn = bars(waterfall(given_, k))
    assert len(drawn) == len(steps)
    moved = [abs(step.shift) for step in reversed(steps)]
    widest = max(range(len(moved)), key=moved.__getitem__)
    if moved[widest] > 0.01:
        per_logit = (drawn[widest][1] - drawn[widest][0]) / moved[widest]
        for (left, right, title), size, step in zip(drawn, moved, reversed(steps), strict=True):
            assert right - left == pytest.approx(size * per_logit, abs=0.3)
            assert title.endswith(audit_charts.signed(step.shift))


@pytest.fixture(scope="session")
def record(audit_site: Site) -> AuditRecord:
    return explained(audit_site)


def test_a_waterfall_is_told_to_who_cannot_see_it_and_hides_no_markup(record: AuditRecord) -> None:
    named = {EVIL: 0.75, "b": -0.5}
    odd = replace(record, features={EVIL: EVIL, "b": 2.0}, attributions=named, base_value=0.0, residual=0.0)
    root = ElementTree.fromstring(waterfall(odd))
    assert root.get("role") == "img"
    labelled = root.get("aria-labelledby", "").split()
    assert [root.find(f"*[@id='{name}']") is not None for name in labelled] == [True, True]
    said = root.findtext("desc") or ""
    assert f"{EVIL} = {EVIL}"[:39] in said
    assert "+0.750" in said
    assert "b = 2: −0.500" in said
    assert "prediction 56.2% (logit +0.250)" in "".join(root.itertext())


NUMBERS = FeatureDistribution(
    "price", "numeric", 100, 10, (0, 40, 30, 20, 0), edges=(0.0, 1.0, 2.0, 4.0), low=0.0, high=3.9
)
TEXTS = FeatureDistribution("city", "categorical", 100, 0, (60, 40), categories=("Bern", "Chur"))


@pytest.mark.parametrize(
    ("distribution", "value", "words", "unseen"),
    [
        (NUMBERS, 1.5, "above 44%, below 22% of training values", False),
        (NUMBERS, 9.0, "above all training values", True),
        (NUMBERS, -1.0, "below all training values", True),
        (NUMBERS, None, "null, as 10.0% of training rows", False),
        (TEXTS, "Chur", "40.0% of training rows, rank 2 of 2", False),
        (TEXTS, "Genf", "unseen in training", True),
        (TEXTS, None, "unseen in training", True),
    ],
)
def test_a_value_is_placed_in_its_training_distribution(
    distribution: FeatureDistribution, value: Any, words: str, unseen: bool
) -> None:
    said, marked = distribution_words(distribution, value)
    assert words in said
    assert marked is unseen
    root = ElementTree.fromstring(audit_charts.distribution_chart(distribution, value))
    has_mark = any(shape.get("class") == "here" for shape in root.iter("polygon"))
    assert has_mark == (value is not None and not (unseen and distribution is TEXTS))


def test_a_numeric_chart_puts_the_mark_at_the_values_place() -> None:
    def at(value: float) -> float:
        root = ElementTree.fromstring(audit_charts.distribution_chart(NUMBERS, value))
        return next(float(line.get("x1", "")) for line in root.iter("line") if line.get("class") == "here")

    assert at(-50.0) == pytest.approx(4.0)
    assert at(50.0) == pytest.approx(186.0)
    assert at(1.0) < at(1.5) < at(2.0)


def test_the_training_distribution_counts_training_days_only(site: Site) -> None:
    from datetime import date

    found = training_distribution(site.settings, "toy", site.bundle)
    assert found is not None
    assert (found.first_day, found.last_day) == (date(2024, 1, 1), date(2024, 1, 1))
    by_name = {one.name: one for one in found.features}
    assert set(by_name) == {"price", "visits", "city", "device"}
    for one in found.features:
        assert sum(one.counts) + one.nulls == one.rows == found.rows
    assert training_distribution(site.settings, "toy", "0" * 64) is None


def test_the_training_distribution_is_read_without_loading_torch_or_the_model(site: Site) -> None:
    code = (
        "import sys\n"
        "from tasks.core import Settings\n"
        "from tasks.wiring import training_distribution\n"
        "found = training_distribution(Settings.from_environment(), 'toy', sys.argv[1])\n"
        "print(found.rows, 'torch' in sys.modules, any('model.py' in str(m) for m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, site.bundle],
        env={**os.environ, **site.settings.as_environment()},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["240", "False", "False"]
