"""Widgets: each front end is one ES module beside its Python file; import them by module."""
