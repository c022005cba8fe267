"""`to-file`: rows into one file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from polars.exceptions import PolarsError

from morpheus.atomic import Draft
from morpheus.errors import UsageError
from morpheus.records import Rows, Spelt
from morpheus.scratch import Scratch
from morpheus.sinks.formats import (
    EXTENSIONS,
    PACKED,
    Form,
    Parquet,
    Text,
    csv_head,
    csv_rows,
    json_rows,
    kind_of,
)
from morpheus.sinks.head import Head
from morpheus.sinks.place import check_place
from morpheus.sinks.spelling import Spelling
from morpheus.stage import Stage, option


@dataclass(frozen=True)
class ToFile(Stage):
    """Write the rows to a file, which appears whole or not at all.

    Takes rows and hands them on. The extension decides the format: `.csv`; `.json`, `.jsonl`,
    `.jsonlines` or `.ndjson`, one object a line; `.parquet`. With `.gz` or `.zst` behind it, text
    is packed. In CSV, text that a spreadsheet would run as a formula gets a `'` before it. The
    first rows decide the columns.

    Example: `to-file --filename=detections.csv --overwrite`
    """

    name = "to-file"
    takes = (Rows,)
    gives = Rows
    scope = "run"
    sink = True
    needs_fingerprint = False

    filename: str = option("", "File to write; its folder is made if there is none.", required=True)
    overwrite: bool = option(
        False,
        "Replace a file of that name, which stays until the new one is whole.",
        flag=True,
    )
    include_index_col: bool = option(
        True,
        "Write the unnamed first column, a running number for each user. JSON never has it.",
        names=("--include-index-col", "--include_index_col"),
    )
    file_type: str = option(
        "auto",
        "Format, whatever the extension is.",
        choices=("auto", "csv", "json", "parquet"),
    )
    flush: bool = option(
        False,
        "Let rows be seen under the file's name as they come. The file is then not whole until the "
        "run ends, and stays if the run fails. Not for Parquet.",
        flag=True,
    )

    def check(self) -> None:
        """Refuse a name that cannot be written to, and a format that there is none of."""
        if not self.filename:
            raise UsageError("to-file: no file is named. Give `--filename detections.csv`.")
        kind, _ = self._format()
        if self.flush and kind == "parquet":
            raise UsageError(
                f"--flush: `{self.filename}` is Parquet, which can be read only when it is whole. "
                f"Leave out --flush, or write `.csv` or `.jsonl`."
            )
        path = Path(self.filename)
        check_place(path, overwrite=self.overwrite, stage=self.name)

    def writes(self) -> Path | None:
        """The file."""
        return Path(self.filename)

    def __call__(self, batches: Iterator[Rows]) -> Iterator[Rows]:
        """Write each batch, then hand it on."""
        head = Head(self.name, row=self.include_index_col)
        with Draft(Path(self.filename), PolarsError) as draft, self._open(draft) as form:
            for batch in batches:
                with draft.writing():
                    if not isinstance(batch, Spelt):
                        form.write(head.fit(batch.frame))
                    elif batch.text is not None:
                        form.append(batch.text)
                    if self.flush:
                        _show(draft, form)
                yield batch
            with draft.writing():
                form.finish()

    def writes_into(self) -> Path:
        """Where the file is to appear."""
        return Path(os.path.realpath(self.filename)).parent

    def beforehand(self, first: Rows, scratch: Scratch) -> Stage | None:
        """Rows can become text anywhere, if they are like the first ones."""
        kind, _ = self._format()
        if kind == "parquet":
            return None
        rows = csv_rows if kind == "csv" else json_rows
        return Spelling(rows, kind_of(first.frame), scratch.folder, index=self.include_index_col)

    def _format(self) -> tuple[str, str]:
        """Format and packing."""
        name = Path(self.filename).name.lower()
        packing = next((end for end in PACKED if name.endswith(end)), "")
        extension = Path(name.removesuffix(packing)).suffix
        kind = EXTENSIONS.get(extension, "") if self._auto else self.file_type.lower()
        if not kind:
            raise UsageError(
                f"--filename: Unsupported extension '{extension}' with 'auto' type, in "
                f"`{self.filename}`. Use {', '.join(EXTENSIONS)}, or `--file_type csv`."
            )
        if kind == "parquet" and packing:
            raise UsageError(
                f"--filename: `{self.filename}`: Parquet is packed already. Leave out `{packing}`."
            )
        return kind, packing

    @property
    def _auto(self) -> bool:
        return self.file_type.lower() == "auto"

    def _open(self, draft: Draft) -> Form:
        kind, packing = self._format()
        if kind == "parquet":
            return Parquet(draft.part)
        if kind == "json":
            return Text(draft.file, packing, rows=json_rows)
        return Text(draft.file, packing, rows=csv_rows, head=csv_head)


def _show(draft: Draft, form: Form) -> None:
    """Let all rows so far be seen under the file's name."""
    form.flush()
    if not draft.published:
        draft.publish()
