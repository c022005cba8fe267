"""Where work runs: local workers, Dask, keyed state, signals."""
