"""The errors that a user can cause, each a single line that says what was wrong, the value and what to do."""


class UserError(Exception):
    """Something that the user can mend; programs print it as one line, without a traceback."""


class ConfigError(UserError, ValueError):
    """An unknown option, a value of the wrong type or an impossible combination."""


class DataError(UserError):
    """Images that are missing, unreadable or of the wrong shape."""


class RunError(UserError):
    """A run folder that cannot be opened, continued or written."""


class UntrustedError(UserError):
    """Files of somebody else's that would run their code, or lead to where the user did not point."""


class NotInitializedError(UserError, RuntimeError):
    """A model whose data-dependent initialisation has not been done."""


class InversionError(UserError, ValueError):
    """Images that do not come back from their codes."""


class WolfError(UserError, ValueError):
    """A reference checkpoint that cannot be taken over."""


class ExactnessWarning(UserWarning):
    """Images that may not come back exactly from their codes; not an error, since most of them do."""
