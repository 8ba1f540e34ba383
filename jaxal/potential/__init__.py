"""Models of the energy: the equivariant one and closed forms."""
