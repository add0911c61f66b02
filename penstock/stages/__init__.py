"""Stages: records in, records out. Each states its output schema and its identity, and opens no file."""
