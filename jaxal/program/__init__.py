"""The compiled program: steps of the walkers, reports of looks, selection, labels, growth, retraining."""
