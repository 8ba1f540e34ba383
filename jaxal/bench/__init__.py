"""Benchmarks of the program's parts on any backend: `jaxal bench`."""
