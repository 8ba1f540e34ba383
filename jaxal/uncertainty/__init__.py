"""What turns a model into a distribution: each a registered method of one kind (`types.Uncertainty`)."""

METHODS = ("members", "laplace", "gaussian_process", "d_optimality", "density")  # modules that register one
