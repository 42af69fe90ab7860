"""The one exception that is the user's to mend."""


class InputError(ValueError):
    """Bad input or usage: a file, a flag, a run folder, a sample.

    Its text is one or more whole sentences: what was found, where (file, line, sample), what was
    expected, and what to do about it. The command line prints it without a traceback and exits
    with code 2; from Python it is an ordinary ``ValueError``.
    """


class RunError(RuntimeError):
    """A run that cannot go on though its input is fine: a full disk, a loss that is not finite.

    Its text is whole sentences too. The command line prints it without a traceback and exits
    with code 1.
    """
