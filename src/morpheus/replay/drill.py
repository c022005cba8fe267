"""What is to be replayed, on whom, and what would do: the options of `morpheus tools replay`."""

from __future__ import annotations

from dataclasses import dataclass

from morpheus.columns import ACTOR_OPTION, RISK, SCORE
from morpheus.stage import option

GRADES = ("recorded", "agent", "hours")
"""How well the intruder hides: behind the victim's credentials only; also on the victim's machine,
with the victim's programs; and then at the victim's hours."""
RECORDED, HOURS = GRADES[0], GRADES[-1]
RANKINGS = (RISK, SCORE, "zscore", "max_abs_z", "mean_abs_z")
"""Labels of which more is more unusual."""
FORMATS = ("table", "csv", "json")


@dataclass(frozen=True)
class Drill:
    r"""Would we have caught it? Replay attack techniques in the name of each user, and see.

    Learns each user as `train-ae` does, injects each technique into one of the user's later days,
    and scores it among the user's own events. A technique is caught when one of its events scores
    higher than the budget of alerts lets the user's own events of these days do. stdout has the
    share of techniques caught, or each trial with `--output_format`.

        morpheus tools replay --train_data_glob="may/*.json.gz" --input_glob="june/*.json.gz" \
            --userid_column_name=userIdentityarn --min_recall 0.8
    """

    input_glob: str = option(
        "",
        "CloudTrail files to inject into, read as `from-cloudtrail` does. They should hold no "
        "attack: a glob in quotes, a file or a folder.",
        required=True,
    )
    train_data_glob: str | None = option(
        None,
        "Files to learn from, earlier than the input. Without it, the last quarter of the "
        "input's days is injected into, and the rest learnt from.",
    )
    pretrained_filename: str | None = option(
        None, "Folder of fingerprints that `train-ae` saved; nothing is trained."
    )
    userid_column_name: str = option(
        "userIdentityaccountId",
        f"Column that says whose event it is; `{ACTOR_OPTION}` finds out who acted.",
    )
    userid_filter: str | None = option(None, "Try the techniques on this user only.")
    columns_file: str | None = option(
        None, "File of feature columns, one name a line. By default the list shipped."
    )
    train_min_history: int = option(
        300, "Events of history that a user needs; fewer are filled up as `train-ae` does.", min=1
    )
    bad_record: str = option(
        "fail",
        "What becomes of a record that cannot be read: the run fails, or it is left out.",
        choices=("fail", "skip"),
    )
    techniques: str | None = option(
        None,
        "Folder with a JSON file of CloudTrail records for each technique. By default those "
        "shipped.",
    )
    grade: tuple[str, ...] = option(
        (),
        "How well the intruder hides; repeat for more. `recorded`: behind the user's credentials; "
        "`agent`: with the user's agent and address besides; `hours`: and at the user's hours. By "
        "default all three.",
        choices=GRADES,
    )
    label: str = option(RISK, "Score of `add-scores` to go by.", choices=RANKINGS)
    alerts_per_day: float | None = option(
        None,
        "Alerts that one is ready to look at each day, shared evenly by the users tried.",
        min=0.0,
        default_display="one for each user and week",
    )
    min_recall: float | None = option(
        None,
        "End with exit code 1 if a smaller share of all trials is caught.",
        min=0.0,
        max=1.0,
    )
    suppressions: tuple[str, ...] = option(
        (),
        "File of suppressions, as of `filter`: a technique whose alerts they would all hold back "
        "is not caught; repeat for more.",
    )
    seed: int = option(0, "Seed of what is drawn, and of the training.", min=0)
    num_threads: int | None = option(
        None,
        "Users tried side by side, at most. No result depends on it.",
        min=1,
        default_display="the cores at hand",
    )
    output_format: str = option(
        "table",
        "What to write: a `table` of the shares caught, or each trial as `csv` or `json`.",
        choices=FORMATS,
    )
    filename: str | None = option(
        None,
        "File for each trial, `.csv` or `.json`; one of that name is replaced. stdout then has the "
        "table.",
    )

    @property
    def grades(self) -> tuple[str, ...]:
        """The grades to try, from the easiest to the hardest to catch."""
        wanted = {each.lower() for each in self.grade}
        return tuple(each for each in GRADES if not wanted or each in wanted)
