"""The label store, and the ways in and out of it."""
