"""peft's LoRA on packed matrices: trained, saved and loaded as on the dense form; what reads weights is refused."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import eggs_ptp
from eggs_ptp.errors import BackendError
from eggs_ptp.sparse.linear import NMLinear

peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # peft's own

IDS = torch.arange(20).view(2, 10)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def forms(request, tiny, tmp_path_factory):
    """`forms("packed")`: the same pruned model, dense or packed; one with linears and one with `Conv1D`."""
    folder = tmp_path_factory.mktemp("forms")
    eggs_ptp.prune(str(tiny(request.param)), folder / "dense", method="magnitude")

    def load(form):
        model = AutoModelForCausalLM.from_pretrained(folder / "dense")
        return eggs_ptp.pack(model, "2:4") if form == "packed" else model

    return load


def with_adapter(model, target_modules="all-linear", **settings):
    torch.manual_seed(1)
    return peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=target_modules, **settings))


def train(model, steps=3):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_training_is_that_of_the_dense_form_and_adapters_load_on_either(forms, tmp_path):
    dense, packed = with_adapter(forms("dense")), with_adapter(forms("packed"))
    assert any(isinstance(module, NMLinear) for module in packed.modules())
    assert dense.peft_config["default"].target_modules == packed.peft_config["default"].target_modules
    losses = train(packed)
    assert losses == pytest.approx(train(dense), rel=1e-4)
    assert losses[-1] < losses[0]
    packed.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = packed.eval()(IDS).logits
        for form in ("dense", "packed"):
            loaded = peft.PeftModel.from_pretrained(forms(form), tmp_path / "adapter").eval()
            torch.testing.assert_close(loaded(IDS).logits, expected, rtol=1e-4, atol=1e-4)
        packed.set_adapter("default")
        with packed.disable_adapter():
            assert not torch.allclose(packed(IDS).logits, expected)


def test_a_second_adapter_and_unloading(forms):
    model = with_adapter(forms("packed"))
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules="all-linear"))
    assert model.peft_config["other"].target_modules == model.peft_config["default"].target_modules
    model.set_adapter("other")
    losses = train(model)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        assert torch.equal(model.unload().eval()(IDS).logits, forms("packed").eval()(IDS).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_have_the_type_of_the_packed_weight(forms, dtype):
    model = forms("packed").to(dtype)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules="all-linear"), autocast_adapter_dtype=False
    )
    types = {parameter.dtype for name, parameter in adapted.named_parameters() if "lora_" in name}
    assert types == {dtype}
    assert adapted(IDS).logits.dtype == dtype


@pytest.mark.parametrize(
    "settings", [{"use_dora": True}, {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}]
)
def test_adapters_that_read_the_weight_are_refused_in_one_line(forms, settings):
    with pytest.raises(
        BackendError, match=r"adapter default on a packed matrix: expected .* eggs export --format dense"
    ):
        with_adapter(forms("packed"), **settings)


def test_merging_is_refused(forms):
    with pytest.raises(BackendError, match="got merge, whose sum is dense; merge it into the dense form"):
        with_adapter(forms("packed")).merge_and_unload()


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_prompts_train(forms, kind):
    model = peft.get_peft_model(forms("packed"), getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3))
    losses = train(model)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("first", ["peft", "eggs_ptp"])
def test_either_package_may_be_imported_first(first):
    second = "eggs_ptp" if first == "peft" else "peft"
    code = (
        f"import {first}, {second}; from peft.tuners.lora.model import LoraModel\n"
        "assert LoraModel._create_new_module.__wrapped__\n"
        "import sys; assert not [f for f in sys.meta_path if type(f).__module__.startswith('eggs_ptp')]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
