"""Committees: energies, forces and stresses of their members, readout heads, parameters as collections."""
