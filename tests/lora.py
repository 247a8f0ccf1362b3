"""LoRA adapters in the files of peft, and their merge, W + B A * alpha / r, written anew."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

PREFIX = "base_model.model."
CONFIG = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 6, "bias": "none"}


def write_adapter(folder: Path, model: Path, targets: tuple[str, ...], **changes: object) -> Path:
    """Write a random adapter for all linears and embeddings of a model whose names end with a target."""
    torch.manual_seed(7)
    tensors: dict[str, Tensor] = {}
    for name, module in AutoModelForCausalLM.from_pretrained(model).named_modules():
        if not name.endswith(targets) or not hasattr(module, "weight"):
            continue
        first, second = module.weight.shape
        if isinstance(module, nn.Embedding):
            tensors[f"{PREFIX}{name}.lora_embedding_A"] = torch.randn(3, first) * 0.3
            tensors[f"{PREFIX}{name}.lora_embedding_B"] = torch.randn(second, 3) * 0.3
            continue
        outputs, inputs = (first, second) if isinstance(module, nn.Linear) else (second, first)  # Conv1D: (in, out)
        tensors[f"{PREFIX}{name}.lora_A.weight"] = torch.randn(3, inputs) * 0.3
        tensors[f"{PREFIX}{name}.lora_B.weight"] = torch.randn(outputs, 3) * 0.3
    assert tensors
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {**CONFIG, "base_model_name_or_path": str(model), "target_modules": list(targets), **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def merged_model(folder: Path, adapter: Path | None) -> nn.Module:
    """Load a model, and merge an adapter into its weights."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    if adapter is None:
        return model
    config = json.loads((adapter / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    tensors = load_file(adapter / "adapter_model.safetensors")
    modules = dict(model.named_modules())
    for name, tensor in tensors.items():
        path, _, part = name.removeprefix(PREFIX).partition(".lora_")
        if part == "A.weight":
            change = tensors[name.replace("lora_A", "lora_B")].double() @ tensor.double() * scale
            change = change if isinstance(modules[path], nn.Linear) else change.T
        elif part == "embedding_A":
            change = (tensors[name.replace("embedding_A", "embedding_B")].double() @ tensor.double() * scale).T
        else:
            continue
        modules[path].weight.data += change
    return model


def logits(folder: Path, adapter: Path | None = None) -> Tensor:
    """Compute the logits of a model with an adapter for fixed tokens."""
    tokens = torch.randint(0, 250, (2, 16), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return merged_model(folder, adapter)(tokens, use_cache=False).logits
