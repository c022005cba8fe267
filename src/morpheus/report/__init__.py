"""The report: what a run found, collected, turned into a page's data, and rendered."""
