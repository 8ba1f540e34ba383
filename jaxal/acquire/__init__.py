"""Acquisition: scores, gates and batch selection, all pure functions."""
