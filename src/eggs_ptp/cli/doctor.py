"""`eggs doctor`: versions, devices, and which features are available, or why not."""

import os
import platform
from typing import Any, NamedTuple

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
    "humanize",
    "docstring-parser",
    "numba",
    "triton",
    "datasets",
    "pyarrow",
)
_HUB_TIMEOUT = 5.0  # seconds


class Feature(NamedTuple):
    """Something that a machine may lack: whether it is available, and what that means."""

    name: str
    available: bool
    detail: str


def doctor(json: flags.Json = False) -> None:
    """Show versions and devices, and which features are available here, or why they are not."""
    from eggs_ptp.cli.terminal import format_bytes, print_json, print_line, print_table

    versions = _versions()
    machine = _machine()
    features = [*cuda_features(), *_backend_features(), hub_feature(), datasets_feature(), pyarrow_feature()]
    features.append(_demo_feature())
    if json:
        available = [{"name": feature.name, "ok": feature.available, "detail": feature.detail} for feature in features]
        print_json({"versions": versions, "machine": machine, "available": available})
        return
    print_table(("package", "version"), versions.items())
    print_line(f"{machine['system']}, {machine['cpu']}, {machine['cores']} cores, {machine['threads']} torch threads")
    print_line(f"{format_bytes(machine['memory'])} memory, {format_bytes(machine['memory_free'])} free")
    rows = [(feature.name, "yes" if feature.available else "no", feature.detail) for feature in features]
    print_table(("feature", "available", "detail"), rows)


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


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


def cuda_features() -> list[Feature]:
    """Return one feature per GPU, or one that says why there is none."""
    import torch

    from eggs_ptp.cli.terminal import format_bytes

    if torch.cuda.is_available():
        features = []
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            capability = f"compute capability {device.major}.{device.minor}"
            detail = f"{device.name}, {format_bytes(device.total_memory)}, {capability}"
            features.append(Feature(f"cuda:{index}", True, detail))
        return features
    if torch.version.cuda is None:
        return [Feature("cuda", False, "this torch was built without CUDA; everything runs on the CPU")]
    detail = f"torch has CUDA {torch.version.cuda}, but finds no GPU or driver; everything runs on the CPU"
    return [Feature("cuda", False, detail)]


def _backend_features() -> list[Feature]:
    """Return one feature per backend of packed products: available if it can compute one of the sample products."""
    from eggs_ptp.sparse.backends import registered_backends, unusable_backends

    features = []
    for backend in registered_backends():
        reasons = [backend.unsupported_reason(*product) for product in _sample_products()]
        available = None in reasons
        beyond_device = [reason for reason in reasons if reason and not reason.startswith("device ")]
        reason = (beyond_device or reasons)[-1] or ""
        features.append(Feature(f"packed: {backend.name}", available, backend.description if available else reason))
    return features + [
        Feature(f"packed: {broken.name}", False, f"from {broken.distribution}: {broken.reason}")
        for broken in unusable_backends()
    ]


def _sample_products() -> list[Any]:
    """Return arguments of `unsupported_reason`: one token and a long prompt through a 2:4 matrix, on GPU and CPU."""
    import torch

    from eggs_ptp.core.pattern import Pattern

    devices = [torch.device(name) for name in ("cuda", "cpu")]
    return [(device, torch.bfloat16, Pattern(2, 4), 4096, 4096, batch) for device in devices for batch in (1, 4096)]


def hub_feature() -> Feature:
    """Return whether the Hugging Face hub can be reached."""
    from huggingface_hub import constants, get_session

    name = "hub"
    if constants.HF_HUB_OFFLINE:
        return Feature(name, False, "HF_HUB_OFFLINE is set: only local folders, local text and what is in the cache")
    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_TIMEOUT)
    except Exception as error:  # requests or httpx, depending on the version of huggingface_hub
        reason = " ".join(str(error).split())[:120]
        return Feature(name, False, f"{constants.ENDPOINT} does not answer ({reason}): only local folders and text")
    return Feature(name, True, f"{constants.ENDPOINT} answers: models by name, and C4 and WikiText-2 as default texts")


def datasets_feature() -> Feature:
    """Return whether texts can be loaded from the hub."""
    if is_installed("datasets"):
        return Feature("datasets", True, "texts from the hub, such as C4 (the default calibration) and WikiText-2")
    detail = "no texts from the hub, so --calibration and --text must name files; pip install datasets"
    return Feature("datasets", False, detail)


def pyarrow_feature() -> Feature:
    """Return whether Parquet files can be read."""
    if is_installed("pyarrow"):
        return Feature("pyarrow", True, "Parquet files as text")
    return Feature("pyarrow", False, "no Parquet files as text; pip install pyarrow")


def _demo_feature() -> Feature:
    from eggs_ptp.demo.builtin import model_folder

    if (model_folder() / "model.safetensors").is_file():
        return Feature("demo", True, "the built-in model: eggs demo")
    return Feature("demo", False, f"the built-in model is not in {model_folder()}: reinstall eggs-ptp")


def is_installed(package: str) -> bool:
    """Return whether a package can be imported, without importing it."""
    import importlib.util

    return importlib.util.find_spec(package) is not None
