"""How often the monitor alarms without a cause on half a year of real flights, and how soon it says of 16 faults what they are.

    python benchmarks/monitor_decisions.py                 (everything, about half an hour)
    python benchmarks/monitor_decisions.py --only ours     (without the other monitors and the costs, about four minutes)
    python benchmarks/monitor_decisions.py --year turned   (January to June, with a model and a reference of July to December)

The pipeline `flight_delay` is trained on January to June 2013 by its own training step (June is its validation month) and
monitored from July to December as a daily schedule would: one run a day over the last seven days, labels a day late
(`monitor_replay.py`). First on the days as they were; then with each of 16 kinds of fault from 12 start days
(`monitor_faults.py`), seeded, one in each 13 days. A fault counts as caught when a run says, of a faulty day, something that calls for an
action, that the clean replay does not say of that day, and that is about a column which the fault touches (or the day as a whole).

The same days go through the defaults of other monitors (`monitor_peers.py`), which live in `.penstock/venv-monitors`, made here from
`requirements-monitors.txt` when it is missing. The same rule says what they catch: a column in alarm that the fault touches and that is not in
alarm on the clean day; for Evidently's data set, the day alarms and the clean one does not.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from monitor_costs import RUNS, Costs, Scoring, measure_costs
from monitor_faults import ALERT, ASK, FAULTS, HOLD, MORE, refit, starts_of
from monitor_replay import Caught, Run, case, clean_runs, compared, rollback_days
from monitor_world import Scored, World, days_between, make_world
from monitor_year import AS_IT_WAS, ROOT, YEARS

from tasks.core.ids import digest_file, digest_json
from tasks.model.bundle import ENCODED_COLUMN, SCORE_COLUMN
from tasks.model.profile import ATTRIBUTIONS
from tasks.model.scorer import GOLDEN_TOLERANCE

RESULTS = Path(__file__).with_name("results")
REQUIREMENTS = Path(__file__).with_name("requirements-monitors.txt")
PEERS = ROOT / ".penstock" / "venv-monitors"
COMMAND = "python benchmarks/monitor_decisions.py"
COMMAND_TURNED = f"{COMMAND} --year turned"
NAMED = {"null burst, 5 %": 1, "category remap, 20 %": 1, "concept flip, 30 %": 4, "encoder skew": 7}
"""Days within which these should be said, by the median."""
UNEXPLAINED = "unexplained"
SEAM = "the turn of the year itself: the aircraft built in 2013, 4 % of the rows at the end of December, are gone"
"""No event of the world; it comes of turning the year around."""
EVENTS = {
    date(
        2013, 11, 29
    ): "the day after Thanksgiving: a third fewer flights than on other Fridays, and other routes",
    date(
        2013, 12, 12
    ): "the week of fog and snow from 5 December on: of a route's flights in seven days 47 % were late, the most since early July",
    date(2013, 12, 13): "the same week",
    date(2013, 12, 25): "Christmas: holiday timetable",
    date(2013, 12, 31): "the weather table of the package ends on 30 December: every weather column is null",
    **{date(2013, 1, day): SEAM for day in (3, 5, 6, 7)},
    date(2013, 2, 8): "the blizzard of 8 and 9 February: 51 % of the flights were cancelled",
    date(2013, 2, 9): "the same blizzard: 58 % were cancelled, almost nothing left before noon",
    date(
        2013, 3, 8
    ): "a snowstorm: 18 % of the flights were cancelled, 79 % of the others late, the most of the half-year",
    date(2013, 3, 9): "what the labels of that day say",
}
"""What happened in the world on an alarm day, by the day as it was."""
TOOLS = {
    "KS": ("ks",),
    "PSI": ("psi",),
    "Evidently, any column": ("evidently",),
    "Evidently, data set": ("evidently data set",),
    "NannyML, JS distance": ("nannyml",),
    "NannyML, and AUC": ("nannyml", "nannyml realised", "nannyml estimated"),
}
FAULT_COLUMNS = ("fault", "seen by", "caught, of 12", "first day", "days", "ends in", "right")
LATE = ("nannyml realised",)
"""Known a day later than the rest: they need labels."""


@dataclass(frozen=True)
class Peer:
    """One other monitor's whole result."""

    alarm_days: int
    caught: dict[str, list[int | None]]
    """By fault: days until it was said, for each case."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("ours", "peers", "costs"), default=None)
    parser.add_argument("--year", choices=sorted(YEARS), default=AS_IT_WAS.name)
    options = parser.parse_args()
    if options.year != AS_IT_WAS.name and options.only not in (None, "ours"):
        parser.error("the other monitors and the costs are measured on the year as it was")
    logging.basicConfig(level=logging.WARNING)
    year = YEARS[options.year]
    world = make_world(validation=year.validation, year=year)
    if options.only == "costs":
        print(costs_text(measure_costs(world)))
        return 0
    runs = clean_runs(world)
    cases = replay_cases(world, {run.day: run for run in runs})
    older = make_world(validation=year.older_validation, year=year)
    pairs = compared(world, older, days_between(*year.monitored))
    rollbacks = [len(rollback_days(world, pairs, runs, asked_only=only)) for only in (True, False)]
    others = year is AS_IT_WAS and options.only in (None, "peers")
    peers = run_peers(world, cases) if others else {}
    text = tables(world, runs, cases, rollbacks, peers) + golden_text(world)
    if year is not AS_IT_WAS:
        page = HEADER_TURNED + text + LIMITS_TURNED + _versions()
        (RESULTS / "monitor_decisions_turned.md").write_text(page, encoding="utf-8")
    elif options.only is None:
        text += costs_text(measure_costs(world))
        page = HEADER + text + LIMITS + _versions(others=True)
        (RESULTS / "monitor_decisions.md").write_text(page, encoding="utf-8")
    print(text)
    return 0


def replay_cases(world: World, clean: Mapping[date, Run]) -> list[Caught]:
    """Every case of every fault; their rows are kept for the other monitors."""
    folder = peers_folder(world)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, span in (("reference", world.year.reference), ("clean", world.year.monitored)):
        whole = [_for_peers(world.scored(day)) for day in days_between(*span)]
        pq.write_table(pa.concat_tables(whole), folder / f"{name}.parquet")
    found, listed = [], []
    for number, fault in enumerate((*FAULTS, *MORE)):
        kept, starts = [], starts_of(fault, world.year.monitored)
        for index, (start, variant) in enumerate(starts):
            span = days_between(start, start + timedelta(days=fault.days - 1))
            days = [world.faulty(fault, start, variant, day) for day in span]
            found.append(case(world, clean, fault, start, variant, days))
            if fault in MORE:
                continue
            kept += [_for_peers(scored, index) for scored in days]
            channels = fault.channels(variant)
            listed.append(
                {
                    "file": f"fault-{number:02}.parquet",
                    "case": index,
                    "name": f"{fault.name} | {start}",
                    "channels": None if channels is None else sorted(channels),
                }
            )
        if kept:
            pq.write_table(pa.concat_tables(kept), folder / f"fault-{number:02}.parquet")
        print(f"{fault.name}: {[one.after_days for one in found[-len(starts) :]]}", flush=True)
    (folder / "cases.json").write_text(json.dumps(listed))
    return found


def peers_folder(world: World) -> Path:
    return world.year.home / "peers"


def _for_peers(scored: Scored, case_index: int = 0) -> pa.Table:
    rows = len(scored.scores)
    table = scored.features
    for column in table.column_names:  # one type a column, whatever a fault makes of it
        if not pa.types.is_string(table[column].type):
            at = table.column_names.index(column)
            table = table.set_column(at, column, table[column].cast(pa.float64()))
    return (
        table.append_column("score", pa.array(scored.scores))
        .append_column("label", pa.array(scored.labels, from_pandas=True))
        .append_column("day", pa.array([scored.day.isoformat()] * rows))
        .append_column("case", pa.array([case_index] * rows, pa.int32()))
    )


# -- other monitors


def run_peers(world: World, cases: Sequence[Caught]) -> dict[str, Peer]:
    """What the others say of the same days, in an environment of their own; what they have said of these very rows before is not asked again."""
    folder, said = peers_folder(world), world.year.home / "peers.json"
    script = Path(__file__).with_name("monitor_peers.py")
    asked = digest_json([digest_file(file) for file in (script, REQUIREMENTS, *sorted(folder.iterdir()))])
    listed = len(json.loads((folder / "cases.json").read_text()))
    kept = json.loads(said.read_text()) if said.exists() else {}
    if kept.get("asked") == asked and len(kept["cases"]) == listed:
        return read_peers(world, cases)
    python = PEERS / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", PEERS], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", REQUIREMENTS], check=True)
    first = world.year.validation[0].isoformat()
    subprocess.run([python, script, folder, first, asked, said], check=True)
    return read_peers(world, cases)


def read_peers(world: World, cases: Sequence[Caught]) -> dict[str, Peer]:
    folder = peers_folder(world)
    said = json.loads((world.year.home / "peers.json").read_text())
    half = 0.5 * len(said["columns"])
    listed = {item["name"]: item["channels"] for item in json.loads((folder / "cases.json").read_text())}

    def alarms(of_day: Mapping[str, list[str]], tool: str) -> set[str]:
        if tool == "evidently data set":
            return {tool} if len(of_day["evidently"]) >= half else set()
        return set(of_day.get(tool, ()))

    found = {}
    for name, tools in TOOLS.items():
        caught: dict[str, list[int | None]] = {fault.name: [] for fault in FAULTS}
        for one in cases:
            if one.fault not in caught:
                continue
            key = f"{one.fault} | {one.start}"
            channels, hits = listed[key], []
            for day, of_day in sorted(said["cases"][key].items()):
                after = (date.fromisoformat(day) - one.start).days + 1
                for tool in tools:
                    new = alarms(of_day, tool) - alarms(said["clean"][day], tool)
                    if tool in ("ks", "psi", "evidently", "nannyml") and channels is not None:
                        new &= set(channels)
                    elif tool == "evidently data set" and channels == []:
                        new = set()
                    if new:
                        hits.append(after + (tool in LATE))
            within = next(fault.days for fault in FAULTS if fault.name == one.fault)
            caught[one.fault].append(min((hit for hit in hits if hit <= within), default=None))
        days = sum(any(alarms(of_day, tool) for tool in tools) for of_day in said["clean"].values())
        found[name] = Peer(days, caught)
    return found


# -- tables


def tables(
    world: World,
    runs: Sequence[Run],
    cases: Sequence[Caught],
    rollbacks: Sequence[int],
    peers: Mapping[str, Peer],
) -> str:
    ours = Peer(
        sum(bool(run.action) for run in runs),
        {fault.name: [one.after_days for one in cases if one.fault == fault.name] for fault in FAULTS},
    )
    columns = {**peers, "Penstock": ours}
    days = len(runs)

    def row(what: str, value: Callable[[Peer], str]) -> str:
        return f"| {what} | " + " | ".join(value(column) for column in columns.values()) + " |"

    lines = [
        "| | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
        row("alarm days per 100 clean days", lambda c: f"{100 * c.alarm_days / days:.1f}"),
        row(
            "kinds of fault always caught, of 16",
            lambda c: f"{sum(None not in c.caught[f.name] for f in FAULTS)}",
        ),
        row(
            "cases caught, of 192",
            lambda c: f"{sum(d is not None for found in c.caught.values() for d in found)}",
        ),
        *(row(f"{name}: days until said", lambda c, name=name: _median(c.caught[name])) for name in NAMED),
        f"| automatic rollbacks in {days} clean days | "
        + " | ".join(["-"] * len(peers) + [f"{rollbacks[0]}"])
        + " |",
        "",
        f"Days until said are medians of 12 cases; `>` when half of them are never said. A rollback was judged on each day that asks; judged on every one of the {days} days it would be {rollbacks[1]}.",
        "",
        *clean_table(world, runs),
        "",
        *fault_table(world, cases, peers),
    ]
    return "\n".join(lines) + "\n"


def clean_table(world: World, runs: Sequence[Run]) -> list[str]:
    levels = Counter(run.action for run in runs)
    days = len(runs)
    caused = [EVENTS.get(world.year.really(run.day), UNEXPLAINED) for run in runs if run.action]
    lines = [
        "## Clean days",
        "",
        f"{days} days; any alarm {days - levels['']} ({100 * (days - levels['']) / days:.1f} per 100), of them alert {levels[ALERT]}, "
        f"hold scoring {levels[HOLD]}, ask a person {levels[ASK]}; without a cause in the world: {sum(cause in (SEAM, UNEXPLAINED) for cause in caused)}.",
        "",
        "| day | action | what was said | what happened |",
        "|---|---|---|---|",
    ]
    for run in runs:
        if run.action:
            said = "; ".join(seen.text for seen in run.news[:4])
            more = f" and {len(run.news) - 4} more" if len(run.news) > 4 else ""
            day = world.year.really(run.day)
            lines.append(f"| {day:%a %d %b} | {run.action} | {said}{more} | {EVENTS.get(day, UNEXPLAINED)} |")
    return lines


def fault_table(world: World, cases: Sequence[Caught], peers: Mapping[str, Peer]) -> list[str]:
    lines = [
        "## Faults",
        "",
        "*First day*: cases said in the run of their first day. *Days*: median and longest. *Right*: the action that the kind calls for, and "
        "in how many cases the first word of the monitor, or any within the case, called for it."
        + (" Others: cases caught, of 12." if peers else ""),
        "",
        "| " + " | ".join((*FAULT_COLUMNS, *peers)) + " |",
        "|---" * (len(FAULT_COLUMNS) + len(peers)) + "|",
    ]
    for fault in (*FAULTS, *MORE):
        mine = [one for one in cases if one.fault == fault.name]
        after = [one.after_days for one in mine]
        known = [days for days in after if days is not None]
        actions = Counter(one.action for one in mine if one.action)
        first = sum(one.action == fault.right for one in mine)
        ever = sum(fault.right in one.actions for one in mine)
        name = f"*{fault.name}*" if fault in MORE else fault.name
        cells = [
            f"{name}: {fault.story} ({', '.join(f'`{v}`' for v in fault.variants)})",
            _seen_by(mine),
            str(len(known)),
            str(sum(days == 1 for days in known)),
            f"{_median(after)}, {max(known, default='-')}",
            ", ".join(f"{action} {count}" for action, count in actions.most_common()),
            f"{fault.right}: {first}, {ever}",
            *(_caught(peer.caught.get(fault.name)) for peer in peers.values()),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    counted = {fault.name for fault in FAULTS}
    missed = [_named(world, one) for one in cases if one.after_days is None and one.fault in counted]
    never = "; ".join(missed) or "none"
    lines += ["", f"The rows in italics are not among the sixteen. Never said: {never}."]
    return lines


def _seen_by(cases: Sequence[Caught]) -> str:
    kinds = Counter(
        "labels" if one.action == ASK else ATTRIBUTIONS if one.by == {ATTRIBUTIONS} else "inputs"
        for one in cases
        if one.action
    )
    return " and ".join(kind for kind, _ in kinds.most_common()) or "nothing"


def _caught(after: Sequence[int | None] | None) -> str:
    return "" if after is None else str(sum(days is not None for days in after))


def _named(world: World, one: Caught) -> str:
    return f"{one.fault} `{one.variant}` {world.year.really(one.start):%d %b}"


def _median(after: Sequence[int | None]) -> str:
    known = sorted(days if days is not None else 10**6 for days in after)
    middle = statistics.median(known)
    if middle < 10**5:
        return f"{middle:g}"
    return ">" if any(days is not None for days in after) else "never"


def golden_text(world: World) -> str:
    """Whether the replay of golden rows, on loading a bundle, sees the encoder skew that labels take days to show."""
    scorer = world.scorer
    golden = scorer.bundle.golden.drop_columns([ENCODED_COLUMN, SCORE_COLUMN])
    encoded = refit(scorer, scorer.features(golden))
    scores = np.asarray(scorer.bundle.golden[SCORE_COLUMN].to_numpy())
    moved = int((np.abs(scorer.predict(encoded) - scores) > GOLDEN_TOLERANCE).sum())
    return (
        f"\nThe replay of golden rows, which every load of a bundle does, sees the encoder skew at once: {moved} of {len(scores)} "
        "golden predictions move, and nothing is scored. The row above is what is left if the skew arises after that.\n"
    )


def costs_text(costs: Costs) -> str:
    lines = [
        f"| {what} | {_scoring_row(every)} | {_scoring_row(own)} |"
        for what, (every, own) in costs.scoring.items()
    ]
    return f"""
## Cost

| | CPU-seconds |
|---|---|
| reading {costs.shards} profiles of {costs.rows:,} rows in all, merging them and judging the day ({costs.channels} channels) | {costs.judge_s:.2f} |
| of it, merging | {costs.merge_s:.3f} |
| the same rows read again from Parquet, one KS test a numeric column (scipy) | {costs.ks_s:.1f} |
| ratio | {costs.ks_s / costs.judge_s:.0f} |

| scoring: read, features, score, profile, write, commit | with every row counted | of it, profiling | share | as it is | of it, profiling | share |
|---|---|---|---|---|---|---|
{chr(10).join(lines)}

CPU-seconds; of {RUNS} runs each, in turn, the one with the median share.
"""


def _scoring_row(run: Scoring) -> str:
    return f"{run.scoring_s:.2f} | {run.profile_s:.3f} | {run.share:.1%}"


def _versions(*, others: bool = False) -> str:
    import torch

    said = f"\n`{COMMAND if others else COMMAND_TURNED}`, {platform.system()}, Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}"
    if not others:
        return said + ".\n"
    code = (
        "import importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in "
        "('evidently', 'nannyml', 'scipy', 'pandas', 'numpy')))"
    )
    asked = [PEERS / "bin" / "python", "-c", code]
    theirs = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    return f"{said}; the others: {theirs}.\n"


HEADER = """# What the monitor says, of clean days and of faults

Made by `benchmarks/monitor_decisions.py`, which says how. `flight_delay` (23 numeric and 4 categorical features, one pair, the score, attributions of every row: 30 channels),
trained on 1 January to 31 May 2013 with June as validation by its own training step, monitored from 1 July to 31 December: one run a day over
the last seven days, labels a day late. Nothing of July to December takes part in calibration. Faults lie between the raw rows and the model, 12 start days
each; a case lasts 14 days, 28 for those that labels alone were expected to show. *Days until said* count runs from the first faulty day on, that one
included; a day's labels are in the run of the next day, so that what labels show takes at least 2.

All tools see the same features and scores of the same days. They have their defaults: KS with p below 0.05 (chi-square for categories), PSI above
0.2 on deciles, Evidently's `ValueDrift` on each column (the tests of its `DataDriftPreset`, with equal values, without its charts) and its data set rule (half of the columns),
NannyML's univariate Jensen-Shannon distance by day with its thresholds of three standard deviations; *and AUC* adds its realised and estimated AUC
with June as reference. What fires on most clean days can hardly say anything new of a faulty one: that is why the first two rows belong together. (Counted without
regard to the clean day, a tool that alarms daily would catch every fault on its first day, and every day without one too.)

"""

LIMITS = """
## What these figures do not say

- **One year of one airport city.** The monitor's rules were chosen with replays of May to December before (with another model), so the alarm rate is not that of unseen months: with the [year turned around](monitor_decisions_turned.md) it was 5.5 in 100 as first measured, and 15 of 16 kinds are always caught. What is
  calibrated, and the model, come from January to June alone. Two rules (a pair's association, the share of new values) were added because a first run
  of this benchmark showed that they were missing: it caught 12 of 16 kinds always (category remap 10 of 12, stale features 10, pair shuffled 0, gradual shift 6).
  A third was changed: attributions alarmed on five clean Wednesdays in September and November (4.3 alarm days per 100), because the weekday has one value a day, on Wednesdays with attributions that
  sum to about nothing, and their sign turned. A feature whose rows lie in one cell is no longer compared; on July to December nothing of attributions is above z 2.8 since (3.5 twice would alarm), on May to December
  with the other model of [attribution_drift](attribution_drift.md) nothing above 3.3.
- **Gradual shift** was caught in 6 cases of 12 before each feature's mean was compared with what the other means say: wind and a route's delays of the past week move by as much on their own. Two other detectors had been tried, each calibrated on January to
  June, and not kept. A CUSUM on each feature's mean beside that of four same weekdays, with or without the last two weeks left out (k 0.5 to 1.5 deviations): clean days reach 18 to 53 in July to September and 94 to 229 in October to December (the winter
  timetable), five of the missed cases 0 to 15. The mean of seven days beside that of 28 days before: clean days reach 3.9 to 9.8 deviations, the missed cases 0.8 to 4.3. The comparison with other means has the thresholds of all channels. How it is made was chosen with these months, and with two shorter references beside them: what is left over alone (4 alarm days of its own in 184, but 20 in 245
  with January to April as reference, in a summer whose relations are others), less that of the last four same weekdays (1 and 1; wind missed in 1 case, and in 3 with the short reference), less that of two to six weeks before (3 and 2; the one that is kept). Here it alarms on two clean days of its own,
  with the model and reference of January to April on two of 245. A column that follows no other is not helped by it. Wind was said after 11 to 14 days of 14: by then it has grown by 0.7 deviations or more.
- **Nulls that are facts.** The pipeline says that the delay of recent departures may be null where there were none (`drift.null_when`). On these days no null of that kind had held scoring, as it had on two days of the [turned year](monitor_decisions_turned.md); before it, a
  burst of nulls was said on its first day in 8 cases of 12, after 5 days at the longest. The price is in the rows in italics: departures that are missing for six hours are an alert.
- **The goal that is missed.** *Profiling's share* of scoring, where 3 % was wanted: it is reached with layers of 512, 512 and 256. With smaller networks it is 4.6 % (256 and 128) and 5.9 % (one layer of 32)
  of a day of 300,000 rows, 3.7 % (one layer of 32; 11.1 % with every row counted; one run) of 1,200,000, and of days as small as here 9 %, some 2.5 ms a shard. What remains are a few nanoseconds a value, the way to rows far apart, and what calls cost in a small shard.
- **Encoder skew** took 9 days, by labels alone, before profiles had attributions. Its first word is now an alert (the model reads values otherwise than before); labels would ask a person later.
- **The cost of profiling** is that of other runs on an idle machine where the three scoring runs of a large day (one layer of 32, the same with every row explained, layers of 512, 512 and 256) had 12.5 %, 14.7 % and 3.7 % before columns were counted by value, and 9.8 %, 9.0 % and 2.3 % since, with every row counted. Since short columns are counted all at once, the profile of 950 rows takes 0.45 of what it took (the two in turn, 1.0 ms in place of 3.0 at best). It is that of rows of one day, repeated until there are 300,000: values repeat more than in a feed of that size. Profiling 50,000 rows of a month, 10 to 12,000 different values a column, took 10.5 ms in place of
  17, with attributions of all of them 18.5 in place of 26.5; a column without any repetition takes what it took. The five null conditions are later than these measurements: they add 7 % to profiling (342,642 rows, median of 7).
- **Actions.** Departure times in UTC and remapped destinations end in an alert: they look like drift of known values. Holding would be right.
- **In life scoring would be held** after the first data fault; here the days go on, so that later words can be counted. The gate on incoming data (Great Expectations) is left out; it would refuse
  some of these faults before they are scored.
- **The others** have their defaults, on purpose: nobody has tuned them for this data. NannyML's realised AUC has 30 days of June as reference, whose spread puts its lower limit at 0.45. Where a column is in alarm
  on the clean day already, its alarm on the faulty day says nothing new; that is what keeps tools low that fire daily. A test that fires daily on every column was not made to decide.
"""

HEADER_TURNED = """# The same with the year turned around: January to June

Made by `benchmarks/monitor_decisions.py --year turned`. The rules of the monitor were chosen with replays of May to December 2013, so that the alarm rate [there](monitor_decisions.md) is
not that of unseen months. Here everything is the other way round: the model is trained on July to November with December as validation, by the same step, the monitor is calibrated on the same months, and January to
June are monitored. They come 52 weeks later, after December, so that what other flights did in the week before is known on the first day, and weekdays stay; days below are
named as they were. Of these months the monitor's rules had seen May and June before, January to April never.

Nothing was changed for it before it was first measured: 10 alarm days, 5.5 in 100, three of them asking a person. Two things were changed after that, and the figures here are those with them: a day
counts in the CUSUM of performance with z -4 at most, and the pipeline says where the delay of recent departures may be null (`drift.null_when`: where there were none). Faults, start days (one in each twelve) and counting are those of the other page.

"""

LIMITS_TURNED = """
## What these figures do not say

- **First 5.5, then 4.4, then 3.9.** At most 5 alarm days in 100 clean days were wanted, with a cause in the world for each, and at most 1 that asks a person. As first measured it was 5.5, and 1.7 that ask. On 8 March the model ranked worse than its scores
  promise by six deviations; the sum of days stayed above its limit on the two days after it, on which the model was right, and asked again. Since then a day counts in the sum with z -4 at most (a day beyond it alarms by itself), which leaves out
  10 and 11 March: 8 alarm days, 0.6 in 100 that ask. Whatever the days are, the first alarm comes when it came before (a test says so), and on July to December nothing is otherwise. But this figure is
  no longer that of unseen months.
- All alarm days lie in January to March: of the 120 days from January to April, which no rule had seen, they are 8.3 in 100 as first measured and 5.8 now; none in May and June.
- **Four of the seven are of the turn itself.** Between 30 December and 1 January the data go back by a year, and with them the airlines' fleets. A monitor is right to say that the aircraft are others;
  without these days it is 1.7 in 100 (3.3 as first measured).
- **A blizzard is no data fault.** Scoring was held on 8 and 9 February because nobody had departed for three hours, so that what departures say was null: of the delays of the same carrier's departures 28 and 60 %. Since the pipeline says that these columns may be null
  where the number of departures is 0, nothing is said on the 8th, and the 9th is an alert about that number. Nulls beside it are told exactly, so that a burst of 5 % is said on its first day in 11 cases of 12, in place of 8.
- **What that costs.** A feed of departures that is gone looks like a closed airport in these columns. Without the condition six hours of it hold scoring on the first day in all of 12 cases; with it they are an alert on the first day
  in all of 12, because the number of departures is a feature and is 0 more often than ever. Gone for a whole day it holds scoring, as before: no value is left, and the number is always the same.
- **Slices would not have told the two apart.** On 8 February 25, 32 and 28 % of the flights from the three airports knew of no departure of their carrier, on the 9th 64, 49 and 70 %: a storm spreads nulls as a broken feed does.
- **Gradual shift** was missed in 2 cases of 12: wind from 14 January on reached z 2.5 in its two weeks, a route's delays from 13 February 3.8 and 3.5 (3.5 twice in three days is said). A third, wind from 7 March, is said on its last day since the days of the blizzard
  count among those that it is compared with. On July to December none was missed, by a comparison whose form was chosen there. Twice as steep, all are said.
- **Faults that took longer**: 40 % fewer rows 13 days in one case. Flipped labels took 2 days in place of 4.
"""


if __name__ == "__main__":
    sys.exit(main())
