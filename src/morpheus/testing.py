"""Builders for tests, of ours and of plugin authors."""
