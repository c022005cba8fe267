"""Suppressions: rules by which people hide harmless alerts until an end date."""
