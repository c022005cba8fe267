"""Where a sink's file is to appear."""

from __future__ import annotations

import os
from pathlib import Path

from morpheus.errors import UsageError


def validate_output_path(path: Path, *, overwrite: bool, stage_name: str) -> None:
    """Refuse, before any file is opened, a place that a sink cannot write to.

    Raises:
        UsageError: It is a folder or no regular file, is there already, or cannot be made.
    """
    if path.is_dir():
        raise UsageError(
            f"--filename: `{path}` is a folder. Give a file in it, such as "
            f"`--filename {path / 'detections.csv'}`."
        )
    if path.exists() and not path.is_file():
        raise UsageError(f"--filename: `{path}` is no regular file. Give the name of a file.")
    if path.exists() and not overwrite:
        raise UsageError(
            f"Cannot output classifications to '{path}'. File exists and overwrite = False. "
            f"Give `{stage_name} --overwrite`, or another --filename."
        )
    _validate_folder(path)


def _validate_folder(path: Path) -> None:
    """Refuse a folder that a file cannot be made in."""
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UsageError(
            f"--filename: `{folder}` is a file, not a folder. Give another --filename."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            f"--filename: folder `{folder}` cannot be written to. Give another --filename, or "
            f"`chmod u+w` the folder."
        )
