"""A package, so that its conftest does not share a module name with the one above."""
