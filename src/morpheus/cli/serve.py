"""`morpheus serve`: the report's page, live."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from morpheus.cli.command import made_of
from morpheus.cli.screen import say
from morpheus.errors import UsageError
from morpheus.stage import option


@dataclass(frozen=True)
class Serve:
    r"""Show the report's page, live, of a FOLDER into which a run writes.

    Rows are shown as they come: files that grow (`to-file --flush`), and new files. Only this
    machine can open the page, and only with the token that stands in its address, printed once.
    Nothing can be changed through it. Ctrl+C ends it.

        morpheus run --status_file=out/status.json pipeline-ae ... \
            to-file --filename=out/alerts.jsonl --flush
        morpheus serve out
    """

    port: int = option(
        8321, "Where to listen, on 127.0.0.1; 0 for any that is free.", min=0, max=65535
    )
    token: bool = option(True, "Ask for the token. Without, everybody on this machine can read.")
    userid_column_name: str = option(
        "",
        "Column of the rows that says whose event it is.",
        default_display="the one that the run's status names, or the first that is known to",
    )
    models: str | None = option(
        None,
        "Folder of the fingerprints that scored: the page shows them, and measures by them.",
    )
    alerts_per_day: float | None = option(
        None,
        "Alerts a day that you are ready to look at.",
        min=0,
        default_display="that of the run's `filter`, or 5",
    )


def _serve(options: Serve, folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(
            f"FOLDER: there is no folder `{folder}`. Give the one into which `to-file` writes."
        )
    try:
        from morpheus.serve.server import serve  # noqa: PLC0415 - `--help` serves nothing
    except ModuleNotFoundError as error:
        raise UsageError(
            f"serve: `{error.name}` is not installed. Get it by `pip install 'morpheus[serve]'`."
        ) from error
    from morpheus.models.store import ModelStore  # noqa: PLC0415 - as above
    from morpheus.serve.live import Live  # noqa: PLC0415 - as above

    store = None if options.models is None else ModelStore.open(options.models)
    live = Live(folder, options.userid_column_name, options.alerts_per_day, store)
    serve(live, port=options.port, with_token=options.token, tell=_tell)


def _tell(address: str) -> None:
    say(f"Serving at {address}")
    say("Whoever on this machine has this address can read. Ctrl+C ends it.", dim=True)


FOLDER = click.Argument(["folder"], type=click.Path(path_type=Path))
serve = made_of("serve", Serve, _serve, FOLDER)
