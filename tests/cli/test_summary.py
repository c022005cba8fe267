from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from morpheus.cli.output import format_metrics
from morpheus.core.batch import AlertBudgetReport, ReadStats, RunMetrics
from morpheus.models.calibration import AlertForecast
from morpheus.models.profile import ModelCard

USERS = st.one_of(st.none(), st.text(max_size=5))


def summary(**changes: object) -> RunMetrics:
    """A run over one file of 10 events of ann."""
    usual = {"input": ReadStats(files=1, read=10), "users": Counter({"ann": 10}), "scored": 10}
    return RunMetrics(**(usual | changes))  # type: ignore[arg-type]  # a builder of any field


def test_a_run_in_which_all_went_well_is_a_line_a_fact() -> None:
    assert format_metrics(summary(seconds=1.25, flagged=1)) == [
        "Input    10 events in 1 file",
        "Written  10 events of 1 user",
        "Scored   10 events, with 0 models",
        "Flagged  1 event",
        "Seconds  1.2",
    ]


def test_events_left_out_are_counted_by_reason_and_the_first_refusals_named() -> None:
    reading = ReadStats(files=2, skipped_files=1, read=20, duplicates=3, other_users=4, no_user=5)
    reading.refuse("a.json:7: no time")
    text = "\n".join(format_metrics(summary(input=reading)))
    assert "1 refused, 3 delivered twice, 4 of other users, 5 of no user, 1 file of" in text
    assert "refused   a.json:7: no time" in text


def test_users_without_a_score_are_named_the_first_few_and_the_rest_counted() -> None:
    users = Counter({None: 9, "ann": 1, "bob": 2, "cy": 3, "dee": 4})
    lines = format_metrics(
        summary(users=users, unscored=dict.fromkeys(users, "no history"), scored=0)
    )
    assert "Not scored  19 events: no history ((no user), dee, cy, 2 more)" in lines


def test_users_scored_by_the_history_of_others_are_counted() -> None:
    cards = {
        user: ModelCard(user, 10, 5, "", "", 3, 0, rung)
        for user, rung in {"ann": "own", "bob": "peers", "eve": "everyone"}.items()
    }
    lines = format_metrics(summary(cards=cards))
    assert "  users  1 by their own history, 1 with their peers', 1 by everyone's" in lines


def test_a_chain_that_does_not_score_says_so() -> None:
    assert "Not scored  10 events: no stage of this chain scores" in format_metrics(
        summary(scored=0)
    )


def test_names_out_of_a_log_do_not_command_the_terminal() -> None:
    name = "\x1b[2Jann\nScored 0"
    lines = format_metrics(
        summary(users=Counter({name: 1}), unscored={name: "no\tmodel"}, scored=0)
    )
    assert r"Not scored  1 event: no\tmodel (\x1b[2Jann\nScored 0)" in lines


@given(st.dictionaries(USERS, st.tuples(st.integers(1, 99), st.text(max_size=4))))
def test_every_written_event_is_scored_or_not_scored_and_lines_are_printable(
    users: dict[str | None, tuple[int, str]],
) -> None:
    lines = format_metrics(
        RunMetrics(
            users=Counter({user: number for user, (number, _) in users.items()}),
            unscored_reasons={user: reason for user, (_, reason) in users.items()},
        )
    )
    counted = [int(x.split()[2]) for x in lines if x.startswith("Not scored")]
    assert sum(counted) == sum(number for number, _ in users.values())
    assert all(line.isprintable() for line in lines)


def test_what_suppressions_held_back_is_told_by_suppression_and_what_they_no_longer_hold() -> None:
    held, ended = Counter({"a rule": 1200, "another": 1}), Counter({"an old rule": 2})
    spending = AlertBudgetReport(AlertForecast(5.0, 1.0, 9.0), 3, suppressed=2)
    lines = format_metrics(summary(filtered=1300, held=held, ended=ended, spending=spending))
    assert lines[1:6] == [
        "Filtered     1,300 events out",
        "  held back  1,200 events by a rule",
        "  held back  1 event by another",
        "  not held   2 events, for the suppression has ended: an old rule",
        "Alerts       3, and 2 held back, 5 expected (1 to 9)",
    ]
