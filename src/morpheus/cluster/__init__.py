"""Workers on this machine or on others, reached through Dask: the only folder that knows Dask."""
