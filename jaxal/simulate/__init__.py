"""What a finished model is used for: dynamics, free energies, barriers, saddles, vibrations."""
