"""The live report: the results of a run, shown in a browser while they are written."""
