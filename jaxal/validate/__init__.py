"""Validation of a potential: errors, calibration of its spread, barriers, dynamics."""
