"""The Python API, whose functions the commands call too."""

from eggs_ptp.api.evaluation import assess, evaluate, load
from eggs_ptp.api.inputs import find
from eggs_ptp.api.pruned_folder import adapt, export_base, export_masks, verify
from eggs_ptp.api.pruning import plan, prune

__all__ = ["adapt", "assess", "evaluate", "export_base", "export_masks", "find", "load", "plan", "prune", "verify"]
