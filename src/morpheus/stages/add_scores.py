"""`add-scores` and `add-class`: compute scores of events from the losses of their columns.

`add-scores` adds them as columns, `add-class` whether they are above a threshold. `filter` computes
the same scores with `compute_scores`, without adding columns.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial

import msgspec
import numpy as np
import polars as pl
from msgspec import structs
from numpy.typing import NDArray

from morpheus.columns import INCIDENT_SCORE, MODEL_VERSION, PVALUE, RISK, SCORE, SEVERITY, TIME
from morpheus.core.batch import Losses, Scored, Table
from morpheus.core.stage import (
    COMPAT_RELEASES,
    PipelineOptions,
    Requirements,
    StageContext,
    Transform,
    option,
)
from morpheus.core.state import State
from morpheus.errors import UsageError
from morpheus.models.calibration import compute_severity
from morpheus.models.daily_usage import DailyScores, DayRecord, UsageState
from morpheus.models.profile import Fingerprint, ScoringParts
from morpheus.models.scoring import MaskedPredictions, number_days
from morpheus.text import suggest

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float64]

# The network computes in float32, about seven digits. The last digits depend on how matrix products
# are grouped. Rounding removes them, so equal events get equal scores on every machine.
DECIMALS = 6
Z_LOSS_SUFFIX = "_z_loss"
"""Suffix of the labels of single columns."""


class ScoreState(State):
    """What scores remember about one user.

    Attributes:
        usage: What the user's days since the training had.
    """

    max_bytes = 1 << 20

    usage: UsageState = msgspec.field(default_factory=UsageState)


class ScoreContext(msgspec.Struct, dict=True):
    """The values that labels are computed from, each computed once for a batch.

    Values that depend on the losses alone are computed for distinct rows. Without a fingerprint
    all values are NaN.

    Attributes:
        batch: The events.
        usage: What is remembered of the user; updated by `daily`.
        timezone: Time zone of days.
        ignored: See `score_days`.
    """

    batch: Losses | Scored
    usage: UsageState
    timezone: str = "UTC"
    ignored: NDArray[np.bool_] | None = None

    @cached_property
    def inverse(self) -> NDArray[np.intp]:
        """Distinct row of each event, shape (rows,)."""
        encoded = self.batch.encoded
        return np.arange(self.batch.table.height) if encoded is None else encoded.inverse

    @cached_property
    def losses(self) -> NDArray[np.float32]:
        """Losses of distinct rows, shape (distinct, columns); arbitrary for rows without events."""
        event_of = np.zeros(self.inverse.max(initial=-1) + 1, dtype=np.intp)
        event_of[self.inverse] = np.arange(len(self.inverse))
        return self.batch.losses[event_of]

    @cached_property
    def score(self) -> FloatArray:
        """Mean loss of each event over its columns, shape (rows,)."""
        return np.asarray(self.losses.mean(axis=1, dtype=np.float64).round(DECIMALS)[self.inverse])

    @cached_property
    def z_losses(self) -> FloatArray:
        """Robust z-score of each column's loss, shape (columns, distinct)."""
        fingerprint = self.batch.fingerprint
        losses = self.losses
        if fingerprint is not None:
            losses = fingerprint.baseline.zscore(losses)
        return np.ascontiguousarray(losses.T, dtype=np.float64)

    @cached_property
    def abs_z_losses(self) -> FloatArray:
        """Absolute value of `z_losses`, shape (columns, distinct)."""
        return np.abs(self.z_losses)

    @cached_property
    def column_positions(self) -> dict[str, int]:
        """Position of each column among the columns of the fingerprint."""
        fingerprint = self.batch.fingerprint
        names = () if fingerprint is None else fingerprint.encoder.names
        return {name: position for position, name in enumerate(names)}

    @cached_property
    def zscore(self) -> FloatArray:
        """Z-score of each event's score against validation events, shape (rows,)."""
        fingerprint = self.batch.fingerprint
        return self.score if fingerprint is None else fingerprint.calibration.zscore(self.score)

    @cached_property
    def record(self) -> DayRecord | None:
        """Scores by the days before each event, for later stages; see `daily`."""
        return record_days(self.batch, self.usage, self.timezone, ignored=self.ignored)

    @cached_property
    def daily(self) -> DailyScores | None:
        """Scores by the days before each event; None without a fingerprint or events.

        Raises:
            UsageError: The fingerprint was trained with the reference network.
        """
        return None if self.record is None else self.record.scores

    @property
    def risk(self) -> FloatArray:
        """Log-likelihood ratio of each event in tenths of nats, shape (rows,)."""
        return self._nothing if self.daily is None else self.daily.risk

    @property
    def pvalue(self) -> FloatArray:
        """Share of the user's days that would have such a risk, shape (rows,)."""
        return self._nothing if self.daily is None else self.daily.pvalue

    @property
    def incident_score(self) -> FloatArray:
        """Highest risk of the user's day so far, shape (rows,)."""
        return self._nothing if self.daily is None else self.daily.incident_score

    @property
    def severity(self) -> FloatArray:
        """Severity of the user's day so far, from 0 to 100, shape (rows,)."""
        if self.daily is None:
            return self._nothing
        return compute_severity(self.daily.incident_pvalue)

    @property
    def _nothing(self) -> FloatArray:
        return np.full(self.batch.table.height, np.nan)

    @property
    def own_share(self) -> FloatArray:
        """Share of the training data that is the user's own, shape (rows,)."""
        card = self.batch.card
        return np.full(self.batch.table.height, np.nan if card is None else card.own_share)

    @property
    def training_data_scope(self) -> pl.Series:
        """Whose events the fingerprint was trained on, shape (rows,)."""
        card, rows = self.batch.card, self.batch.table.height
        scope = None if card is None else card.training_data_scope
        return pl.repeat(scope, rows, dtype=pl.String, eager=True)

    def column_z_loss(self, name: str, *, signed: bool = True) -> FloatArray | pl.Series:
        """Return the z-loss of one column, shape (rows,); NaN if there is no such column."""
        if name not in self.column_positions:
            return np.full(self.batch.table.height, np.nan)
        values = self.z_losses if signed else self.abs_z_losses
        return pl.Series(values[self.column_positions[name]].round(DECIMALS)[self.inverse])


def score_days(
    batch: Losses | Scored,
    usage: UsageState,
    timezone: str,
    *,
    attribute: bool = False,
    ignored: NDArray[np.bool_] | None = None,
) -> DailyScores | None:
    """Score the events of a batch by the days before them.

    Args:
        batch: The events.
        usage: What is remembered of the user; updated.
        timezone: Time zone of days.
        attribute: Divide what earlier events add among the columns.
        ignored: Which events have no risk and add nothing to that of others, shape (rows,).

    Returns:
        The scores; None without a fingerprint or without events.

    Raises:
        UsageError: The fingerprint was trained with the reference network.
    """
    record = record_days(batch, usage, timezone, ignored=ignored)
    if record is None or batch.fingerprint is None or batch.fingerprint.usage is None:
        return None
    scores = record.scores
    return scores.divide(usage, batch.fingerprint.usage.leads) if attribute else scores


def record_days(
    batch: Losses | Scored,
    usage: UsageState,
    timezone: str,
    *,
    ignored: NDArray[np.bool_] | None = None,
) -> DayRecord | None:
    """Score the events of a batch by the days before them, or take the scores of an earlier stage.

    The arguments are those of `score_days`.

    Raises:
        UsageError: The fingerprint was trained with the reference network.
    """
    fingerprint, rows, table = batch.fingerprint, batch.encoded, batch.table
    if fingerprint is None or rows is None or not table.height:
        return None
    known = _find_record(batch, usage) if ignored is None else None
    if known is not None:
        return known
    parts, before = _scoring_parts(fingerprint), copy(usage)

    def column_values(column: int, events: NDArray[np.intp]) -> list[str | None]:
        name = fingerprint.encoder.names[column]
        if name not in table:
            return [None] * len(events)
        return table[name].gather(events).cast(pl.String).to_list()

    predictions = MaskedPredictions.predict(parts.net, rows)
    days = number_days(table[TIME], timezone)
    values = structs.replace(
        parts.read_values(rows, predictions, column_values, days), ignored=ignored
    )
    scores = parts.scorer.score(values, usage)
    return DayRecord(rows, before, copy(usage), predictions, scores)


def record_days_of_users(
    batches: Sequence[Losses | Scored], usages: Sequence[UsageState], timezone: str
) -> list[DayRecord | None]:
    """Return what `record_days` returns for each of several users.

    Args:
        batches: Batches of different users, of the same columns.
        usages: What is remembered of each user; updated.
        timezone: Time zone of days.
    """
    from morpheus.models.bundles import UserEvents, score_users  # noqa: PLC0415 - for streams only

    records = [_find_record(batch, usage) for batch, usage in zip(batches, usages, strict=True)]
    known = [
        i
        for i, each in enumerate(batches)
        if records[i] is None and each.fingerprint and each.encoded and each.table.height
    ]
    table = Table.concat([batches[i].table for i in known]) if known else None
    if table is None:
        return records
    users = [
        UserEvents(_scoring_parts(batches[i].fingerprint), batches[i].encoded, usages[i])  # type: ignore[arg-type]  # they have both
        for i in known
    ]

    def column_values(name: str, events: NDArray[np.intp]) -> list[str | None]:
        if name not in table:
            return [None] * len(events)
        return table[name].gather(events).cast(pl.String).to_list()

    names = [batches[i].fingerprint.encoder.names for i in known]  # type: ignore[union-attr]  # as above
    found = score_users(users, names, number_days(table[TIME], timezone), column_values)
    for i, record in zip(known, found, strict=True):
        records[i] = record
    return records


def _find_record(batch: Losses | Scored, usage: UsageState) -> DayRecord | None:
    """Return the scores that an earlier stage has computed, if they are right for this one too.

    Args:
        batch: The events.
        usage: What the stage remembers of the user; updated if there are scores.
    """
    known = batch.daily if isinstance(batch, Scored) else None
    if known is None or batch.encoded is None or not known.follows(batch.encoded, usage):
        return None
    usage.follow(known.after)
    return known


def _scoring_parts(fingerprint: Fingerprint) -> ScoringParts:
    try:
        return fingerprint.scoring_parts
    except ValueError as error:
        raise UsageError(
            f"add-scores: fingerprints of `train-ae --model=reference` have no {_RISK_LABELS}. "
            "Leave these labels out, or train with `--model=compact`."
        ) from error


_RISK_LABELS = "`risk`, `incident_score`, `pvalue` and `severity`"


ScoreFunction = Callable[[ScoreContext], FloatArray | pl.Series]

SCORE_FUNCTIONS: dict[str, ScoreFunction] = {
    SCORE: lambda context: context.score,
    "reconstruct_loss": lambda context: context.score,
    "zscore": lambda context: np.maximum(context.zscore, 0),
    "abs_zscore": lambda context: np.abs(context.zscore),
    "max_abs_z": lambda context: context.abs_z_losses.max(axis=0)[context.inverse],
    "mean_abs_z": lambda context: context.abs_z_losses.mean(axis=0)[context.inverse],
    RISK: lambda context: context.risk,
    INCIDENT_SCORE: lambda context: context.incident_score,
    PVALUE: lambda context: context.pvalue,
    SEVERITY: lambda context: context.severity,
    "rung": lambda context: context.training_data_scope,
    "own_share": lambda context: context.own_share,
}
"""The function of each label. Besides, each feature column has a label `<column>_z_loss`."""
_DAILY_SCORES = {
    id(SCORE_FUNCTIONS[name]): name for name in (RISK, INCIDENT_SCORE, PVALUE, SEVERITY)
}
COMPAT_22_08, COMPAT_22_11 = COMPAT_RELEASES
SCORE_FUNCTIONS_22_11 = SCORE_FUNCTIONS | {"zscore": SCORE_FUNCTIONS["abs_zscore"]}
"""As above. From 22.09 on, `zscore` has no sign."""
MODEL_OUTPUTS = {COMPAT_22_08: (SCORE,), COMPAT_22_11: ("reconstruct_loss", "zscore")}
"""Outputs of the model, by release. These are the default labels. Labels with other names rename
the outputs, in this order."""


class ScoreBundle(msgspec.Struct, dict=True):
    """Scores of batches of several users, one after the other.

    Attributes:
        batches: The batches, of the same columns.
        usages: What is remembered of each user; updated by `records`.
        timezone: Time zone of days.
    """

    batches: Sequence[Losses | Scored]
    usages: Sequence[UsageState]
    timezone: str

    @cached_property
    def records(self) -> list[DayRecord | None]:
        """Scores by the days before each event, of each user."""
        return record_days_of_users(self.batches, self.usages, self.timezone)

    def compute(self, name: str, function: ScoreFunction) -> pl.Series:
        """Return a score of all events, as one column."""
        daily = _DAILY_SCORES.get(id(function))
        if function is SCORE_FUNCTIONS[SCORE]:
            return _to_series(name, self._mean_losses())
        if daily is not None:
            part = "incident_pvalue" if daily == SEVERITY else daily
            values = np.concatenate(
                [
                    np.full(batch.table.height, np.nan) if record is None else record.part(part)
                    for batch, record in zip(self.batches, self.records, strict=True)
                ]
            )
            return _to_series(name, compute_severity(values) if daily == SEVERITY else values)
        parts = [function(context) for context in self._contexts]
        if any(isinstance(part, pl.Series) for part in parts):
            return pl.concat([_to_series(name, part) for part in parts])
        return _to_series(name, np.concatenate(parts))

    @cached_property
    def _contexts(self) -> list[ScoreContext]:
        return [
            ScoreContext(batch, usage, self.timezone)
            for batch, usage in zip(self.batches, self.usages, strict=True)
        ]

    def _mean_losses(self) -> FloatArray:
        """Return what `ScoreContext.score` returns."""
        scores = np.empty(sum(len(batch.losses) for batch in self.batches))
        widths = np.array([batch.losses.shape[1] for batch in self.batches])
        owner = np.repeat(widths, [len(batch.losses) for batch in self.batches])
        for width in np.unique(widths).tolist():
            losses = [batch.losses for batch in self.batches if batch.losses.shape[1] == width]
            scores[owner == width] = np.concatenate(losses).mean(axis=1, dtype=np.float64)
        return scores.round(DECIMALS)


@dataclass(frozen=True)
class AddScores(Transform):
    """Score how unusual each event is for its user.

    Takes events with losses. By default it adds `ae_anomaly_score`, the mean loss over the columns:
    0 or more, higher is more unusual. Events of a user without a fingerprint get no score.

    `--label` adds other scores. `risk` ranks events across all users: how much more typical the
    values are of other users, how unlikely their combination is, and how unusual the events before
    were. 0 is usual; 23 more means ten times as likely of somebody else. The user's earlier days
    count, also those since the training. `incident_score` is the highest risk of the user's day so
    far. `pvalue` is the probability that a usual day of the user has such a risk. `severity` ranks
    days from 0 to 100: 99 means that one usual day in a thousand is as high. `zscore` compares the
    score with validation events, and is 0 below the typical score; `abs_zscore` counts both
    directions.

    If fingerprints are loaded from a model store, or saved in one, the column `model_version` has
    the number of the version that published the fingerprint of the user.

    `<column>_z_loss` compares the loss of one column with its usual loss; `max_abs_z` and
    `mean_abs_z` summarize all columns. `pipeline-ae --compat=22.11` adds them. `rung` and
    `own_share` say whose events the fingerprint was trained on, and the share of the user's own.

    Example: `add-scores`, or `add-scores --label=ae_anomaly_score --label=risk`
    """

    name = "add-scores"
    takes = (Losses, Scored)
    gives = Scored
    needs = Requirements(model=True)

    label: tuple[str, ...] = option(
        (), "Score to add; repeat for more. Default: every label of --labels_file."
    )
    prefix: str = option("", "Prefix of the column names, in front of each label.")
    probs_type: str = option(
        "FLOAT32",
        "Accepted for old command lines; no effect. Scores are 64-bit numbers with six decimals.",
        choices=("BOOL8", "FLOAT32", "FLOAT64", "INT32", "INT64", "UINT32", "UINT64"),
    )

    def validate(self) -> None:
        """Reject labels of which none exists; warn about those that are ignored."""
        functions = self._available_functions()
        unknown = [label for label in self.label if label not in functions]
        for label in unknown:
            logger.warning(
                "add-scores: there is no score `%s`, so this --label is ignored.%s",
                *(label, suggest(label, functions)),
            )
        if not self.score_functions():
            hints = "".join(suggest(label, functions) for label in unknown[:1])
            raise UsageError(
                f"add-scores: no --label is left to add.{hints} "
                f"Use one of {', '.join(f'`--label {label}`' for label in functions)}."
            )

    def open(self, context: StageContext) -> ScoreState:  # noqa: ARG002 - starts empty
        """Start without earlier events."""
        return ScoreState()

    def process(self, batch: Losses | Scored, state: ScoreState) -> Iterator[Scored]:
        """Add one column for each label."""
        columns = self._column_scores
        context = ScoreContext(batch, state.usage, self.options.timezone)
        scores = [_to_series(name, function(context)) for name, function in columns.items()]
        scores += self._list_versions([batch])
        yield batch.evolve(
            Scored,
            table=batch.table.with_columns(scores),
            scores=tuple(dict.fromkeys((*batch.scores, *columns))),
            losses=batch.losses,
            daily=vars(context).get("record"),
        )

    def process_users(
        self, batches: Sequence[Losses | Scored], states: Sequence[ScoreState]
    ) -> Iterator[list[Scored]]:
        """Add the columns to batches of several users."""
        tables = [batch.table for batch in batches]
        has_version = {batch.model_version is not None for batch in batches}
        if len(has_version) > 1 or not Table.have_same_columns(tables):
            yield from (list(self.process(*each)) for each in zip(batches, states, strict=True))
            return
        columns, timezone = self._column_scores, self.options.timezone
        usages = [state.usage for state in states]
        bundle = ScoreBundle(batches, usages, timezone)
        scores = [bundle.compute(name, function) for name, function in columns.items()]
        scores += self._list_versions(batches)
        added = Table.add_to_all(tables, scores)
        for i, (batch, table) in enumerate(zip(batches, added, strict=True)):
            names = tuple(dict.fromkeys((*batch.scores, *columns)))
            daily = bundle.records[i] if "records" in vars(bundle) else None
            yield [
                batch.evolve(Scored, table=table, scores=names, losses=batch.losses, daily=daily)
            ]

    def _list_versions(self, batches: Sequence[Losses | Scored]) -> list[pl.Series]:
        """Return the column of the model's version, if fingerprints have one."""
        if batches[0].model_version is None:
            return []
        versions = np.array([batch.model_version or 0 for batch in batches], dtype=np.int64)
        column = np.repeat(versions, [batch.table.height for batch in batches])
        values = pl.Series(self.prefix + MODEL_VERSION, column)
        return [values if versions.all() else values.set(values == 0, None)]

    @cached_property
    def _column_scores(self) -> dict[str, ScoreFunction]:
        """The function of each added column."""
        labels = self.score_functions().items()
        return self._compat_functions() | {self.prefix + name: score for name, score in labels}

    def score_functions(self) -> dict[str, ScoreFunction]:
        """Return the functions of the labels that exist, by label."""
        functions = self._available_functions()
        labels = self.label or self._default_labels()
        return {label: functions[label] for label in labels if label in functions}

    def _compat_functions(self) -> dict[str, ScoreFunction]:
        """Return the columns that `inf-pytorch` always added from 22.09 on."""
        if self.options.compat == COMPAT_22_08:
            return {}
        summaries = {name: SCORE_FUNCTIONS[name] for name in ("max_abs_z", "mean_abs_z")}
        return self._column_functions() | summaries

    def _column_functions(self) -> dict[str, ScoreFunction]:
        signed = self.options.compat == COMPAT_22_08
        return {
            f"{name}{Z_LOSS_SUFFIX}": partial(ScoreContext.column_z_loss, name=name, signed=signed)
            for name in self.options.columns
        }

    def _default_labels(self) -> tuple[str, ...]:
        return self.options.labels or MODEL_OUTPUTS[self.options.compat]

    def _available_functions(self) -> Mapping[str, ScoreFunction]:
        """Return all functions by label.

        If the labels of --labels_file are not all known, they rename the outputs of the model.
        """
        compat = self.options.compat
        functions = SCORE_FUNCTIONS if compat == COMPAT_22_08 else SCORE_FUNCTIONS_22_11
        functions = functions | self._column_functions()
        labels, outputs = self._default_labels(), MODEL_OUTPUTS[compat]
        if functions.keys() >= set(labels):
            return functions
        if len(labels) != len(outputs):
            many, lines = ("output", "line") if len(outputs) == 1 else ("outputs", "lines")
            raise UsageError(
                f"add-scores: there are {len(labels)} labels ({', '.join(labels)}), but the model "
                f"has {len(outputs)} {many}. Give `--labels_file` a file with {len(outputs)} "
                f"{lines}, leave it out for {' and '.join(f'`{name}`' for name in outputs)}, or "
                f"use known labels: {', '.join(SCORE_FUNCTIONS)}."
            )
        return functions | {
            label: functions[output] for label, output in zip(labels, outputs, strict=True)
        }


def validate_labels(stage_name: str, label: tuple[str, ...], options: PipelineOptions) -> None:
    """Reject labels of which none exists; warn about those that are ignored.

    Args:
        stage_name: The word of the stage that has the option.
        label: The labels; empty for all.
        options: Options of the pipeline, which determine the labels that exist.

    Raises:
        UsageError: None of the labels exists.
    """
    try:
        AddScores(label=label, options=options).validate()
    except UsageError as error:
        raise UsageError(str(error).replace(AddScores.name, stage_name)) from error


def compute_scores(
    batch: Losses | Scored,
    usage: UsageState,
    label: tuple[str, ...],
    options: PipelineOptions,
    ignored: NDArray[np.bool_] | None = None,
) -> dict[str, pl.Series]:
    """Compute the scores of a batch, by label. Without a fingerprint they are NaN.

    Args:
        batch: The events.
        usage: What is remembered of the user's earlier events; updated.
        label: The labels; empty for all labels of the pipeline.
        options: Options of the pipeline, which determine the labels that exist.
        ignored: See `score_days`.
    """
    functions = _find_functions(label, options)
    context = ScoreContext(batch, usage, options.timezone, ignored)
    return {name: _to_series(name, function(context)) for name, function in functions.items()}


def compute_scores_of_users(
    batches: Sequence[Losses | Scored],
    usages: Sequence[UsageState],
    label: tuple[str, ...],
    options: PipelineOptions,
) -> list[pl.Series]:
    """Compute the scores of batches of several users, each as one column.

    Args:
        batches: Batches of different users, of the same columns.
        usages: What is remembered of each user's earlier events; updated.
        label: The labels; empty for all labels of the pipeline.
        options: Options of the pipeline, which determine the labels that exist.
    """
    bundle = ScoreBundle(batches, usages, options.timezone)
    functions = _find_functions(label, options)
    return [bundle.compute(name, function) for name, function in functions.items()]


@lru_cache(maxsize=8)
def _cached_functions(
    label: tuple[str, ...], labels: tuple[str, ...], columns: tuple[str, ...], compat: str
) -> dict[str, ScoreFunction]:
    options = PipelineOptions(labels=labels, columns=columns, compat=compat)
    return AddScores(label=label, options=options).score_functions()


def _find_functions(label: tuple[str, ...], options: PipelineOptions) -> dict[str, ScoreFunction]:
    """Return the functions of labels; the same ones for each batch."""
    return _cached_functions(label, options.labels, options.columns, options.compat)


def exceeds(values: pl.Series, threshold: float) -> pl.Series:
    """Return which values are above a threshold. Missing values are not."""
    numbers = values.cast(pl.Float64, strict=False)
    return (numbers > threshold).fill_null(value=False) & numbers.is_not_nan().fill_null(
        value=False
    )


def _to_series(name: str, values: FloatArray | pl.Series) -> pl.Series:
    if isinstance(values, pl.Series):
        return values.alias(name)
    return pl.Series(name, values.round(DECIMALS))


@dataclass(frozen=True)
class AddClass(Transform):
    """Add a boolean column: whether the score of an event is above a threshold.

    Takes events with losses or scores and adds a column for each label: True above `--threshold`,
    False at or below it and for events without a score. A column of the same name is replaced; to
    keep the score as well, give a `--prefix`.

    Example: `add-class --threshold=2.5 --prefix=is_`
    """

    name = "add-class"
    takes = (Losses, Scored)
    needs = Requirements(model=True)

    threshold: float = option(
        0.5, "Score above which the class is True. Scores are not probabilities."
    )
    label: tuple[str, ...] = option(
        (), "Score to compare; repeat for more. Default: every label of --labels_file."
    )
    prefix: str = option("", "Prefix of the column names, in front of each label.")
    probs_type: str = option(
        "BOOL8",
        "Accepted for old command lines; no effect. Classes are True or False.",
        choices=("BOOL8", "FLOAT32", "FLOAT64", "INT32", "INT64", "UINT32", "UINT64"),
    )

    def validate(self) -> None:
        """Reject unknown labels; warn about labels that are ignored."""
        validate_labels(self.name, self.label, self.options)

    def open(self, context: StageContext) -> ScoreState:  # noqa: ARG002 - starts empty
        """Start without earlier events."""
        return ScoreState()

    def process(self, batch: Losses | Scored, state: ScoreState) -> Iterator[Losses | Scored]:
        """Add one column for each label."""
        scores = compute_scores(batch, state.usage, self.label, self.options)
        classes = [
            exceeds(values, self.threshold).alias(self.prefix + label)
            for label, values in scores.items()
        ]
        yield replace(batch, table=batch.table.with_columns(classes))

    def process_users(
        self, batches: Sequence[Losses | Scored], states: Sequence[ScoreState]
    ) -> Iterator[list[Losses | Scored]]:
        """Add the columns to batches of several users."""
        tables = [batch.table for batch in batches]
        if not Table.have_same_columns(tables):
            yield from (list(self.process(*each)) for each in zip(batches, states, strict=True))
            return
        usages = [state.usage for state in states]
        names = _find_functions(self.label, self.options)
        scores = compute_scores_of_users(batches, usages, self.label, self.options)
        classes = [
            exceeds(values, self.threshold).alias(self.prefix + label)
            for label, values in zip(names, scores, strict=True)
        ]
        added = Table.add_to_all(tables, classes)
        yield from ([batch.change(table=each)] for batch, each in zip(batches, added, strict=True))
