"""Configurations: their fields, loading, checks, and the modules that register parts."""
