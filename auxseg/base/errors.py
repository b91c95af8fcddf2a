"""The one exception for whatever a user or a scan can cause."""


class InputError(ValueError):
    """Input that cannot be used; the command line prints it as one line and exits with 2.

    The message names what, what was found, what was expected, where, and what to do.
    Everything else that is raised is a fault of auxseg and keeps its traceback.
    """

    def __init__(self, text):
        super().__init__(str(text).replace("\n", " "))  # of what others say, and of values that are quoted


def check_choice(name, value, choices):
    """Returns `value` if it is one of `choices`.

    Args:
        name: the setting's full name, such as 'data.split'.
        value: what the user gave.
        choices: the valid values, in the order to list them.

    Raises:
        InputError: `value` is none of them; the message lists them all.
    """
    if value not in choices:
        raise InputError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, choices))}")
    return value
