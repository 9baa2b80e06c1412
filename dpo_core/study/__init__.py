"""The study of a model: evaluation, diagnosis, what to watch, and a world small enough to be solved."""
