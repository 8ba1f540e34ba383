"""Data from outside and back: files, ASE's atoms, labels, electrons, constraints. numpy alone, never JAX."""
