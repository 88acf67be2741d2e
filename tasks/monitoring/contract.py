"""Tier 1: does today's partition keep the contract that training days set?

Every limit is read off the reference days, widened by what a sample of today's size can do by chance. A
breach is about the feed, not about the model: its answer is to hold scoring, never to change the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta

import numpy as np

from tasks.core.spec import PipelineSpec
from tasks.model.binning import SEEN_BITS
from tasks.model.numeric_counts import NumericCounts
from tasks.model.profile import Profile, ProfileSpec
from tasks.monitoring.drift import (
    POOL_DAYS,
    Baseline,
    FloatArray,
    association_loss,
    null_share,
    rows_of_nulls,
    same_weekdays,
)
from tasks.monitoring.signals import FAULT, WARN, ContractFinding

_LOOK_BACK_DAYS = 35
_TIMES = 9.0
"""From this change of volume on, it is told as a multiple."""
_STALE_DAYS = 7
_LEAST_NEW = 0.1
"""A feature that on some reference day has a smaller share of new values than this repeats itself by nature."""
_TELLING_MARKS = 40
"""Marks that values of today alone must be expected to set before their absence says anything."""


@dataclass(frozen=True)
class ContractLimits:
    """Reference shares by channel, one for each reference day, and what those days never did."""

    nulls: Mapping[str, FloatArray]
    unseen: Mapping[str, FloatArray]
    novel_pairs: Mapping[str, FloatArray]
    out_of_range: Mapping[str, FloatArray]
    distinct: Mapping[str, FloatArray]
    never_stale: frozenset[str]
    """Numeric channels whose set of values never equalled that of a day up to a week before."""
    least_new: Mapping[str, float]
    """By numeric channel: the smallest share of its values that were new beside a day up to a week before."""
    never_empty: frozenset[str]
    """Features with a null condition of which no day was without any value."""
    confirmed: frozenset[str] = frozenset()
    """Channels of which a person has confirmed days as the new normal; the empty name is the number of rows."""
    confirmed_rows: tuple[int, ...] = ()
    confirmed_nulls: Mapping[str, float] = field(default_factory=dict)
    """By confirmed channel: the largest share of nulls of its confirmed days. A quantile of all days would hardly see one of them."""


def limits_of(baseline: Baseline) -> ContractLimits:
    """The contract of the baseline's reference days."""
    days = baseline.days
    near = [(days[day], days[other]) for day in days for other in _week_before(day, days)]
    numeric = [g.name for g in baseline.grid.numeric]
    stale = {name for name in numeric if any(_same_values(a.numeric[name], b.numeric[name]) for a, b in near)}
    new = {name: [_new_share(a.numeric[name], b.numeric[name])[0] for a, b in near] for name in numeric}
    return replace(
        _limits(baseline.grid, list(days.values())),
        never_stale=frozenset(set(numeric) - stale),
        least_new={name: min(shares, default=0.0) for name, shares in new.items()},
        never_empty=frozenset(
            name for name in _may_be_null(baseline.grid) if not any(_empty(p, name) for p in days.values())
        ),
    )


def widened(
    limits: ContractLimits, grid: ProfileSpec, channels: frozenset[str], days: Sequence[Profile]
) -> ContractLimits:
    """The contract with days that a person has confirmed as normal, for the channels of their shift only.

    Args:
        channels: As `Confirmed.channels` names them.
        days: At least one, each with rows.
    """
    more = _limits(grid, days)
    rows = tuple(profile.rows for profile in days) if "" in channels else ()
    most = {name: float(shares.max()) for name, shares in more.nulls.items() if name in channels}
    return replace(
        limits,
        unseen=_joined(limits.unseen, more.unseen, channels),
        novel_pairs=_joined(limits.novel_pairs, more.novel_pairs, channels),
        out_of_range=_joined(limits.out_of_range, more.out_of_range, channels),
        distinct=_joined(limits.distinct, more.distinct, channels),
        never_empty=limits.never_empty - channels,
        confirmed=limits.confirmed | channels,
        confirmed_rows=(*limits.confirmed_rows, *rows),
        confirmed_nulls={
            **limits.confirmed_nulls,
            **{name: max(share, limits.confirmed_nulls.get(name, 0.0)) for name, share in most.items()},
        },
    )


def _joined(
    shares: Mapping[str, FloatArray], more: Mapping[str, FloatArray], channels: frozenset[str]
) -> dict[str, FloatArray]:
    return {
        name: np.append(found, more[name]) if name in channels else found for name, found in shares.items()
    }


def _limits(grid: ProfileSpec, days: Sequence[Profile]) -> ContractLimits:
    def over(share: Callable[[Profile, str], float], names: Sequence[str]) -> dict[str, FloatArray]:
        return {name: np.array([share(profile, name) for profile in days], np.float64) for name in names}

    numeric = [g.name for g in grid.numeric]
    categorical = [g.name for g in grid.categorical]
    return ContractLimits(
        nulls=over(null_share, [*numeric, *categorical]),
        unseen=over(lambda profile, name: profile.categorical[name].unseen / profile.rows, categorical),
        novel_pairs=over(
            lambda profile, name: profile.pairs[name].novel / profile.rows, [g.name for g in grid.pairs]
        ),
        out_of_range=over(_out_share, numeric),
        distinct=over(lambda profile, name: profile.numeric[name].distinct, numeric)
        | over(_used, categorical),
        never_stale=frozenset(),
        least_new={},
        never_empty=frozenset(),
    )


def check_contract(
    spec: PipelineSpec,
    baseline: Baseline,
    limits: ContractLimits,
    day: date,
    profile: Profile,
    known: Mapping[date, Profile],
    *,
    pool: Sequence[date],
    pooled: Profile,
    seen: Mapping[date, Profile],
    dead_letters: int,
) -> tuple[tuple[ContractFinding, ...], float | None]:
    """All findings of a day, faults first, and the rows it was expected to have.

    Args:
        known: Reference days, and earlier scored days that may serve as one.
        pool: The last four same weekdays of these, or fewer.
        pooled: Their profiles, merged.
        seen: Earlier days whatever was found on them: a batch that comes again is recognised among these.
        dead_letters: Rows of the day that could not be scored.
    """
    findings: list[ContractFinding] = []
    expected = _expected_rows(day, known)
    findings += _volume(spec, day, profile, expected, limits.confirmed_rows)
    if dead_letters:
        share = dead_letters / (dead_letters + profile.rows)
        limit = spec.inference.max_dead_letter_share
        findings.append(
            ContractFinding(
                check="dead_letters",
                severity=FAULT if share > limit else WARN,
                channel="",
                detail=f"{dead_letters:,} of {dead_letters + profile.rows:,} rows could not be scored",
                value=share,
                limit=limit,
            )
        )
    if profile.rows:
        findings += _repeat(day, profile, seen)
        if profile.score.nulls:
            findings.append(
                ContractFinding(
                    check="scores",
                    severity=FAULT,
                    channel="score",
                    detail=f"{profile.score.nulls:,} scores are not numbers",
                    value=profile.score.nulls / profile.rows,
                    limit=0.0,
                )
            )
    if profile.rows >= spec.drift.min_rows and baseline.days:
        earlier = [known[other] for other in sorted(known) if day - timedelta(days=3) < other < day]
        shifts = baseline.null_shifts if len(pool) == POOL_DAYS else {}
        # The days before a confirmed shift say nothing of it.
        shifts = {name: shift for name, shift in shifts.items() if name not in limits.confirmed}
        findings += _nulls(limits, shifts, profile, pooled, earlier)
        findings += _categories(limits, profile)
        if len(pool) == POOL_DAYS:
            findings += _associations(baseline, profile, pooled, limits.confirmed)
        findings += _ranges(limits, profile)
        findings += _frozen(limits, profile)
        findings += _stale(limits, day, profile, seen)
    return tuple(sorted(findings, key=lambda f: (f.severity != FAULT, f.check, f.channel))), expected


def _chance(share: float, rows: int) -> float:
    """Three standard errors of a share, and at least three rows: what a sample does by itself."""
    return max(3 * float(np.sqrt(max(share * (1 - share), 0.0) / rows)), 3 / rows)


def _expected_rows(day: date, known: Mapping[date, Profile]) -> float | None:
    pool = same_weekdays(day, known, min_rows=1)
    return float(np.median([known[other].rows for other in pool])) if len(pool) >= 2 else None


def _told(change: float) -> str:
    """A change of volume, up to the word before what it is compared with."""
    if change >= _TIMES:
        return f"{change + 1:,.0f} times"
    return f"{abs(change):.0%} {'more' if change > 0 else 'fewer'} than"


def _volume(
    spec: PipelineSpec, day: date, profile: Profile, expected: float | None, confirmed: Sequence[int]
) -> list[ContractFinding]:
    rows = profile.rows
    if rows == 0:
        wanted = "" if expected is None else f"; about {expected:,.0f} were expected"
        return [
            ContractFinding("rows", FAULT, "", f"no rows at all{wanted}", 0.0, float(spec.drift.min_rows))
        ]
    if expected is None or expected < 1:
        return []
    change = rows / expected - 1
    tolerance = spec.drift.volume_tolerance
    if any(abs(rows / usual - 1) <= tolerance + 3 / np.sqrt(usual) for usual in (expected, *confirmed)):
        return []
    return [
        ContractFinding(
            check="volume",
            severity=FAULT if abs(change) > 1.5 * tolerance + 3 / np.sqrt(expected) else WARN,
            channel="",
            detail=f"{rows:,} rows, {_told(change)} the {expected:,.0f} of the last {day:%A}s",
            value=change,
            limit=tolerance,
        )
    ]


def _repeat(day: date, profile: Profile, known: Mapping[date, Profile]) -> list[ContractFinding]:
    """The batch of an earlier day again: whole, or in all but what is derived from the date."""
    channels = (*profile.numeric, *profile.categorical)
    telling = [name for name in channels if np.count_nonzero(profile.histogram(name)) > 2]
    for other in sorted(known, reverse=True):
        earlier = known[other]
        if other < day - timedelta(days=_LOOK_BACK_DAYS) or earlier.rows != profile.rows:
            continue
        equal = [name for name in telling if _same_counts(profile, earlier, name)]
        if earlier.input_digest == profile.input_digest or (
            len(telling) >= 3 and len(equal) >= 0.7 * len(telling)
        ):
            return [
                ContractFinding(
                    check="repeat",
                    severity=FAULT,
                    channel="",
                    detail=f"the same batch as {other}: {profile.rows:,} rows, "
                    f"{len(equal)} of {len(telling)} features identical",
                    value=len(equal) / len(telling) if telling else 1.0,
                    limit=0.7,
                )
            ]
    return []


def _same_counts(profile: Profile, other: Profile, channel: str) -> bool:
    if channel in profile.numeric:
        a, b = profile.numeric[channel], other.numeric[channel]
        return (a.total, a.squares, a.low, a.high, a.nulls) == (b.total, b.squares, b.low, b.high, b.nulls)
    return bool(np.array_equal(profile.histogram(channel), other.histogram(channel)))


def _nulls(
    limits: ContractLimits,
    shifts: Mapping[str, tuple[float, float]],
    profile: Profile,
    pooled: Profile,
    earlier: Sequence[Profile],
) -> list[ContractFinding]:
    """Two rules, the worse one counts: more nulls than any day had, or many more than such a day has.

    The second sees a burst in a feature whose nulls vary much by weekday or rarely reach the worst day's share. Nulls that a
    condition of the pipeline lets expect are left out of both; that no value is left at all is a fault in spite of it.
    """
    found = []
    expected_where = _may_be_null(profile.spec)
    for channel, shares in limits.nulls.items():
        if channel in limits.never_empty and _empty(profile, channel):
            found.append(
                ContractFinding(
                    check="nulls",
                    severity=FAULT,
                    channel=channel,
                    detail=f"all of {channel} is null, which it may be where {expected_where[channel]}; "
                    "no reference day was without any value",
                    value=1.0,
                    limit=1.0,
                )
            )
            continue
        share = null_share(profile, channel)
        usual, high, top = (float(q) for q in np.quantile(shares, (0.5, 0.99, 0.995)))
        if channel in limits.confirmed_nulls:  # the limits of a reference whose highest days had so many
            high, top = (max(share, limits.confirmed_nulls[channel]) for share in (high, top))
        counted = max(round(rows_of_nulls(profile, channel) / profile.each), 1)
        chance = _chance(high, counted)
        # 5 points as measured in DESIGN section 4; 2 for a feature whose nulls hardly vary.
        once = top + min(max(4 * (top - usual), 0.02), 0.05) + chance
        often = lasting = high + 0.01 + chance
        if channel in shifts:
            middle, spread = shifts[channel]
            such = null_share(pooled, channel)
            # The spread of such days holds what chance does, so only the larger of the two counts.
            by_chance = _chance(such, counted)
            once = min(once, such + middle + max(0.05, 8 * spread, by_chance))
            lasting = min(lasting, such + middle + max(0.02, 5 * spread, by_chance))
            often = min(often, such + middle + max(0.015, 4 * spread, by_chance))
        if share <= often:
            continue
        again = share > lasting and any(null_share(day, channel) > lasting for day in earlier)
        beside = f", rows aside where {expected_where[channel]}" if channel in expected_where else ""
        found.append(
            ContractFinding(
                check="nulls",
                severity=FAULT if share > once or again else WARN,
                channel=channel,
                detail=f"{share:.1%} of {channel} is null{beside}; up to {often:.1%} is usual"
                + ("; second day in three" if again else ""),
                value=share,
                limit=once if share > once else lasting if again else often,
            )
        )
    return found


def _may_be_null(grid: ProfileSpec) -> dict[str, str]:
    """By feature that has one: its null condition in words."""
    return {condition.feature: condition.in_words for condition in grid.null_conditions}


def _empty(profile: Profile, channel: str) -> bool:
    counts = profile.numeric.get(channel) or profile.categorical[channel]
    return counts.nulls == int(counts.histogram().sum())


def _categories(limits: ContractLimits, profile: Profile) -> list[ContractFinding]:
    found = []
    for channel, shares in limits.unseen.items():
        counts = profile.categorical[channel]
        share, limit = counts.unseen / profile.rows, float(shares.max()) + 0.005
        limit += _chance(float(shares.max()), profile.counted)
        if share > limit:
            examples = ", ".join(counts.unseen_examples)
            found.append(
                ContractFinding(
                    check="unseen",
                    severity=FAULT if share > limit + 0.015 else WARN,
                    channel=channel,
                    detail=f"{share:.1%} of {channel} are values that training never saw: {examples}",
                    value=share,
                    limit=limit,
                )
            )
    for channel, shares in limits.novel_pairs.items():
        share, limit = profile.pairs[channel].novel / profile.rows, float(shares.max()) + 0.015
        limit += _chance(float(shares.max()), profile.counted)
        if share > limit:
            found.append(
                ContractFinding(
                    check="pairs",
                    severity=FAULT if share > limit + 0.015 else WARN,
                    channel=channel,
                    detail=f"{share:.1%} of rows combine known values of {channel} as training never saw; "
                    f"reference days stay below {shares.max():.1%}",
                    value=share,
                    limit=limit,
                )
            )
    return found


def _ranges(limits: ContractLimits, profile: Profile) -> list[ContractFinding]:
    found = []
    for channel, shares in limits.out_of_range.items():
        counts = profile.numeric[channel]
        present = profile.rows - counts.nulls
        if present == 0:
            continue
        share, limit = counts.out_of_range / present, float(shares.max()) + 0.1
        limit += _chance(float(shares.max()), max(round(present * profile.counted / profile.rows), 1))
        if share > limit:
            edges = counts.grid.edges
            usual = f"{edges[0]:.4g} to {edges[-1]:.4g}" if edges else "nothing"
            found.append(
                ContractFinding(
                    check="range",
                    # Seasons leave the range of the training months slowly; a change of units at once.
                    severity=FAULT if share > limit + 0.4 else WARN,
                    channel=channel,
                    detail=f"{share:.1%} of {channel} is outside what training saw ({usual}); "
                    f"today {_number(counts.low)} to {_number(counts.high)}",
                    value=share,
                    limit=limit,
                )
            )
    return found


def _associations(
    baseline: Baseline, profile: Profile, pooled: Profile, confirmed: frozenset[str]
) -> list[ContractFinding]:
    """Which value comes with which: lost when one of two columns is shuffled, remapped or joined by a wrong key.

    It hardly changes by itself, so that a third of it, and five spreads of its changes, is no season. The days before a
    confirmed shift say nothing of it.
    """
    found = []
    for pair, (middle, spread) in baseline.pair_losses.items():
        if pair in confirmed:
            continue
        loss = association_loss(profile, pooled, pair)
        limit, unusual = (max(low, middle + by * spread) for low, by in ((0.3, 5), (0.2, 4)))
        if loss > unusual:
            found.append(
                ContractFinding(
                    check="pairs",
                    severity=FAULT if loss > limit else WARN,
                    channel=pair,
                    detail=f"{loss:.0%} of what {pair} usually say of each other is gone; up to {unusual:.0%} is usual",
                    value=loss,
                    limit=limit if loss > limit else unusual,
                )
            )
    return found


def _frozen(limits: ContractLimits, profile: Profile) -> list[ContractFinding]:
    found = []
    for channel, usual in limits.distinct.items():
        least = float(usual.min())
        present = profile.rows - (profile.numeric.get(channel) or profile.categorical[channel]).nulls
        now = profile.numeric[channel].distinct if channel in profile.numeric else _used(profile, channel)
        if least >= 6 and now < 0.5 * least and present >= 0.5 * profile.rows:
            found.append(
                ContractFinding(
                    check="frozen",
                    severity=FAULT,
                    channel=channel,
                    detail=f"{channel} takes about {now:.0f} different values; "
                    f"reference days take at least {least:.0f}",
                    value=now,
                    limit=0.5 * least,
                )
            )
    return found


def _stale(
    limits: ContractLimits, day: date, profile: Profile, known: Mapping[date, Profile]
) -> list[ContractFinding]:
    """Values of an earlier day under today's date: a stopped feed, or a table of features that is not renewed."""
    found = []
    for channel, least in limits.least_new.items():
        today = profile.numeric[channel]
        for other in _week_before(day, known):
            before = known[other].numeric[channel]
            new, expected = _new_share(today, before)
            if least >= _LEAST_NEW and new < 0.5 * least and expected * least >= _TELLING_MARKS:
                found.append(
                    ContractFinding(
                        check="stale",
                        severity=FAULT,
                        channel=channel,
                        detail=f"{new:.0%} of the values of {channel} are new beside those of {other}; "
                        f"on reference days at least {least:.0%} are",
                        value=new,
                        limit=0.5 * least,
                    )
                )
                break
            if channel in limits.never_stale and _same_values(today, before):
                found.append(
                    ContractFinding(
                        check="stale",
                        severity=WARN,
                        channel=channel,
                        detail=f"{channel} takes exactly the values of {other}; no reference day did so",
                    )
                )
                break
    return found


def _week_before(day: date, known: Mapping[date, Profile]) -> list[date]:
    """Known days up to a week before `day`, newest first."""
    return [
        other
        for other in (day - timedelta(days=back) for back in range(1, _STALE_DAYS + 1))
        if other in known
    ]


def _new_share(today: NumericCounts, before: NumericCounts) -> tuple[float, float]:
    """(share of today's values that `before` did not have, marks they would set if all were new).

    Read off the marks of the distinct values. A value that is new hits a mark of `before` by chance as often as
    marks are set there, which is taken out; the fuller the table, the less it tells.
    """
    marks = today.seen.bit_count()
    expected = marks * (1 - before.seen.bit_count() / SEEN_BITS)
    only_today = (today.seen & ~before.seen).bit_count()
    return (only_today / expected if expected > 0 else 1.0), expected


def _same_values(one: NumericCounts, other: NumericCounts) -> bool:
    """Equal sets of at least ten values, as far as their hashes tell."""
    return (
        one.seen == other.seen
        and (one.low, one.high) == (other.low, other.high)
        and one.seen.bit_count() >= 10
        and one.distinct < 1500  # a full table of marks says nothing
    )


def _out_share(profile: Profile, channel: str) -> float:
    counts = profile.numeric[channel]
    present = profile.rows - counts.nulls
    return counts.out_of_range / present if present else 0.0


def _used(profile: Profile, channel: str) -> float:
    return float(np.count_nonzero(profile.categorical[channel].counts))


def _number(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.4g}"
