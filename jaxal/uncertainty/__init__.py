"""What turns a model into a distribution: each a registered method of one kind (`types.Uncertainty`)."""

METHODS = ("members", "dropout", "evidential", "gradient_sketch")  # modules that register one
