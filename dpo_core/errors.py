"""The one exception for what a user can put right."""


class InputError(ValueError):
    """Something given to ``dpo_core`` is wrong; the message says what, where, and how to mend it."""
