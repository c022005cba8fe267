"""`add-class`: whether an event's score is above a threshold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from morpheus.core.batch import Losses, Scored
from morpheus.core.stage import Transform, option
from morpheus.stages.score_outputs import exceeds, iter_with_scores, validate_labels


@dataclass(frozen=True)
class AddClass(Transform):
    """Say of each event whether its score is above a threshold.

    Takes events with losses or scores and adds a column for each label: True above `--threshold`,
    False at or below it and for events without a score. A column of that name is replaced, so
    give `--prefix` to keep the score beside it.

    Example: `add-class --threshold=2.5 --prefix=is_`
    """

    name = "add-class"
    takes = (Losses, Scored)

    threshold: float = option(
        0.5, "Score above which an event is of the class. Scores are no probabilities: look first."
    )
    label: tuple[str, ...] = option(
        (), "Score looked at; repeat for more. By default every label of --labels_file."
    )
    prefix: str = option("", "Put before each label to make the name of its column.")
    probs_type: str = option(
        "BOOL8",
        "Accepted for old command lines. Classes are True or False here.",
        choices=("BOOL8", "FLOAT32", "FLOAT64", "INT32", "INT64", "UINT32", "UINT64"),
    )

    def validate(self) -> None:
        """Refuse labels that nothing computes; warn of those left out."""
        validate_labels(self.name, self.label, self.options)

    def __call__(self, batches: Iterator[Losses | Scored]) -> Iterator[Losses | Scored]:
        """Add one column for each label."""
        for batch, found in iter_with_scores(batches, self.label, self.options):
            classes = [
                exceeds(values, self.threshold).alias(self.prefix + label)
                for label, values in found.items()
            ]
            yield replace(batch, frame=batch.frame.with_columns(classes))
