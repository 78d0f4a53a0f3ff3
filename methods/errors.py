"""The one error that a user, not a developer, has to mend."""


class SetupError(ValueError):
    """Something the user must install, download or set; printed without a traceback, exit code 2.

    The message says what is wrong, what was got, what is allowed, and the next step.
    """
