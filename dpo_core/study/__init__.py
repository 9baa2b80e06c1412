"""What is learned about a model: evaluation, diagnosis, what to watch, and a world small enough to be solved."""
