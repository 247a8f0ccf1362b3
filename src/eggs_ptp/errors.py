"""Errors that users see: each message says what was expected, what was got, where, and what to do."""


class EggsError(Exception):
    """Base class of errors that the user can fix; the command line prints the message on one line and exits with 2."""


class PatternError(EggsError):
    """An invalid sparsity pattern, or one that does not fit a matrix or a method."""


class MethodError(EggsError):
    """An unknown method, step or option, or an invalid combination of them."""


class RecipeError(EggsError):
    """A recipe, target rule or `--set` that cannot be parsed."""


class ModelError(EggsError):
    """A model that cannot be read, is not supported, or holds values that cannot be pruned."""


class CalibrationError(EggsError):
    """Calibration or evaluation text that is missing, unreadable or too short."""


class CheckpointError(EggsError):
    """An output that cannot be written, or a folder or file that does not hold what it should."""


class NumericsError(EggsError):
    """NaN, infinity or a failed factorisation; names the matrix."""


class BackendError(EggsError):
    """A packed matrix product that no backend can compute, or that the requested backend cannot."""


class ProcessGroupError(EggsError):
    """A process of the group that prunes a model together has failed, or cannot reach the others."""
