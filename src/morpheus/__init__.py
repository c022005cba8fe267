"""Learns what each user in your logs usually does, and tells when one stops being themselves."""
