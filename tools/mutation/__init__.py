"""Plant mistakes in the code, one at a time, and see whether a test or a chapter notices: ``python -m tools.mutation``.

A mistake changes the syntax of one function. It is named by module and function, never by a line or by the text there,
so that comments, docstrings, line breaks and the names of local variables may change under it. The planted code is
handed to Python by ``hook/sitecustomize.py`` in place of a module's own: no file is touched, and what a chapter prints
of the library's source stays as it is, so that only a changed result gives a mistake away.
"""
