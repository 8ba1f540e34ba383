"""Loss, fit and what the held-out labels say."""
