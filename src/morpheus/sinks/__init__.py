"""Sinks: files, the console, the report page, HTTP servers and Kafka."""
