"""transformers knows packed checkpoints whichever package is imported first, and importing eggs_ptp stays cheap."""

import subprocess
import sys

import pytest

KNOWN = (
    "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as m; assert m['eggs'].__name__ == 'EggsQuantizer'"
)
UNKNOWN = "import sys; assert not {'torch', 'transformers', 'importlib.abc'} & set(sys.modules)"


def run(*lines):
    code = "\n".join(lines)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "lines",
    [
        ("import eggs_ptp, importlib", UNKNOWN, "importlib.reload(eggs_ptp)", KNOWN),
        ("import transformers.quantizers.auto", "import eggs_ptp", KNOWN),
    ],
    ids=["eggs first, twice", "transformers first"],
)
def test_either_package_may_be_imported_first(lines):
    run(*lines)


def test_the_import_hook_removes_itself():
    run(
        "import sys",
        "before = list(sys.meta_path)",
        "import eggs_ptp",
        "assert len(sys.meta_path) == len(before) + 2",  # one for transformers, one for peft
        "import transformers.quantizers.auto as auto",
        "assert all(finder in sys.meta_path for finder in before)",
        "left = [f.module for f in sys.meta_path if type(f).__module__.startswith('eggs_ptp')]",
        "assert left == ['peft.tuners.lora.model']",
        "assert type(auto.__loader__).__name__ == type(auto.__spec__.loader).__name__ == 'SourceFileLoader'",
        "import importlib",
        "assert importlib.util.find_spec('transformers.quantizers.auto') is auto.__spec__",
    )
