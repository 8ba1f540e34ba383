"""How walkers move."""
