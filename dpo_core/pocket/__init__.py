"""The pocket world: a small closed world of facts, a judge that knows it, and the making of the pocket model."""
