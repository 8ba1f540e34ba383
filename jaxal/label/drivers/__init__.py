"""Scripts that another Python runs, for codes that are Python packages of their own, and what starts them."""
