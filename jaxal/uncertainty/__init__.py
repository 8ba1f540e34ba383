"""What turns a model into a distribution: each a registered method of one kind (`types.Uncertainty`)."""
