"""Readers: sources over other people's files, one file per dataset layout."""
