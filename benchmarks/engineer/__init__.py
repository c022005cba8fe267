"""The first ten minutes of a security engineer, measured."""
