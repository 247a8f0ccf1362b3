"""`eggs doctor`: versions, devices, and what is available and why not."""

import os
import platform
from typing import Any

from eggs_ptp.cli import flags

_PACKAGES = (
    "eggs-ptp",
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "huggingface-hub",
    "numpy",
    "scipy",
    "pydantic",
    "typer",
    "rich",
    "psutil",
    "numba",
    "triton",
    "datasets",
    "pyarrow",
)
_HUB_SECONDS = 5.0


def doctor(json: flags.Json = False) -> None:
    """Show versions and devices, and say what is available here and what is not, and why."""
    from eggs_ptp.cli.terminal import bytes_text, line, print_json, table

    found: dict[str, Any] = {"versions": _versions(), "machine": _machine(), "available": _available()}
    if json:
        print_json(found)
        return
    machine = found["machine"]
    table(("package", "version"), found["versions"].items())
    line(f"{machine['system']}, {machine['cpu']}, {machine['cores']} cores, {machine['threads']} torch threads")
    line(f"{bytes_text(machine['memory'])} memory, {bytes_text(machine['memory_free'])} free")
    rows = [(what["name"], "yes" if what["ok"] else "no", what["detail"]) for what in found["available"]]
    table(("available", "", "what that means"), rows)


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _machine() -> dict[str, Any]:
    import psutil
    import torch

    memory = psutil.virtual_memory()
    return {
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": memory.total,
        "memory_free": memory.available,
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _available() -> list[dict[str, Any]]:
    rows = [*_cuda(), *_backends(), _hub(), _datasets(), _pyarrow(), _demo()]
    return [{"name": name, "ok": ok, "detail": detail} for name, ok, detail in rows]


def _cuda() -> list[tuple[str, bool, str]]:
    import torch

    from eggs_ptp.cli.terminal import bytes_text

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return [
            (
                f"cuda:{index}",
                True,
                f"{device.name}, {bytes_text(device.total_memory)}, compute capability {device.major}.{device.minor}",
            )
            for index, device in enumerate(devices)
        ]
    if torch.version.cuda is None:
        return [("cuda", False, "this torch was built without CUDA; everything runs on the CPU")]
    return [("cuda", False, f"torch has CUDA {torch.version.cuda}, but finds no GPU or driver; all runs on the CPU")]


def _backends() -> list[tuple[str, bool, str]]:
    from eggs_ptp.sparse.backends import table

    rows = []
    for backend in table():
        reasons = [backend.why_not(*product) for product in _products()]
        told = [reason for reason in reasons if reason and not reason.startswith("device ")] or reasons
        rows.append((f"packed: {backend.name}", None in reasons, backend.about if None in reasons else told[-1] or ""))
    return rows


def _products() -> list[Any]:
    """Through a 2:4 matrix one token and a long prompt, on either device."""
    import torch

    from eggs_ptp.core.pattern import Pattern

    devices = [torch.device(name) for name in ("cuda", "cpu")]
    return [(device, torch.bfloat16, Pattern(2, 4), 4096, 4096, batch) for device in devices for batch in (1, 4096)]


def _hub() -> tuple[str, bool, str]:
    from huggingface_hub import constants, get_session

    name = "hub"
    if constants.HF_HUB_OFFLINE:
        return name, False, "HF_HUB_OFFLINE is set: only local folders, local text and what is in the cache"
    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_SECONDS)
    except Exception as error:  # the kinds differ between requests and httpx, which hub versions use
        reason = " ".join(str(error).split())[:120]
        return name, False, f"{constants.ENDPOINT} does not answer ({reason}): only local folders and text"
    return name, True, f"{constants.ENDPOINT} answers: models by name, and C4 and WikiText-2 as default texts"


def _datasets() -> tuple[str, bool, str]:
    if _installed("datasets"):
        return "datasets", True, "texts from the hub, such as C4 (the default calibration) and WikiText-2"
    return (
        "datasets",
        False,
        "no texts from the hub, so --calibration and --text must name files; pip install datasets",
    )


def _pyarrow() -> tuple[str, bool, str]:
    if _installed("pyarrow"):
        return "pyarrow", True, "Parquet files as text"
    return "pyarrow", False, "no Parquet files as text; pip install pyarrow"


def _demo() -> tuple[str, bool, str]:
    from eggs_ptp.demo.builtin import model_folder

    if (model_folder() / "model.safetensors").is_file():
        return "demo", True, "the built-in model: eggs demo"
    return "demo", False, f"the built-in model is not in {model_folder()}: reinstall eggs-ptp"


def _installed(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None
