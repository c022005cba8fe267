"""`morpheus tools suppress`: from verdicts to suppressions, and what these would hide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.exceptions import Exit

from morpheus.cli.command import made_of
from morpheus.cli.exits import FAILED, stoppable
from morpheus.cli.screen import say
from morpheus.cli.summary import count
from morpheus.cli.table import show
from morpheus.errors import UsageError
from morpheus.stage import option

if TYPE_CHECKING:
    from morpheus.suppressions.verdicts import Proposals


@dataclass(frozen=True)
class Suppress:
    r"""Make suppressions of verdicts, for people to read and `filter --suppressions` to apply.

    VERDICTS are files that the report exported. What was judged `expected` or `benign-new` is
    proposed, by the values that made it strange, for the users concerned and for some days; what
    would also hide something judged `suspicious` or `malicious` is refused: it stands in the file
    as a comment, and the exit code is 1. stdout has what each would have hidden, of --preview and
    of the attacks replayed with --replay_glob. A file of suppressions in place of verdicts is only
    previewed; nothing is written.

        morpheus tools suppress verdicts.json --preview=alerts.csv \
            --replay_glob="june/*.json.gz" --userid_column_name=userIdentityarn
    """

    filename: str = option("suppressions.toml", "File to write; it is there for you to change.")
    overwrite: bool = option(False, "Replace a file of that name.", flag=True)
    days: int = option(
        30, "How long they hold, from the day when the verdicts were exported.", min=1, max=366
    )
    preview: tuple[str, ...] = option(
        (), "Past alerts to look at: a file that `to-file` wrote behind `filter`; repeat for more."
    )
    userid_column_name: str = option(
        "",
        "Column of the past alerts and of the logs that says whose event it is.",
        default_display="the first that is known to",
    )
    replay_glob: str | None = option(
        None,
        "CloudTrail files to replay attacks in, as `morpheus tools replay --input_glob` does; "
        "that takes a while.",
    )
    train_data_glob: str | None = option(
        None, "Files to learn from before attacks are replayed; see `morpheus tools replay`."
    )
    techniques: str | None = option(
        None, "Folder of attack techniques to replay. By default those shipped."
    )
    num_threads: int | None = option(
        None,
        "Users tried side by side, at most. No result depends on it.",
        min=1,
        default_display="the cores at hand",
    )


def _suppress(options: Suppress, files: Sequence[str]) -> None:
    ready = [name.endswith(".toml") for name in files]
    if any(ready) and not all(ready):
        raise UsageError("VERDICTS: give files of verdicts, or of suppressions, not both.")
    with stoppable():
        if all(ready):
            _show_only(files, options)
        else:
            _propose(files, options)


VERDICTS = click.Argument(["verdicts"], nargs=-1, required=True)
suppress = made_of("suppress", Suppress, _suppress, VERDICTS)


def _show_only(files: Sequence[str], options: Suppress) -> None:
    """Preview suppressions that are there already."""
    from morpheus.cli.preview import looks, table  # noqa: PLC0415 - `--help` looks at nothing
    from morpheus.suppressions.rules import Suppressions  # noqa: PLC0415 - the same

    found = looks(Suppressions.read(*files).rules, options)
    show(*table(found))
    for look in found:
        _warn(look.rule.label, look.doubts)


def _propose(files: Sequence[str], options: Suppress) -> None:
    """Make suppressions, write them, and say what they would hide."""
    from morpheus.atomic import atomic_write  # noqa: PLC0415 - `--help` writes nothing
    from morpheus.cli.preview import looks, table  # noqa: PLC0415 - the same
    from morpheus.suppressions.verdicts import Proposals  # noqa: PLC0415 - the same
    from morpheus.suppressions.writing import render_suppressions  # noqa: PLC0415 - the same

    path = Path(options.filename)
    if path.exists() and not options.overwrite:
        raise UsageError(
            f"--filename: there is a file `{path}` already, which somebody may have changed. Give "
            "`--overwrite`, or another --filename; `filter` takes more than one."
        )
    proposals = Proposals.from_files(files, options.days)
    found = looks([one.rule for one in proposals.proposals], options, proposals)
    proposals = proposals.with_objections([(look.against, look.doubts) for look in found])
    with atomic_write(path) as file:
        file.write(render_suppressions(proposals, files).encode())
    show(*table(found))
    _tell(proposals, path)


def _tell(proposals: Proposals, path: Path) -> None:
    """Say what was written and what was not; refusals are a failure."""
    refused = [one for one in proposals.proposals if one.conflicts]
    for one in proposals.proposals:
        _warn(one.rule.label, one.warnings)
    for verdict in proposals.unactionable:
        say(
            f"No suppression for incident {verdict.incident}: it names no user, or no value.",
            fg="yellow",
        )
    for one in refused:
        say(f"Refused: {one.rule.label}: {'; '.join(one.conflicts)}.", fg="red")
    written = count(len(proposals.proposals) - len(refused), "suppression")
    say(f"{written} in {path}. Read them, then: filter --suppressions={path}")
    if refused:
        raise Exit(FAILED)


def _warn(title: str, doubts: Sequence[str]) -> None:
    for doubt in doubts:
        say(f"Warning: {title}: {doubt}.", fg="yellow")
