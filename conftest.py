"""Where pytest looks for tests."""

from importlib.util import find_spec

# Doctests of these modules need an optional package. Any other module that cannot be imported is an
# error.
NEEDS = {"src/morpheus/sklearn.py": "sklearn", "src/morpheus/models/reference.py": "torch"}
collect_ignore = [path for path, package in NEEDS.items() if find_spec(package) is None]
