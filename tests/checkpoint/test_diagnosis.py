"""Diagnoses of folders: against what was put into them, and against slow sums over their tensors."""

import json
import shutil

import pytest
import torch
from oracles.graph import singular_values
from safetensors.torch import load_file, save_file

from eggs_ptp import api
from eggs_ptp.calibration.windows import Windows
from eggs_ptp.checkpoint.calibrated import Text
from eggs_ptp.checkpoint.diagnosis import Ask, diagnose_folder
from eggs_ptp.checkpoint.draft import MANIFEST, ORDERS
from eggs_ptp.checkpoint.meaning import MEANING, explained
from eggs_ptp.checkpoint.packed import export
from eggs_ptp.engine.shards import Shards
from eggs_ptp.errors import CheckpointError, ModelError, NumericsError
from eggs_ptp.models.load import load_model

UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory, text_file):
    """Pruned by eggs_paper: orders folded, five diagonal blocks a group, output errors recorded."""
    folder = tmp_path_factory.mktemp("diagnosed") / "out"
    api.prune(
        str(tiny()), folder, method="eggs_paper", calibration=str(text_file), nsamples=4, seqlen=32,
        targets=[{"match": "*.v_proj", "method": "magnitude"}],
    )  # fmt: skip
    return folder


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copy")


def change(folder, name, edit):
    path = folder / "model.safetensors"
    stored = load_file(path)
    stored[f"{name}.weight"] = edit(stored[f"{name}.weight"])
    save_file(stored, path, {"format": "pt"})


def record(folder, edit):
    found = json.loads((folder / MANIFEST).read_text())
    edit(found)
    (folder / MANIFEST).write_text(json.dumps(found))


def of(found, name):
    return next(one for one in found.matrices if one.name == name)


def orders(folder, edit):
    stored = load_file(folder / ORDERS)
    edit(stored)
    save_file(stored, folder / ORDERS)


def kill(*columns):
    def edit(weight):
        weight[:, list(columns)] = 0
        return weight

    return edit


def test_every_number_is_the_tensors(made, tiny):
    found = diagnose_folder(made, tiny(), spectra=True)
    weights, recorded = load_file(made / "model.safetensors"), json.loads((made / MANIFEST).read_text())
    assert [one.name for one in found.matrices] == [matrix["name"] for matrix in recorded["matrices"]]
    for one, matrix in zip(found.matrices, recorded["matrices"], strict=True):
        mask = weights[f"{one.name}.weight"] != 0
        assert (one.outputs, one.inputs, one.pattern) == (*mask.shape, "2:4")
        assert one.connections == int(mask.sum())
        assert one.input_degrees["min"] == int(mask.sum(0).min())
        assert one.input_degrees["mean"] == one.connections / one.inputs
        assert (one.output_degrees["min"], one.output_degrees["max"]) == (one.inputs / 2, one.inputs / 2)
        assert one.output_error == matrix["output_error"] > 0
        assert one.spectrum["sigma2"] == pytest.approx(singular_values(mask)[1], abs=1e-6)
        if "v_proj" in one.name:
            assert (one.floor, one.floor_held) == (None, None)
        else:
            assert (one.floor, one.floor_held) == (min(5, one.outputs // 4), True)
            assert one.input_degrees["min"] >= one.floor


def test_what_was_retained_is_found_through_folded_orders(made, tiny):
    """The kept weights are the source's, so shares follow from the two folders without any order."""
    found, source = diagnose_folder(made, tiny()), load_file(tiny() / "model.safetensors")
    weights = load_file(made / "model.safetensors")
    assert (made / ORDERS).exists()
    kept = {name: [0.0, 0.0] for name in ("pruned", "dense")}
    for one in found.matrices:
        sums = {}
        for name, tensors in (("pruned", weights), ("dense", source)):
            tensor = tensors[f"{one.name}.weight"].double()
            sums[name] = float(tensor.abs().sum()), float((tensor**2).sum())
            kept[name] = [a + b for a, b in zip(kept[name], sums[name], strict=True)]
        for place, part in enumerate(("magnitude", "energy")):
            assert one.retained[part] == pytest.approx(sums["pruned"][place] / sums["dense"][place], rel=1e-9)
    whole = found.whole["retained"]
    assert whole["magnitude"] == pytest.approx(kept["pruned"][0] / kept["dense"][0], rel=1e-9)
    assert whole["energy"] == pytest.approx(kept["pruned"][1] / kept["dense"][1], rel=1e-9)
    assert whole["dead_energy"] == 0.0


def test_a_packed_folder_says_the_same(made, tiny, tmp_path):
    export(made, tmp_path / "packed", "packed")
    packed, dense = (diagnose_folder(folder, tiny(), spectra=True) for folder in (tmp_path / "packed", made))
    assert packed.matrices == dense.matrices
    assert api.verify(tmp_path / "packed", str(tiny())).ok  # whose orders are folded too


def test_dead_inputs_and_a_broken_floor(copy, tiny):
    change(copy, UP, kill(3, 17))
    record(copy, lambda found: [matrix.update(updated=True) for matrix in found["matrices"]])
    found = diagnose_folder(copy, tiny(), spectra=True)
    one, dense = of(found, UP), load_file(tiny() / "model.safetensors")[f"{UP}.weight"].double()
    assert (one.dead_inputs, one.input_degrees["min"], one.floor_held, one.expands_to) == (2, 0, False, 0)
    assert found.whole["dead_inputs"] == 2
    assert found.whole["floors_broken"] == [UP]
    assert found.whole["least_input_degree"] == {"value": 0, "matrix": UP}
    moved = Shards.of_file(copy / ORDERS).read("residual").long()[[3, 17]]
    energies = dense.square().sum(0)
    assert one.retained["dead_energy"] == pytest.approx(float(energies[moved].sum() / energies.sum()), rel=1e-9)


def test_short_blocks_have_a_floor_of_their_own(copy):
    """Blocks of M / N = 2 rows: 20 of them in 64 rows, where only 16 of M rows would fit."""
    edit = {"B": 20, "diagonal_rows": 40}
    record(copy, lambda found: [one.update(edit) for one in found["matrices"] if one["name"] == UP])
    assert of(diagnose_folder(copy), UP).floor == 20
    edit["diagonal_rows"] = 80
    record(copy, lambda found: [one.update(edit) for one in found["matrices"] if one["name"] == UP])
    assert of(diagnose_folder(copy), UP).floor == 16


def test_a_folder_of_others_is_looked_at_as_it_is(tiny, copy):
    (copy / MANIFEST).unlink()
    shutil.rmtree((copy / ORDERS).parent)
    found = diagnose_folder(copy, spectra=True)
    assert len(found.matrices) == 14
    assert {(one.pattern, one.floor, one.output_error) for one in found.matrices} == {(None, None, None)}
    assert found.whole["density"] == 0.5
    assert (found.whole["floors"], found.whole["mean_output_error"], found.whole["retained"]) == (0, None, None)
    dense = diagnose_folder(tiny(), tiny(), spectra=True)
    assert dense.whole["density"] == dense.whole["retained"]["energy"] == 1.0
    assert {one.spectrum["sigma2"] for one in dense.matrices} == {0.0}


def test_an_unstructured_pattern_has_no_group(tiny, tmp_path):
    api.prune(str(tiny()), tmp_path / "half", method="magnitude", pattern="0.5")
    one = diagnose_folder(tmp_path / "half", spectra=True).matrices[0]
    assert (one.pattern, one.floor, one.spectrum["pattern_edge"]) == ("0.5", None, None)


def test_a_matrix_of_zeros_has_no_spectrum(copy):
    change(copy, UP, torch.zeros_like)
    one = of(diagnose_folder(copy, spectra=True), UP)
    assert (one.dead_inputs, one.dead_outputs, one.spectrum) == (32, 64, None)


def test_progress_is_told_of_every_matrix(made):
    told = []
    diagnose_folder(made, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 14) for done in range(1, 15)]


def test_another_source_is_refused(made, tiny):
    with pytest.raises(CheckpointError, match="has other weights than were kept"):
        diagnose_folder(made, tiny(seed=1))
    with pytest.raises(CheckpointError, match=r"q_proj.weight is \(48, 32\), expected \(32, 32\)"):
        diagnose_folder(made, tiny(head_dim=12))


@pytest.mark.parametrize(
    ("edit", "kind", "said"),
    [
        (lambda folder: change(folder, UP, lambda w: w * float("nan")), NumericsError, f"{UP}.weight holds NaN"),
        (lambda folder: change(folder, UP, lambda w: w[0].clone()), CheckpointError, r"float32 of shape \(32,\)"),
        (lambda folder: change(folder, UP, lambda w: (w > 0).long()), CheckpointError, "expected a float matrix"),
        (lambda folder: record(folder, lambda r: r["matrices"][0].update(B="x")), CheckpointError, "B is 'x'"),
        (lambda folder: record(folder, lambda r: r["matrices"][0].update(name="n")), CheckpointError, "n is in eggs"),
        (lambda folder: record(folder, lambda r: r["matrices"].clear()), CheckpointError, "nothing to see"),
        (lambda folder: (folder / ORDERS).unlink(), CheckpointError, "orders.safetensors is missing"),
        (
            lambda folder: orders(folder, lambda o: o.update(residual=torch.arange(40))),
            CheckpointError,
            "an order of .* has 40 channels, expected 32",
        ),
        (
            lambda folder: orders(folder, lambda o: o.update(residual=torch.zeros(32).long())),
            CheckpointError,
            "orders.safetensors: ",
        ),
        (lambda folder: (folder / "config.json").unlink(), ModelError, "no config.json"),
    ],
)
def test_bad_input_is_named(copy, tiny, edit, kind, said):
    edit(copy)
    with pytest.raises(kind, match=said):
        diagnose_folder(copy, tiny())


def text_of(folder, windows=3, length=24):
    tokens = torch.randint(0, 250, (windows, length), generator=torch.Generator().manual_seed(0))
    drawn = Windows(tokens, "tokens", "given", 0, tokens.numel())
    return Text(drawn, torch.device("cpu"), torch.float32), tokens


@pytest.fixture(scope="module")
def looked_at(made, tiny):
    """Everything there is to see, and the inputs of `UP` in the pruned model."""
    text, tokens = text_of(made)
    found = diagnose_folder(made, tiny(), ask=Ask(spectra=True, reach=True, bounds=True, flow=True, text=text))
    model, seen = load_model(made, dtype=torch.float32), []
    model.get_submodule(UP).register_forward_pre_hook(lambda _module, args: seen.append(args[0].flatten(0, 1)))
    with torch.inference_mode():
        model(tokens)
    return found, seen[0].double()


def test_what_text_shows_is_what_the_pruned_model_reads(looked_at, made, tiny):
    found, x = looked_at
    weight = load_file(made / "model.safetensors")[f"{UP}.weight"].double()
    order = Shards.of_file(made / ORDERS).read("residual").long()
    rows = Shards.of_file(made / ORDERS).read("model.layers.1.mlp").long()
    dense = load_file(tiny() / "model.safetensors")[f"{UP}.weight"].double()[rows][:, order]
    one, norm = of(found, UP), x.square().mean(0).sqrt()
    whole = (x @ dense.T).square().sum()
    expected = {
        "dead_activation": 0.0,
        "output_error": (x @ (dense - weight).T).square().sum() / whole,
        "mask_error": (x @ (dense * (weight == 0)).T).square().sum() / whole,
        "retained_wanda": (dense.abs() * norm * (weight != 0)).sum() / (dense.abs() * norm).sum(),
    }
    for name, value in expected.items():
        assert one.calibrated[name] == pytest.approx(float(value), rel=1e-4), name
    for which, matrix in (("dense", dense), ("pruned", weight)):
        assert one.weighted[which] == pytest.approx(torch.linalg.svdvals(matrix * norm)[:8].tolist(), rel=1e-4)
    assert found.calibration["nsamples"] == 3


def test_bounds_lie_below_whatever_is_found(looked_at):
    found, _ = looked_at
    for one in found.matrices:
        bounds, seen = one.bounds, one.calibrated
        assert 0 < bounds["least_unchanged"] < bounds["best_unchanged"] <= seen["mask_error"] * (1 + 1e-6)
        assert 0 <= bounds["least_updated"] < bounds["best_updated"] < bounds["best_unchanged"]
        assert bounds["best_updated"] <= seen["output_error"]
        assert bounds["least_updated"] <= bounds["least_unchanged"]
    assert found.whole["mean_bounds"]["least_unchanged"] < found.whole["mean_calibrated"]["mask_error"]


def test_bounds_are_of_the_order_in_which_the_mask_has_its_pattern(tiny, tmp_path, text_file):
    """Gathered: the weights stand in the source's order, in which the mask does not have its pattern."""
    settings = {
        "method": "ria_cp",
        "calibration": str(text_file),
        "nsamples": 4,
        "seqlen": 32,
        "include": ["*.1.mlp.*"],
    }
    api.prune(str(tiny()), tmp_path / "gathered", orders="gather", **settings)
    one = of(diagnose_folder(tmp_path / "gathered", tiny(), ask=Ask(bounds=True, text=text_of(None)[0])), UP)
    assert one.bounds["least_unchanged"] < one.bounds["best_unchanged"] <= one.calibrated["mask_error"] * (1 + 1e-6)
    (tmp_path / "gathered" / ORDERS).unlink()
    with pytest.raises(ModelError, match="missing"):
        diagnose_folder(tmp_path / "gathered", tiny(), ask=Ask(bounds=True, text=text_of(None)[0]))


@pytest.fixture(scope="module")
def unpruned(tiny):
    return diagnose_folder(tiny(), tiny(), ask=Ask(flow=True, text=text_of(None)[0]))


def test_both_models_flow_alike_where_nothing_was_pruned(unpruned):
    for dense, pruned in unpruned.flow:
        assert pruned.gain.singular_values == pytest.approx(dense.gain.singular_values, rel=1e-3)
        assert pruned.gradient_ratio == dense.gradient_ratio > 0
    assert {one.calibrated["output_error"] for one in unpruned.matrices} == {0.0}
    assert {one.bounds is None for one in unpruned.matrices} == {True}  # of no pattern


def test_folded_orders_do_not_change_what_the_dense_model_does(looked_at, unpruned):
    found, _ = looked_at
    for (dense, pruned), (other, _) in zip(found.flow, unpruned.flow, strict=True):
        assert dense.gain.singular_values == pytest.approx(other.gain.singular_values, rel=5e-3)
        assert dense.gradient_in == pytest.approx(other.gradient_in, rel=1e-4)
        assert pruned.gradient_in != pytest.approx(dense.gradient_in, rel=1e-3)


def test_reach_is_that_of_the_connections_one_after_the_other(copy):
    for name in ("self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        draw = torch.Generator().manual_seed(len(name))
        for block in (0, 1):
            thin = lambda weight, draw=draw: weight * (torch.rand(weight.shape, generator=draw) < 0.1)  # noqa: E731
            change(copy, f"model.layers.{block}.{name}", thin)
    masks = {name: tensor != 0 for name, tensor in load_file(copy / "model.safetensors").items()}
    paths, residual = torch.eye(32), torch.eye(32)
    for reach in diagnose_folder(copy, ask=Ask(reach=True)).reach:
        at = f"model.layers.{reach.block}."
        values = masks[f"{at}self_attn.v_proj.weight"].view(2, 8, 32).repeat_interleave(2, 0).flatten(0, 1)
        inner = masks[f"{at}mlp.gate_proj.weight"] | masks[f"{at}mlp.up_proj.weight"]
        attention = masks[f"{at}self_attn.o_proj.weight"].float() @ values.float()
        mlp = masks[f"{at}mlp.down_proj.weight"].float() @ inner.float()
        assert reach.inside == pytest.approx(
            {"heads": float((attention > 0).float().mean()), "mlp": float((mlp > 0).float().mean())}
        )
        paths = ((mlp @ attention @ paths) > 0).float()
        residual = ((mlp + torch.eye(32)) @ (attention + torch.eye(32)) @ residual > 0).float()
        assert reach.chained == pytest.approx(float(paths.mean()))
        assert reach.with_residual == pytest.approx(float(residual.mean()))
        assert 0 < reach.chained < reach.with_residual < 1


def keys(value, path=""):
    if isinstance(value, dict):
        for key, below in value.items():
            yield from keys(
                below,
                path if path == "blocks.flow" and key in ("dense", "pruned") else f"{path}.{key}" if path else key,
            )
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for one in value:
            yield from keys(one, path)
    elif value is not None:
        yield path


def test_every_number_says_what_it_means(looked_at, made):
    found = looked_at[0].to_dict()
    meaning = found.pop("meaning")
    assert {key for key in keys(found) if not explained(key)} == set()
    assert not explained("matrices.something")
    assert meaning.keys() == MEANING.keys()  # everything was asked for
    assert {"matrices.bounds.least_updated", "blocks.flow.rms"}.isdisjoint(diagnose_folder(made).to_dict()["meaning"])


def test_text_needs_a_model_to_compare_with(made, tiny):
    for ask in (Ask(text=text_of(None)[0]), Ask(bounds=True), Ask(flow=True)):
        with pytest.raises(CheckpointError, match="pass both --against and --calibration"):
            diagnose_folder(made, ask=ask)
    with pytest.raises(CheckpointError, match="pass both --against and --calibration"):
        diagnose_folder(made, tiny(), ask=Ask(bounds=True))


def test_progress_counts_what_was_asked_for(made, tiny):
    told = []
    ask = Ask(reach=True, text=text_of(None)[0])
    diagnose_folder(made, tiny(), ask=ask, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 14 + 14 + 2) for done in range(1, 31)]
