"""The errors that users see: each message says what was expected, what came, where, and what to do."""


class EggsError(Exception):
    """Something the user can mend; the command line prints its one line and exits with 2."""


class PatternError(EggsError):
    """A sparsity pattern that is not one, or that does not fit a matrix or a method."""


class MethodError(EggsError):
    """An unknown method, step or option, or a combination that makes no method."""


class RecipeError(EggsError):
    """A recipe, target rule or `--set` that cannot be understood."""


class ModelError(EggsError):
    """A model that cannot be read, is not supported, or holds values that cannot be pruned."""


class CalibrationError(EggsError):
    """Calibration or evaluation text that is missing, unreadable or too short."""


class CheckpointError(EggsError):
    """An output folder that cannot be written, or one that is not what it claims to be."""


class NumericsError(EggsError):
    """NaN, infinity or a failed factorisation, with the matrix it arose in."""


class BackendError(EggsError):
    """A packed product that no backend, or not the one that was asked for, can compute."""


class TeamError(EggsError):
    """One of the processes that prune a model together has ended, or does not find the others."""
