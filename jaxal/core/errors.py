"""What is said to a user: mistakes, and what looks like one."""


class InputError(ValueError):
    """A mistake of the user's. One line: the field or file, what was wrong, what would be right."""


class InputWarning(UserWarning):
    """Something in the input that can be meant, but rarely is. One line, as of an InputError."""
