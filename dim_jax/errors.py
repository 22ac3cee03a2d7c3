"""The one exception for input that a user can mend."""


class InputError(ValueError):
    """What the user gave (a file, a value, a checkpoint) cannot be used.

    The message names the file, the line or the tensor, states the rule with the values that break it, and says what to do.
    The command line prints it without a traceback and exits with 1.
    """
