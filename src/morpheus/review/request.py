"""Which page is to be made of finished runs: the options of `morpheus report`."""

from __future__ import annotations

from dataclasses import dataclass

from morpheus.stage import option


@dataclass(frozen=True)
class Request:
    """Write a page from what earlier runs wrote to files: CSV, JSON lines or Parquet.

    It is the page of the stage `to-report`, as far as the files know. Where they hold scores of all
    events, alerts are the highest; where `filter` has left events out, all that are there.

    Example: `morpheus report output.csv --filename=report.html`
    """

    filename: str = option("report.html", "Page to write; its folder is made if there is none.")
    overwrite: bool = option(
        False, "Replace a file of that name, which stays until the new one is whole.", flag=True
    )
    userid_column_name: str = option(
        "", "Column that says whose event it is.", default_display="the first that is known to"
    )
    models: str | None = option(
        None,
        "Folder of the fingerprints that scored: the page shows them, and measures by them.",
    )
    replay: str | None = option(
        None,
        "File that `morpheus tools replay --filename=trials.csv` wrote: what would have raised no "
        "alert stands among each user's weak spots. With --models.",
    )
    alerts_per_day: float = option(
        5.0, "Where nothing was left out: incidents a day that are shown, at most.", min=0
    )
    all_alerts: bool = option(
        False, "Every event of the files is an alert. Found out by itself, but in JSON.", flag=True
    )
