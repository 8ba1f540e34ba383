"""What turns a model into a distribution: each a registered method of one kind (`types.Uncertainty`)."""

METHODS = (  # modules that register one
    "members",
    "laplace",
    "gaussian_process",
    "d_optimality",
    "density",
    "dropout",
    "evidential",
    "gradient_sketch",
)
