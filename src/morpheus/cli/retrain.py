"""`morpheus retrain`: train again on recent logs, without learning what an intruder did.

`ReviewUsers` reviews each user's recent events, and trains a candidate of what may be learned; it
is a stage of a pipeline that reads the logs. `retrain_models` runs it, compares the candidates with
the champion, and publishes them. The rules are in `models.retraining`.
"""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import polars as pl
from click.exceptions import Exit
from msgspec import structs
from numpy.typing import NDArray

from morpheus.cli.chain import command_from_dataclass, to_words
from morpheus.cli.output import (
    EXIT_FAILURE,
    echo,
    format_facts,
    interruptible,
    list_left_out,
    print_table,
    show_progress,
)
from morpheus.columns import ACTOR, ACTOR_OPTION, INCIDENT_ID, POPULATION_USER, TIME
from morpheus.core.batch import Events, OutputRows, ReadStats, Table
from morpheus.core.registry import load_stage
from morpheus.core.stage import PipelineOptions, Requirements, StageContext, Transform, option
from morpheus.detection import LogOverview
from morpheus.errors import RecordError, UsageError
from morpheus.models.drift import DRIFT_LIMIT, MAX_LEARNED_PVALUE, TRIMMED_SHARE
from morpheus.models.fit import UserHistory, fit_fingerprints
from morpheus.models.population import Population
from morpheus.models.profile import Fingerprint, ModelCard
from morpheus.models.retraining import (
    MAX_FOREIGN_DAYS,
    Comparison,
    Guard,
    UserEvents,
    UserReview,
    compare,
    freeze,
    update,
)
from morpheus.models.scoring import number_days
from morpheus.models.store import ModelIndex, ModelStore, commit_index, put_model, read_key
from morpheus.models.versions import (
    CANDIDATE,
    CHAMPION,
    ModelFacts,
    ModelVersion,
    VersionedStore,
    parse_time,
    split_location,
)
from morpheus.pipeline import CollectSink, Pipeline
from morpheus.replay.evaluation import evaluate, run_replay
from morpheus.replay.injection import ReplayConfig
from morpheus.report.incidents import format_day, incident_id
from morpheus.report_cli import ReportRequest, ResultFiles, open_folder
from morpheus.seasonality.detector import parse_duration
from morpheus.sources.base import FileSource
from morpheus.sources.cloudtrail import FromCloudtrail
from morpheus.sources.pseudonyms import list_identity_columns
from morpheus.storage.atomic import TempFolder
from morpheus.storage.object_store import normalise_location
from morpheus.suppressions.proposals import TrainingVerdicts, Verdicts
from morpheus.text import display_value, format_count, quote_backtick, suggest, suggest_path

logger = logging.getLogger(__name__)

ANCHOR = "anchor"
"""Alias of the version that the last retraining used as the anchor."""
RETRAINED, UPDATED, NEW, FROZEN, UNCHANGED = "retrained", "updated", "new", "frozen", "kept"
"""What a retraining does with a user."""
CHANGED = (RETRAINED, UPDATED, NEW)
MIN_HISTORY = 300
DAY = timedelta(days=1)
_FIRST_TIME = datetime(1970, 1, 1, tzinfo=UTC)
Z95 = 1.645
"""One-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True)
class RetrainOptions:
    r"""Train fingerprints again on recent logs, without learning what an intruder did.

    MODELS is a model store, and LOGS are files, folders or globs of the logs that it was trained
    on. The fingerprints in use (the champion) and older ones (the anchor) score the events of the
    window. Events above the threshold of either are not learned, nor is an incident that nobody has
    judged harmless, nor the strangest tenth of what is new since the last training. A user whose
    scores rise for days is frozen: the user gets the fingerprint of the anchor, and is listed for a
    person to decide.

    The candidate is compared with the champion on the last days, which neither has learned. It
    becomes the champion if it finds as many replayed attacks and as many days of other users, and
    raises no more alerts. Run it once a week, or once a day with --when=drift.

    The exit code is 0 if the candidate became the champion or nothing had to be trained, and 1 if
    the candidate was rejected, or another run has made a new champion meanwhile.

        morpheus retrain models AWSLogs/
        morpheus retrain models AWSLogs/ --verdicts=verdicts.json --alerts=out/alerts.jsonl
        morpheus retrain models AWSLogs/ --accept=alice
    """

    window: str = option("60d", "How far back the events go.")
    holdout: str = option(
        "7d", "Days at the end that are not learned, but on which the candidate is compared."
    )
    until: str = option(
        "", "End of the window: a day or a time.", default_display="the last day of the logs"
    )
    when: str = option(
        "always",
        "Which users to train: all, or those whose behaviour has drifted.",
        choices=("always", "drift"),
    )
    update: bool = option(
        False,
        "Renew counts and calibration only, and keep the networks. It is several times faster.",
        flag=True,
    )
    promote: str = option(
        "auto",
        "Whether the candidate becomes the champion if it holds; `never` leaves that to you.",
        choices=("auto", "never"),
    )
    accept: tuple[str, ...] = option(
        (),
        "User whose new behaviour a person has checked: it is learned. Incidents that were judged "
        "dangerous are left out. Repeat for more.",
    )
    verdicts: tuple[str, ...] = option(
        (),
        "File of verdicts that the report exported; repeat for more. Accepted incidents are "
        "learned, dangerous ones never are, and harmless ones are no longer open.",
        location="local",
    )
    alerts: tuple[str, ...] = option(
        (),
        "File of past alerts, as `to-file` wrote them, or a folder of such files; repeat for more. "
        "Days with an alert that no verdict calls harmless are open incidents, and are not "
        "learned.",
        location="local",
    )
    threshold: float = option(
        MAX_LEARNED_PVALUE,
        "P-value up to which an event is above the threshold, and a day is an alert.",
        min=0,
        max=1,
    )
    trim: float = option(
        TRIMMED_SHARE,
        "Share of the events since the last training, the strangest ones, that is not learned yet. "
        "They are reviewed again at the next retraining.",
        min=0,
        max=1,
    )
    anchor_age: str = option("60d", "Minimum age of the anchor.")
    min_history: int = option(
        MIN_HISTORY, "Minimum number of events of a user that may be learned.", min=1
    )
    max_recall_loss: float = option(
        0.02, "How much of the recall the candidate may lose, as a share.", min=0, max=1
    )
    replay_users: int = option(
        10, "Maximum number of users as whom attacks are replayed. Only for CloudTrail.", min=0
    )
    techniques: str | None = option(
        None,
        "Folder of attack techniques to replay. By default the shipped techniques.",
        location="local",
    )
    columns_file: str | None = option(
        None, "Feature list or schema.", location="local", default_display="that of the models"
    )
    pseudonym_key_file: str | None = option(
        None, "Key of the pseudonyms, if the models have any.", location="local"
    )
    models_key_file: str | None = option(
        None, "File with the key that signs the models.", path=True, location="local"
    )
    seed: int = option(0, "Random seed. Equal seeds give equal results.")
    num_threads: int | None = option(
        None,
        "Maximum number of parallel workers. Does not affect results.",
        min=1,
        default_display="the number of cores",
    )
    json: bool = option(False, "Print the decisions as JSON.", flag=True)


class CauseReport(msgspec.Struct, frozen=True):
    """A column whose values made scores rise; see `models.retraining.Cause`."""

    column: str
    risk: float
    value: str | None
    before: float
    after: float


class UserDecision(msgspec.Struct, frozen=True):
    """What a retraining does with a user, and why.

    Attributes:
        user: The user.
        decision: One of `RETRAINED`, `UPDATED`, `NEW`, `FROZEN` and `UNCHANGED`.
        reason: Why.
        events: Number of events in the window.
        learned: Number of events that may be learned.
        unusual: Number of events above the threshold.
        suspicious: Number of events of open and dangerous incidents.
        trimmed: Number of the strangest events, which only calibrate.
        left_out: Number of events of these three kinds; an event can be of two.
        drift: Base-10 logarithm of the martingale; from 2 on, behaviour has drifted.
        psi: Population stability index of the scores.
        shifted: Columns with a large shift, the largest first.
        since: First day of the rise of a frozen user; empty without one.
        usual: Mean risk of a day before the rise.
        risen: Mean risk of a day since then.
        causes: What rose.
        comparison: Figures of the comparison on the held-out days.
        anchor: Number of the version that was the anchor of this user.
        card: Card of the candidate; None without one.
    """

    user: str
    decision: str
    reason: str
    events: int = 0
    learned: int = 0
    unusual: int = 0
    suspicious: int = 0
    trimmed: int = 0
    left_out: int = 0
    drift: float = 0.0
    psi: float = 0.0
    shifted: tuple[str, ...] = ()
    since: str = ""
    usual: float = 0.0
    risen: float = 0.0
    causes: tuple[CauseReport, ...] = ()
    comparison: dict[str, int] = {}
    anchor: int = 0
    card: ModelCard | None = None


class ReviewPlan(msgspec.Struct, frozen=True):
    """What all users' reviews have in common.

    Attributes:
        store: Location of the model store.
        champion: Number of the champion.
        anchor: Number of the anchor.
        exceptions: Number of the anchor of users with another one: what a person has accepted is
            part of it.
        staging: Folder for the candidates.
        holdout: Start of the held-out days.
        end: End of the window.
        open_days: Numbers of the days of each user with an open incident.
        identity: Columns that say who the user is.
        options: Options of the command.
    """

    store: str
    champion: int
    anchor: int
    exceptions: Mapping[str, int]
    staging: str
    holdout: datetime
    end: datetime
    open_days: Mapping[str, frozenset[int]]
    identity: frozenset[str]
    options: RetrainOptions

    @property
    def guard(self) -> Guard:
        """What protects the training."""
        return Guard(self.options.threshold, self.options.trim)


class ReviewState(msgspec.Struct):
    """The events of a user until the last one is there.

    Attributes:
        shared: What all users of a process share.
        batches: The events.
    """

    shared: SharedReview
    batches: list[Events] = msgspec.field(default_factory=list)


class SharedReview(msgspec.Struct, frozen=True):
    """What all users of a process share.

    Attributes:
        population: Sample of all users; None without one.
        foreign: Held-out events of the sample.
    """

    population: Population | None
    foreign: pl.DataFrame | None

    @classmethod
    def from_sample(
        cls, sample: pl.DataFrame | None, plan: ReviewPlan, verdicts: TrainingVerdicts | None
    ) -> SharedReview:
        """Split a sample of all users at the start of the held-out days."""
        if sample is None or sample.is_empty():
            return cls(None, None)
        if verdicts is not None:
            sample = verdicts.drop_dangerous(sample)
        early = sample.filter(pl.col(TIME) < plan.holdout)
        features = early.drop(POPULATION_USER, TIME, strict=False)
        population = Population(early[POPULATION_USER], early[TIME], features)
        return cls(population, sample.filter(pl.col(TIME) >= plan.holdout))

    def list_foreign_days(self, given: UserEvents, identity: frozenset[str]) -> list[UserEvents]:
        """Return held-out days of other users, evenly spread over them, as days of a user.

        Columns that say who the user is have the user's own values, or everything would be new.

        Args:
            given: Events of the user.
            identity: These columns.
        """
        if self.foreign is None:
            return []
        others = self.foreign.filter(pl.col(POPULATION_USER) != given.user)
        numbered = others.with_columns(
            pl.Series("_day_", number_days(others[TIME], given.timezone))
        )
        days = numbered.partition_by(POPULATION_USER, "_day_", maintain_order=True)
        chosen = np.linspace(0, len(days) - 1, min(len(days), MAX_FOREIGN_DAYS)).round().astype(int)
        return [_disguise(days[at], given, identity) for at in chosen.tolist()]


def _disguise(day: pl.DataFrame, given: UserEvents, identity: frozenset[str]) -> UserEvents:
    """Return another user's day with the identity of a user."""
    rows = pl.Series(np.arange(day.height) % len(given))
    own = given.events.select(name for name in given.events.columns if name in identity)
    events = day.drop(POPULATION_USER, TIME, "_day_").with_columns(
        own[name].gather(rows) for name in own.columns
    )
    return structs.replace(given, events=events, times=day[TIME])


@dataclass(frozen=True)
class ReviewUsers(Transform):
    """Review each user's events, and train a candidate of what may be learned.

    Outputs one row per user, a `UserDecision` as JSON.

    Attributes:
        plan: What to do.
    """

    name = "review"
    takes = (Events,)
    gives = OutputRows
    needs = Requirements(population=True, cpu_bound=True)

    plan: ReviewPlan | None = None

    def open(self, context: StageContext) -> ReviewState:
        """Prepare the sample of all users once for each process."""
        shared = context.cache.get(self.name)
        if shared is None:
            shared = SharedReview.from_sample(context.population, self.work, self.verdicts)
            context.cache[self.name] = shared
        return ReviewState(shared)

    def process(self, batch: Events, state: ReviewState) -> Iterator[OutputRows]:
        """Wait for all events of the user."""
        state.batches.append(batch)
        return iter(())

    def flush(self, state: ReviewState) -> Iterator[OutputRows]:
        """Decide about the user."""
        batches = state.batches
        if not batches or batches[0].user is None:
            return
        table = pl.concat([each.table.to_frame() for each in batches], how="diagonal").sort(TIME)
        if table.is_empty():
            return
        decision = self._decide(batches[0].user, table, state.shared)
        row = Table(pl.DataFrame({"decision": [msgspec.json.encode(decision).decode()]}))
        yield batches[0].evolve(OutputRows, table=row)

    @property
    def work(self) -> ReviewPlan:
        """The plan.

        Raises:
            ValueError: There is none.
        """
        if self.plan is None:
            raise ValueError("there is no plan")
        return self.plan

    @cached_property
    def verdicts(self) -> TrainingVerdicts | None:
        """What verdicts say about training events; None without verdicts."""
        files = self.work.options.verdicts
        return TrainingVerdicts.read(files, "--verdicts") if files else None

    @cached_property
    def models(self) -> dict[int, ModelVersion]:
        """The versions that are compared, by number."""
        plan = self.work
        store = VersionedStore.open(plan.store, read_key(plan.options.models_key_file))
        numbers = {plan.champion, plan.anchor, *plan.exceptions.values()}
        return {number: store.open_version(number) for number in sorted(numbers)}

    def __getstate__(self) -> dict[str, object]:
        """Return the state for another process, which opens the store itself."""
        return {name: value for name, value in vars(self).items() if name != "models"}

    def _decide(self, user: str, table: pl.DataFrame, shared: SharedReview) -> UserDecision:
        plan, timezone = self.work, self.options.timezone
        given = UserEvents(user, table, table[TIME], timezone)
        suspicious = self._find_suspicious(given)
        number = plan.exceptions.get(user, plan.anchor)
        champion = self._load(plan.champion, user)
        task = _UserTask(self, given, shared, suspicious, self._find_accepted(given), number)
        if champion is None:
            return task.train_new()
        return task.review(champion, self._load(number, user) or champion)

    def _load(self, number: int, user: str) -> Fingerprint | None:
        """Load the user's own fingerprint; None if there is none, or one of the reference."""
        version = self.models[number]
        if user not in version.cards:
            return None
        found = version.load_own(user)
        return None if found.usage is None else found

    def _find_suspicious(self, given: UserEvents) -> NDArray[np.bool_]:
        days = self.work.open_days.get(given.user, frozenset())
        found = np.isin(given.days, np.array(sorted(days), dtype=np.int64))
        if self.verdicts is not None:
            found |= self.verdicts.find_dangerous(given.user, given.events).to_numpy()
        return np.asarray(found)

    def _find_accepted(self, given: UserEvents) -> NDArray[np.bool_]:
        if given.user in self.work.options.accept:
            return np.ones(len(given), dtype=np.bool_)
        if self.verdicts is None:
            return np.zeros(len(given), dtype=np.bool_)
        return np.asarray(self.verdicts.find_accepted(given.user, given.events).to_numpy())


@dataclass(frozen=True)
class _UserTask:
    """The retraining of one user.

    Attributes:
        stage: The stage.
        given: The user's events.
        shared: What all users share.
        suspicious: Which events are part of open and dangerous incidents, (n,).
        accepted: Which events a person has accepted, (n,).
        anchor: Number of the anchor's version.
    """

    stage: ReviewUsers
    given: UserEvents
    shared: SharedReview
    suspicious: NDArray[np.bool_]
    accepted: NDArray[np.bool_]
    anchor: int

    @property
    def plan(self) -> ReviewPlan:
        return self.stage.work

    @cached_property
    def early(self) -> NDArray[np.bool_]:
        """Which events are before the held-out days, (n,)."""
        return (self.given.times < self.plan.holdout).to_numpy()

    def train_new(self) -> UserDecision:
        """Train a user who has no fingerprint yet."""
        kept = ~self.suspicious & self.early
        facts = UserDecision(
            self.given.user,
            UNCHANGED,
            "",
            events=len(self.given),
            learned=int(kept.sum()),
            suspicious=int(self.suspicious.sum()),
            left_out=int(self.suspicious.sum()),
        )
        if facts.learned < self.plan.options.min_history:
            return self._explain_few(facts)
        candidate = self._train(kept, None)
        return self._save(facts, candidate, NEW, "no fingerprint so far")

    def review(self, champion: Fingerprint, anchor: Fingerprint) -> UserDecision:
        """Review a user with a fingerprint."""
        review = UserReview(
            *(self.given, champion, anchor, self.plan.guard), self.suspicious, self.accepted
        )
        chosen, options = review.selection, self.plan.options
        kept, learned = chosen.usable & self.early, chosen.learned & self.early
        shifts = sorted(review.column_shifts.items(), key=lambda item: -item[1].psi)
        facts = UserDecision(
            self.given.user,
            UNCHANGED,
            "",
            events=len(self.given),
            learned=int(learned.sum()),
            unusual=int(chosen.unusual.sum()),
            suspicious=int(self.suspicious.sum()),
            trimmed=int((chosen.trimmed & self.early).sum()),
            left_out=int((~chosen.usable | chosen.trimmed & self.early).sum()),
            drift=round(review.martingale, 2),
            psi=round(review.score_shift.psi, 3),
            shifted=tuple(name for name, shift in shifts if shift.is_large),
            anchor=self.anchor,
        )
        is_accepted = self.given.user in options.accept
        if not is_accepted and (review.rise is not None or champion.card.frozen_since):
            return self._freeze(facts, review, champion, anchor)
        if options.when == "drift" and not review.has_drifted and not is_accepted:
            return structs.replace(facts, reason="no drift")
        if facts.learned < options.min_history:
            return self._explain_few(facts)
        if options.update:
            early = structs.replace(chosen, unusual=chosen.unusual | ~self.early)
            candidate = update(champion, self.given, early)
        else:
            candidate = self._train(kept, learned[kept])
        return self._compare(facts, champion, self._mark(candidate, champion))

    def _explain_few(self, facts: UserDecision) -> UserDecision:
        needed = self.plan.options.min_history
        reason = f"{format_count(facts.learned, 'event')} may be learned, {needed} needed"
        return structs.replace(facts, reason=reason)

    def _freeze(
        self,
        facts: UserDecision,
        review: UserReview,
        champion: Fingerprint,
        anchor: Fingerprint,
    ) -> UserDecision:
        rise, since = review.rise, champion.card.frozen_since
        if rise is not None:
            facts = structs.replace(
                facts,
                usual=round(rise.usual, 1),
                risen=round(rise.risen, 1),
                causes=tuple(CauseReport(*structs.astuple(each)) for each in rise.causes),
            )
            since = since or rise.since.isoformat()
        facts = structs.replace(facts, since=since)
        if champion.card.frozen_since:
            return structs.replace(facts, decision=FROZEN, reason=f"frozen since {since}")
        frozen = freeze(anchor, date.fromisoformat(since))
        return self._save(facts, frozen, FROZEN, f"scores have risen since {since}")

    def _train(self, kept: NDArray[np.bool_], learned: NDArray[np.bool_] | None) -> Fingerprint:
        options, events = self.stage.options, self.given.take(kept)
        if learned is not None and learned.all():
            learned = None
        history = UserHistory(self.given.user, events.events, events.times, learned=learned)
        [fingerprint] = fit_fingerprints(
            [history],
            options.columns,
            scaler=options.feature_scaler,
            seed=self.plan.options.seed,
            population=self.shared.population,
            kinds=options.column_types,
            timezone=options.timezone,
        )
        return fingerprint

    def _mark(self, candidate: Fingerprint, champion: Fingerprint) -> Fingerprint:
        """Note in the card until when a person has accepted the behaviour."""
        accepted = champion.card.accepted_until
        if self.given.user in self.plan.options.accept:
            accepted = self.plan.end.isoformat()
        card = structs.replace(candidate.card, accepted_until=accepted, frozen_since="", version=0)
        return replace(candidate, card=card)

    def _compare(
        self, facts: UserDecision, champion: Fingerprint, candidate: Fingerprint
    ) -> UserDecision:
        later = self.given.take(~self.early & ~self.suspicious)
        foreign = self.shared.list_foreign_days(self.given, self.plan.identity)
        found = Comparison()
        if len(later) or foreign:
            threshold = self.plan.options.threshold
            found = compare(champion, candidate, later, foreign, threshold)
        figures = structs.asdict(found)
        facts = structs.replace(facts, comparison=figures)
        accepted = self.given.user in self.plan.options.accept
        if found.loses_recall and not accepted:
            lost = f"{found.candidate_found} of {found.foreign} days of other users found"
            return structs.replace(facts, reason=f"{lost}, before {found.champion_found}")
        words = UPDATED if self.plan.options.update else RETRAINED
        reason = "accepted" if accepted else "drift" if facts.drift >= DRIFT_LIMIT else "window"
        return self._save(facts, candidate, words, reason)

    def _save(
        self, facts: UserDecision, candidate: Fingerprint, decision: str, reason: str
    ) -> UserDecision:
        card = put_model(self.plan.staging, candidate)
        return structs.replace(facts, decision=decision, reason=reason, card=card)


# The run.


class Check(msgspec.Struct, frozen=True):
    """A condition for the candidate to become the champion.

    Attributes:
        name: What is compared.
        champion: Figure of the champion.
        candidate: Figure of the candidate.
        limit: Limit of the candidate's figure.
        holds: Whether the candidate is within it.
    """

    name: str
    champion: float
    candidate: float
    limit: float
    holds: bool


class RetrainReport(msgspec.Struct, frozen=True):
    """The result of a retraining.

    Attributes:
        champion: Number of the version that was the champion.
        anchor: Number of the version that was the anchor.
        anchor_until: Time of its last training event, ISO 8601.
        start: Start of the window, ISO 8601.
        holdout: Start of the held-out days.
        end: End of the window.
        candidate: Number of the published version; None if nothing was published.
        promoted: Whether it is the champion now.
        overtaken: Whether it is not, because another version became the champion meanwhile.
        checks: The conditions.
        users: The decision about each user.
        unread: What of the logs was left out, and why.
    """

    champion: int
    anchor: int
    anchor_until: str
    start: str
    holdout: str
    end: str
    candidate: int | None
    promoted: bool
    overtaken: bool
    checks: tuple[Check, ...]
    users: tuple[UserDecision, ...]
    unread: tuple[tuple[str, str], ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the candidate is as good as the champion."""
        return all(check.holds for check in self.checks)

    @property
    def frozen(self) -> list[UserDecision]:
        """The users that a person must decide about."""
        return [each for each in self.users if each.decision == FROZEN]

    def count(self) -> Counter[str]:
        """Count the users by decision."""
        return Counter(each.decision for each in self.users)


def retrain_models(
    models: str,
    logs: Sequence[str],
    options: RetrainOptions | None = None,
    *,
    on_step: Any = None,  # noqa: ANN401 - as `Pipeline.run` takes it
) -> RetrainReport:
    """Train again, compare, and publish; see `morpheus retrain`.

    Args:
        models: The model store.
        logs: Files, folders and globs.
        options: Options of the command.
        on_step: Called with each step; see `Pipeline.run`.

    Returns:
        The decisions.

    Raises:
        UsageError: An option is wrong, or the logs do not fit the models.
        MorpheusError: The models or the logs cannot be read.
    """
    return _Retraining.prepare(models, logs, options or RetrainOptions(), on_step).run(on_step)


class _Retraining(msgspec.Struct, frozen=True):
    """A retraining.

    Attributes:
        store: The model store.
        location: Where it is.
        named: Number of the version that is the champion. If it is damaged, another one is in use.
        champion: The version in use.
        anchor: The anchor.
        source: Reads the logs.
        pipeline: Options of the pipeline.
        start: Start of the window.
        end: End of the window.
        options: Options of the command.
    """

    store: VersionedStore
    location: str
    named: int
    champion: ModelVersion
    anchor: ModelVersion
    source: FileSource
    pipeline: PipelineOptions
    start: datetime
    end: datetime
    options: RetrainOptions

    @classmethod
    def prepare(
        cls,
        models: str,
        logs: Sequence[str],
        options: RetrainOptions,
        on_step: Any,  # noqa: ANN401 - as above
    ) -> _Retraining:
        """Open the store, recognise the logs, and find the window."""
        folder, which = split_location(models, "MODELS", "store")
        if which:
            raise UsageError(
                f"MODELS: `{models}` names a version, but a retraining starts from the champion. "
                f"Give `{folder}`."
            )
        store = VersionedStore.open(models, read_key(options.models_key_file))
        named, champion = store.resolve(CHAMPION), store.open_version(CHAMPION)
        _check_accepted(options, champion)
        _check_network(champion)
        source, pipeline = _describe_logs(champion, logs, options)
        end = _find_end(options, source, pipeline, on_step)
        window = timedelta(seconds=parse_duration(options.window, option="--window"))
        holdout = timedelta(seconds=parse_duration(options.holdout, option="--holdout"))
        if holdout >= window:
            raise UsageError(
                f"--holdout: `{options.holdout}` leaves nothing of the window of "
                f"`{options.window}` to learn. Give less, or a longer --window."
            )
        anchor = store.find_anchor(_go_back(end, options.anchor_age, "--anchor_age"))
        logs_read = (source, pipeline, _go_back(end, options.window, "--window"), end)
        return cls(store, models, named, champion, anchor, *logs_read, options)

    def run(self, on_step: Any) -> RetrainReport:  # noqa: ANN401 - as above
        """Review and train all users, compare, and publish."""
        staging = TempFolder()
        try:
            plan = self._make_plan(staging.path)
            decisions, read = self._review(plan, on_step)
            report = self._publish(plan, decisions)
            return structs.replace(report, unread=tuple(list_left_out(read)))
        finally:
            staging.close()

    def _make_plan(self, staging: Path) -> ReviewPlan:
        return ReviewPlan(
            self.location,
            self.champion.number,
            self.anchor.number,
            self._find_exceptions(),
            str(staging),
            self.holdout,
            self.end,
            self._find_open_days(),
            frozenset(list_identity_columns(self.source.get_log_format())),
            self.options,
        )

    def _find_exceptions(self) -> dict[str, int]:
        """Return the anchors of users whose behaviour was accepted after the anchor."""
        found = self.store.find_accepted(self.champion.cards, self.anchor.number)
        return {user: number for user, number in found.items() if number != self.anchor.number}

    def _find_open_days(self) -> dict[str, frozenset[int]]:
        """Return the days of each user with an alert that no verdict calls harmless."""
        if not self.options.alerts:
            return {}
        files = [file for name in self.options.alerts for file in _list_alerts(Path(name))]
        verdicts = self.options.verdicts
        benign = Verdicts.read(verdicts, "--verdicts").benign if verdicts else ()
        closed = {verdict.incident for verdict in benign}
        days: dict[str, set[int]] = {}
        column = self.pipeline.userid_column_name
        results = ResultFiles.find(files, column)
        for user, rows in () if results is None else results.iter_by_user():
            numbers = number_days(rows[TIME], self.pipeline.timezone).tolist()
            if INCIDENT_ID in rows.columns:
                ids = rows[INCIDENT_ID].to_list()
            else:  # as the report gives them
                ids = [incident_id(user, format_day(day)) for day in numbers]
            pairs = zip(numbers, ids, strict=True)
            open_days = {day for day, incident in pairs if incident not in closed}
            days.setdefault(user or "", set()).update(open_days)
        return {user: frozenset(numbers) for user, numbers in days.items()}

    def _review(
        self,
        plan: ReviewPlan,
        on_step: Any,  # noqa: ANN401 - as above
    ) -> tuple[list[UserDecision], ReadStats]:
        """Decide about each user; return also what was read of the logs."""
        sink = CollectSink()
        source = replace(self.source, **_select_time(self.start, self.end))
        pipeline = Pipeline([source, ReviewUsers(plan=plan), sink], self.pipeline)
        read = pipeline.run(on_step=on_step).input
        # The window is known; what is outside of it is no news.
        read.outside_range = read.outside_files = read.outside_folders = 0
        decisions = [
            msgspec.json.decode(text, type=UserDecision)
            for batch in sink.batches
            for text in batch.table.to_frame().to_series().to_list()
        ]
        if not decisions:
            raise UsageError(
                f"LOGS: no event with a user between {self.start:%Y-%m-%d} and "
                f"{self.end:%Y-%m-%d}. Give other logs, --until or --window."
            )
        return sorted(decisions, key=lambda each: each.user), read

    def _publish(self, plan: ReviewPlan, decisions: list[UserDecision]) -> RetrainReport:
        changed = [each.user for each in decisions if each.card is not None]
        frozen = [each.user for each in decisions if each.card and each.decision == FROZEN]
        checks: tuple[Check, ...] = ()
        candidate, promoted, overtaken = None, False, False
        if changed:
            staged = self._open_staged(plan, decisions)
            candidate = self._publish_candidate(plan, staged)
            checks = tuple(self._check(staged, decisions))
        if candidate is not None and self.options.promote == "auto":
            if all(check.holds for check in checks):
                promoted = self.store.replace_champion(candidate, self.named)
                overtaken = not promoted
            if not promoted and frozen:
                # A rejected candidate must not leave an intruder with a fingerprint that learns.
                self.store.promote(frozen, source=candidate)
        self.store.set_alias(ANCHOR, self.anchor.number)
        return RetrainReport(
            champion=self.champion.number,
            anchor=self.anchor.number,
            anchor_until=self.anchor.trained_until,
            start=self.start.isoformat(),
            holdout=plan.holdout.isoformat(),
            end=self.end.isoformat(),
            candidate=candidate,
            promoted=promoted,
            overtaken=overtaken,
            checks=checks,
            users=tuple(decisions),
        )

    def _open_staged(self, plan: ReviewPlan, decisions: Sequence[UserDecision]) -> ModelStore:
        """Return the candidates that the workers have written, as a store."""
        cards = {each.user: each.card for each in decisions if each.card is not None}
        index = ModelIndex.from_cards(cards, None, self.champion.inputs)
        commit_index(plan.staging, index, key=self.store.key)
        return ModelStore.open(plan.staging, self.store.key)

    def _publish_candidate(self, plan: ReviewPlan, staged: ModelStore) -> int:
        """Publish the candidates with the champion's fingerprints of all other users."""
        facts = ModelFacts.from_store(self.champion)
        until = max(self.champion.trained_until, plan.holdout.isoformat())
        return self.store.publish(
            map(staged.load_own, sorted(staged.cards)),
            alias=CANDIDATE,
            base=self.champion.number,
            note="retrain --update" if self.options.update else "retrain",
            facts=structs.replace(facts, trained_until=until),
        )

    def _check(self, staged: ModelStore, decisions: Sequence[UserDecision]) -> Iterator[Check]:
        total = Comparison()
        for each in self._list_checked(decisions):
            if each.comparison:
                total = total.add(Comparison(**each.comparison))
        if total.days:
            expected = self.options.threshold * total.days
            limit = max(total.champion_alerts, expected + Z95 * expected**0.5)
            figures = (float(total.champion_alerts), float(total.candidate_alerts))
            yield Check("alerts", *figures, round(limit, 1), total.candidate_alerts <= limit)
        if total.foreign:
            yield self._check_recall(
                "recall of other users' days",
                total.champion_found / total.foreign,
                total.candidate_found / total.foreign,
            )
        if isinstance(self.source, FromCloudtrail):
            yield from self._check_replay(staged, decisions)

    def _list_checked(self, decisions: Sequence[UserDecision]) -> list[UserDecision]:
        """Return the users by whom the candidate is judged.

        A person has decided about the accepted ones: what is usual for them now is found less.
        """
        accepted = self.options.accept
        return [
            each for each in decisions if each.decision in CHANGED and each.user not in accepted
        ]

    def _check_recall(self, name: str, before: float, after: float) -> Check:
        limit = before - self.options.max_recall_loss
        return Check(name, round(before, 3), round(after, 3), round(limit, 3), after >= limit)

    def _check_replay(
        self, staged: ModelStore, decisions: Sequence[UserDecision]
    ) -> Iterator[Check]:
        """Replay attacks as some of the users, by the champion and by the candidate."""
        trained = [each.user for each in self._list_checked(decisions) if each.decision != NEW]
        places = np.linspace(0, len(trained) - 1, min(len(trained), self.options.replay_users))
        users = [trained[at] for at in places.round().astype(int).tolist()]
        if not users:
            return
        recalls = []
        for models in (self.champion, staged):
            folder = TempFolder()
            try:
                cards = {user: put_model(folder.path, models.load_own(user)) for user in users}
                index = ModelIndex.from_cards(cards, None, self.champion.inputs)
                # The replay is not told the key.
                commit_index(folder.path, index)
                recalls.append(self._replay(folder.path, users))
            finally:
                folder.close()
        before, after = recalls
        if before is not None and after is not None:
            yield self._check_recall("recall of replayed attacks", before, after)

    def _replay(self, models: Path, users: Sequence[str]) -> float | None:
        column = self.pipeline.userid_column_name
        config = ReplayConfig(
            input_glob=self.source.input_glob,
            pretrained_filename=str(models),
            userid_column_name=column,
            userid_filter=tuple(users),
            timezone=self.pipeline.timezone,
            columns_file=self.pipeline.columns_file,
            techniques=self.options.techniques,
            bad_record="skip",
            seed=self.options.seed,
            num_threads=self.pipeline.num_threads,
        )
        batches, _ = run_replay(config, source_values=_select_time(self.holdout, self.end))
        return evaluate(batches).recall

    @property
    def holdout(self) -> datetime:
        """Start of the held-out days."""
        return _go_back(self.end, self.options.holdout, "--holdout")


def _go_back(time: datetime, text: str, name: str) -> datetime:
    """Return the time that is a duration earlier: 1970 for one of centuries.

    Args:
        time: The time.
        text: The duration.
        name: Name of its option.
    """
    duration = timedelta(seconds=parse_duration(text, option=name))
    return max(time - min(duration, time - _FIRST_TIME), _FIRST_TIME)


def _list_alerts(path: Path) -> Sequence[Path]:
    """Return a file of alerts, or the files of a folder of them."""
    if not path.exists():
        raise UsageError(f"--alerts: there is no file `{path}`.{suggest_path(path)}")
    if not path.is_dir():
        return [path]
    if not any(path.iterdir()):
        logger.warning("--alerts: `%s` is empty, so no day has an open alert.", path)
        return []
    return open_folder(ReportRequest(), [path])[1]


def _select_time(start: datetime, end: datetime) -> dict[str, Any]:
    return {"start_time": start.isoformat(), "end_time": end.isoformat()}


def _find_end(
    options: RetrainOptions,
    source: FileSource,
    pipeline: PipelineOptions,
    on_step: Any,  # noqa: ANN401 - as `Pipeline.run` takes it
) -> datetime:
    """Return the end of the window: that of the options, or of the last day of the logs."""
    if options.until:
        try:
            return max(parse_time(options.until), _FIRST_TIME + DAY)
        except ValueError as error:
            raise UsageError(
                f"--until: `{options.until}` is not a time. Write a day, `2026-05-31`, or a time, "
                "`2026-05-31T09:30:00Z`."
            ) from error
    columns = (source.get_log_format().time_column,)
    counting = pipeline if pipeline.columns_file else replace(pipeline, columns=columns)
    start = _go_back(datetime.now(UTC), options.window, "--window")
    recent = replace(source, start_time=start.isoformat())
    try:
        # Logs of years need not be read to find their end.
        last = LogOverview.from_source(recent, counting, on_step=on_step).last
    except (UsageError, RecordError):  # they end before
        last = LogOverview.from_source(source, counting, on_step=on_step).last
    return datetime(last.year, last.month, last.day, tzinfo=UTC) + DAY


def _describe_logs(
    champion: ModelVersion, logs: Sequence[str], options: RetrainOptions
) -> tuple[FileSource, PipelineOptions]:
    """Return the source of the logs that models fit, and the options of the pipeline.

    Raises:
        UsageError: The models do not say which logs they fit, or other logs were given.
    """
    inputs = champion.inputs
    if inputs is None or not inputs.source:
        raise UsageError(
            f"MODELS: the models in `{champion.folder}` were not trained on log files, so there "
            "is no telling how to read LOGS. Train new models with `train-ae --train_data_glob`."
        )
    if inputs.pseudonyms and not options.pseudonym_key_file:
        raise UsageError(
            "--pseudonym_key_file: the models have pseudonyms. Give the key they were made with."
        )
    make: Any = load_stage(inputs.source)
    source: FileSource = make(input_glob=tuple(logs), bad_record="skip", glob_name="LOGS")
    named: dict[str, Any] = (
        {} if options.columns_file is None else {"columns_file": options.columns_file}
    )
    if not named and inputs.columns_file not in {"", Path(source.default_columns).name}:
        named = {"columns_file": inputs.columns_file}
    pipeline = PipelineOptions(
        userid_column_name=ACTOR_OPTION if inputs.user_column == ACTOR else inputs.user_column,
        timezone=inputs.timezone,
        pseudonymize=inputs.pseudonyms,
        pseudonym_key_file=options.pseudonym_key_file,
        **named,
    )
    if options.num_threads is not None:
        pipeline = replace(pipeline, num_threads=options.num_threads)
    bound = replace(source, options=source.with_defaults(pipeline))
    problems = inputs.find_differences(bound.describe_input())
    if problems:
        raise UsageError(f"MODELS: the models do not fit these logs. {problems[0]}.")
    return bound, pipeline


def _check_network(champion: ModelVersion) -> None:
    first = next(iter(champion.cards.values()), None)
    if first is not None and first.summary is None:
        raise UsageError(
            f"MODELS: the models in `{champion.folder}` were trained with `train-ae "
            "--model=reference`, which has no `risk`. Train new models with `--model=compact`."
        )


def _check_accepted(options: RetrainOptions, champion: ModelVersion) -> None:
    for user in options.accept:
        if user not in champion.cards:
            raise UsageError(
                f"--accept: the champion has no fingerprint of {quote_backtick(user)}."
                f"{suggest(user, champion.cards)}"
            )


# The command.

MAX_ROWS = 30
"""Maximum number of users in the table; `--json` has all."""


def _run_retrain(options: RetrainOptions, models: str, logs: Sequence[str]) -> None:
    models = normalise_location(models, "MODELS")
    logs = tuple(normalise_location(log, "LOGS") for log in logs)
    with interruptible(), show_progress() as on_step:
        report = retrain_models(models, logs, options, on_step=on_step)
    if options.json:
        click.echo(msgspec.json.format(encode_report(report)))
    else:
        _print_report(report, models, logs, options)
    if report.overtaken or not report.holds:
        raise Exit(EXIT_FAILURE)


def encode_report(report: RetrainReport) -> bytes:
    """Return a report as JSON, without the cards of the models."""
    users = tuple(structs.replace(each, card=None) for each in report.users)
    data = msgspec.to_builtins(structs.replace(report, users=users))
    for user in data["users"]:
        del user["card"]
    return msgspec.json.encode(data)


def _print_report(
    report: RetrainReport, models: str, logs: Sequence[str], options: RetrainOptions
) -> None:
    order = [FROZEN, UNCHANGED, *CHANGED]
    users = sorted(report.users, key=lambda each: (order.index(each.decision), -each.drift))
    rows = [_to_row(each) for each in users[:MAX_ROWS]]
    header = ("USER", "DECISION", "LEARNED", "LEFT OUT", "DRIFT", "REASON")
    print_table(header, rows)
    if len(users) > MAX_ROWS:
        echo(f"... and {len(users) - MAX_ROWS:,} more. --json prints all.")
    if report.checks:
        print_table(("CHECK", "CHAMPION", "CANDIDATE", "LIMIT", "HOLDS"), _to_rows(report.checks))
    for each in report.frozen:
        _print_frozen(each, ["morpheus", "retrain", models, *logs, *_list_given(options)])
    _print_facts(report, options)


def _to_rows(checks: Sequence[Check]) -> list[list[str]]:
    return [
        [
            check.name,
            *(f"{figure:g}" for figure in (check.champion, check.candidate, check.limit)),
            "yes" if check.holds else "no",
        ]
        for check in checks
    ]


def _to_row(each: UserDecision) -> tuple[str, ...]:
    learned = each.learned if each.decision in CHANGED else 0
    drift = f"{each.drift:g}" + (" *" if each.drift >= DRIFT_LIMIT else "")
    figures = f"{learned:,}", f"{each.left_out:,}", drift
    return (display_value(each.user), each.decision, *figures, each.reason)


def _list_given(options: RetrainOptions) -> Iterator[str]:
    """Yield the options of the command line, so that a printed command means the same."""
    given = {
        each.name: value
        for each in fields(options)
        if (value := getattr(options, each.name)) != each.default and each.name != "json"
    }
    return to_words(RetrainOptions, given)


def _print_frozen(each: UserDecision, words: Sequence[str]) -> None:
    """Print what a person needs to decide about a frozen user.

    Args:
        each: The decision.
        words: The command.
    """
    rise = f", mean risk of a day from {each.usual:g} to {each.risen:g}" if each.risen else ""
    echo(
        f"Decide about {display_value(each.user)}: scores have risen since {each.since}{rise}.",
        fg="yellow",
    )
    for cause in each.causes:
        value = "no value" if cause.value is None else quote_backtick(cause.value)
        shares = f"{cause.before:.0%} to {cause.after:.0%} of the events"
        echo(f"  {cause.column}: {value} from {shares}, risk +{cause.risk:.1f}")
    command = shlex.join([*words, f"--accept={each.user}"])
    echo(f"  If this is the user's own work: {command}")


def _print_facts(report: RetrainReport, options: RetrainOptions) -> None:
    counts = ", ".join(f"{number:,} {name}" for name, number in report.count().most_common())
    until = f", trained until {report.anchor_until[:10]}" if report.anchor_until else ""
    facts = [
        (
            "Window",
            f"{report.start[:10]} to {report.end[:10]}, learned until {report.holdout[:10]}",
        ),
        (
            "Compared",
            f"champion: version {report.champion}; anchor: version {report.anchor}{until}",
        ),
        *((fact.capitalize(), text) for fact, text in report.unread),
        ("Users", counts),
        ("Result", _describe_result(report, options)),
    ]
    for line in format_facts(facts):
        echo(line)


def _describe_result(report: RetrainReport, options: RetrainOptions) -> str:
    if report.candidate is None:
        return f"nothing to publish; version {report.champion} stays the champion"
    published = f"version {report.candidate} is published as `candidate`"
    if report.promoted:
        return f"{published}, and is the champion now"
    if report.overtaken:
        return (
            f"{published}; another version has become the champion while it was trained, and "
            "stays it. Run again to compare with that one"
        )
    if not report.holds:
        broken = ", ".join(check.name for check in report.checks if not check.holds)
        also = ", except for frozen users" if report.frozen and options.promote == "auto" else ""
        return f"{published}; version {report.champion} stays the champion{also}: {broken}"
    return f"{published}; `morpheus models promote` makes it the champion"


MODELS_ARGUMENT = click.Argument(["models"])
LOGS_ARGUMENT = click.Argument(["logs"], nargs=-1, required=True)
retrain = command_from_dataclass(
    "retrain", RetrainOptions, _run_retrain, MODELS_ARGUMENT, LOGS_ARGUMENT
)
