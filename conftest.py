"""Where pytest looks for tests."""

from importlib.util import find_spec

# Its doctests need what it is written for. All other files must be there to be imported: a test
# that cannot be is an error, not a test less.
collect_ignore = [] if find_spec("sklearn") else ["src/morpheus/estimator.py"]
