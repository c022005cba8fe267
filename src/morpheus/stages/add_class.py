"""`add-class`: mark events whose score is above a threshold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from morpheus.core.batch import Losses, Scored
from morpheus.core.stage import Requirements, StageContext, Transform, option
from morpheus.stages.add_scores import ScoreState, compute_scores, exceeds, validate_labels


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
        scores = compute_scores(batch, state, self.label, self.options)
        classes = [
            exceeds(values, self.threshold).alias(self.prefix + label)
            for label, values in scores.items()
        ]
        yield replace(batch, table=batch.table.with_columns(classes))
