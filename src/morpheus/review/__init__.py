"""Finished runs, reviewed: from the files that they wrote to a page."""
