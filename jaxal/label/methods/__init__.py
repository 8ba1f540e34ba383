"""Reference methods: one file for each code."""
