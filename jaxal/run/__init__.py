"""The host of a run: first labels, exploration, final training, checkpoints, the run folder."""
