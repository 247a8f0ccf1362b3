"""Diagnoses of folders, compared with direct computations on their tensors."""

import json
import shutil

import pytest
import torch
from oracles.graph import singular_values
from safetensors.torch import load_file, save_file

from eggs_ptp import api
from eggs_ptp.calibration.windows import Windows
from eggs_ptp.checkpoint.packed import export
from eggs_ptp.checkpoint.staging import MANIFEST, ORDERS
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import CheckpointError, ModelError, NumericsError
from eggs_ptp.models.load import load_model
from eggs_ptp.research.diagnosis.calibration_metrics import CalibrationText
from eggs_ptp.research.diagnosis.diagnosis import DiagnosisOptions, diagnose_folder
from eggs_ptp.research.diagnosis.field_descriptions import FIELD_DESCRIPTIONS, is_described

UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def pruned_folder(tiny, tmp_path_factory, text_file):
    """Pruned by eggs_paper: permutations folded, five diagonal blocks per group, output errors recorded."""
    folder = tmp_path_factory.mktemp("diagnosed") / "out"
    api.prune(
        str(tiny()), folder, method="eggs_paper", calibration=str(text_file), nsamples=4, seqlen=32,
        targets=[{"match": "*.v_proj", "method": "magnitude"}],
    )  # fmt: skip
    return folder


@pytest.fixture
def copy(pruned_folder, tmp_path):
    return shutil.copytree(pruned_folder, tmp_path / "copy")


def edit_weight(folder, name, edit):
    path = folder / "model.safetensors"
    stored = load_file(path)
    stored[f"{name}.weight"] = edit(stored[f"{name}.weight"])
    save_file(stored, path, {"format": "pt"})


def edit_record(folder, edit):
    record = json.loads((folder / MANIFEST).read_text())
    edit(record)
    (folder / MANIFEST).write_text(json.dumps(record))


def edit_permutations(folder, edit):
    stored = load_file(folder / ORDERS)
    edit(stored)
    save_file(stored, folder / ORDERS)


def matrix_of(diagnosis, name):
    return next(matrix for matrix in diagnosis.matrices if matrix.name == name)


def zero_columns(*columns):
    def edit(weight):
        weight[:, list(columns)] = 0
        return weight

    return edit


def test_every_number_equals_that_of_the_stored_tensors(pruned_folder, tiny):
    diagnosis = diagnose_folder(pruned_folder, tiny(), spectra=True)
    weights = load_file(pruned_folder / "model.safetensors")
    record = json.loads((pruned_folder / MANIFEST).read_text())
    assert [matrix.name for matrix in diagnosis.matrices] == [entry["name"] for entry in record["matrices"]]
    for matrix, entry in zip(diagnosis.matrices, record["matrices"], strict=True):
        mask = weights[f"{matrix.name}.weight"] != 0
        assert (matrix.outputs, matrix.inputs, matrix.pattern) == (*mask.shape, "2:4")
        assert matrix.connections == int(mask.sum())
        assert matrix.input_degrees["min"] == int(mask.sum(0).min())
        assert matrix.input_degrees["mean"] == matrix.connections / matrix.inputs
        assert (matrix.output_degrees["min"], matrix.output_degrees["max"]) == (matrix.inputs / 2, matrix.inputs / 2)
        assert matrix.output_error == entry["output_error"] > 0
        assert matrix.spectrum["sigma2"] == pytest.approx(singular_values(mask)[1], abs=1e-6)
        if "v_proj" in matrix.name:
            assert (matrix.floor, matrix.floor_held) == (None, None)
        else:
            assert (matrix.floor, matrix.floor_held) == (min(5, matrix.outputs // 4), True)
            assert matrix.input_degrees["min"] >= matrix.floor


def test_retained_shares_are_independent_of_folded_permutations(pruned_folder, tiny):
    """The kept weights are the source's, so the shares follow from both folders without any permutation."""
    diagnosis = diagnose_folder(pruned_folder, tiny())
    weights = load_file(pruned_folder / "model.safetensors")
    source = load_file(tiny() / "model.safetensors")
    assert (pruned_folder / ORDERS).exists()
    totals = {"pruned": [0.0, 0.0], "dense": [0.0, 0.0]}
    for matrix in diagnosis.matrices:
        sums = {}
        for model, tensors in (("pruned", weights), ("dense", source)):
            tensor = tensors[f"{matrix.name}.weight"].double()
            sums[model] = [float(tensor.abs().sum()), float((tensor**2).sum())]
            totals[model] = [a + b for a, b in zip(totals[model], sums[model], strict=True)]
        for index, share in enumerate(("magnitude", "energy")):
            assert matrix.retained[share] == pytest.approx(sums["pruned"][index] / sums["dense"][index], rel=1e-9)
    combined = diagnosis.summary["retained"]
    assert combined["magnitude"] == pytest.approx(totals["pruned"][0] / totals["dense"][0], rel=1e-9)
    assert combined["energy"] == pytest.approx(totals["pruned"][1] / totals["dense"][1], rel=1e-9)
    assert combined["dead_energy"] == 0.0


def test_a_packed_folder_has_the_same_diagnosis(pruned_folder, tiny, tmp_path):
    export(pruned_folder, tmp_path / "packed", "packed")
    packed, dense = (diagnose_folder(folder, tiny(), spectra=True) for folder in (tmp_path / "packed", pruned_folder))
    assert packed.matrices == dense.matrices
    assert api.verify(tmp_path / "packed", str(tiny())).ok  # with folded permutations too


def test_dead_inputs_and_a_broken_floor(copy, tiny):
    edit_weight(copy, UP, zero_columns(3, 17))
    edit_record(copy, lambda record: [entry.update(updated=True) for entry in record["matrices"]])
    diagnosis = diagnose_folder(copy, tiny(), spectra=True)
    matrix = matrix_of(diagnosis, UP)
    assert (matrix.dead_inputs, matrix.input_degrees["min"]) == (2, 0)
    assert (matrix.floor_held, matrix.expands_to) == (False, 0)
    assert diagnosis.summary["dead_inputs"] == 2
    assert diagnosis.summary["floors_broken"] == [UP]
    assert diagnosis.summary["least_input_degree"] == {"value": 0, "matrix": UP}
    source_columns = CheckpointReader.of_file(copy / ORDERS).read("residual").long()[[3, 17]]
    energies = load_file(tiny() / "model.safetensors")[f"{UP}.weight"].double().square().sum(0)
    share = float(energies[source_columns].sum() / energies.sum())
    assert matrix.retained["dead_energy"] == pytest.approx(share, rel=1e-9)


def test_the_floor_of_short_diagonal_blocks(copy):
    """Blocks of M / N = 2 rows: 20 of them in 64 rows, where only 16 blocks of M rows fit."""
    changes = {"B": 20, "diagonal_rows": 40}
    edit_record(copy, lambda record: [entry.update(changes) for entry in record["matrices"] if entry["name"] == UP])
    assert matrix_of(diagnose_folder(copy), UP).floor == 20
    changes["diagonal_rows"] = 80
    edit_record(copy, lambda record: [entry.update(changes) for entry in record["matrices"] if entry["name"] == UP])
    assert matrix_of(diagnose_folder(copy), UP).floor == 16


def test_a_folder_without_a_record_is_diagnosed_without_patterns(tiny, copy):
    (copy / MANIFEST).unlink()
    shutil.rmtree((copy / ORDERS).parent)
    diagnosis = diagnose_folder(copy, spectra=True)
    assert len(diagnosis.matrices) == 14
    recorded = {(matrix.pattern, matrix.floor, matrix.output_error) for matrix in diagnosis.matrices}
    assert recorded == {(None, None, None)}
    summary = diagnosis.summary
    assert summary["density"] == 0.5
    assert (summary["floors"], summary["mean_output_error"], summary["retained"]) == (0, None, None)
    dense = diagnose_folder(tiny(), tiny(), spectra=True)
    assert dense.summary["density"] == dense.summary["retained"]["energy"] == 1.0
    assert {matrix.spectrum["sigma2"] for matrix in dense.matrices} == {0.0}


def test_an_unstructured_pattern_has_no_group(tiny, tmp_path):
    api.prune(str(tiny()), tmp_path / "half", method="magnitude", pattern="0.5")
    matrix = diagnose_folder(tmp_path / "half", spectra=True).matrices[0]
    assert (matrix.pattern, matrix.floor, matrix.spectrum["pattern_edge"]) == ("0.5", None, None)


def test_a_matrix_of_zeros_has_no_spectrum(copy):
    edit_weight(copy, UP, torch.zeros_like)
    matrix = matrix_of(diagnose_folder(copy, spectra=True), UP)
    assert (matrix.dead_inputs, matrix.dead_outputs, matrix.spectrum) == (32, 64, None)


def test_progress_is_reported_after_every_matrix(pruned_folder):
    reports = []
    diagnose_folder(pruned_folder, progress=lambda done, total: reports.append((done, total)))
    assert reports == [(done, 14) for done in range(1, 15)]


def test_another_dense_model_is_refused(pruned_folder, tiny):
    with pytest.raises(CheckpointError, match="differs from the kept weights"):
        diagnose_folder(pruned_folder, tiny(seed=1))
    with pytest.raises(CheckpointError, match=r"q_proj.weight is \(48, 32\), expected \(32, 32\)"):
        diagnose_folder(pruned_folder, tiny(head_dim=12))


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda folder: edit_weight(folder, UP, lambda w: w * torch.nan), NumericsError, f"{UP}.weight holds NaN"),
        (lambda folder: edit_weight(folder, UP, lambda w: w[0].clone()), CheckpointError, r"float32 of shape \(32,\)"),
        (lambda folder: edit_weight(folder, UP, lambda w: (w > 0).long()), CheckpointError, "expected a float matrix"),
        (lambda folder: edit_record(folder, lambda r: r["matrices"][0].update(B="x")), CheckpointError, "B is 'x'"),
        (
            lambda folder: edit_record(folder, lambda r: r["matrices"][0].update(name="n")),
            CheckpointError,
            "n is in eggs.json, but no file has its weight",
        ),
        (
            lambda folder: edit_record(folder, lambda r: r["matrices"].clear()),
            CheckpointError,
            "no matrix is recorded or recognised as pruned",
        ),
        (lambda folder: (folder / ORDERS).unlink(), CheckpointError, "orders.safetensors is missing"),
        (
            lambda folder: edit_permutations(folder, lambda p: p.update(residual=torch.arange(40))),
            CheckpointError,
            "a permutation of .* has 40 channels, expected 32",
        ),
        (
            lambda folder: edit_permutations(folder, lambda p: p.update(residual=torch.zeros(32).long())),
            CheckpointError,
            "orders.safetensors: ",
        ),
        (lambda folder: (folder / "config.json").unlink(), ModelError, "no config.json"),
    ],
)
def test_damaged_folders_are_refused_by_name(copy, tiny, edit, error, message):
    edit(copy)
    with pytest.raises(error, match=message):
        diagnose_folder(copy, tiny())


def calibration_text(windows=3, length=24):
    tokens = torch.randint(0, 250, (windows, length), generator=torch.Generator().manual_seed(0))
    return CalibrationText(Windows(tokens, "tokens", "given", 0, tokens.numel()), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def full_diagnosis(pruned_folder, tiny):
    """Everything there is to measure, and the inputs of `UP` in the pruned model."""
    text = calibration_text()
    options = DiagnosisOptions(spectra=True, reach=True, bounds=True, flow=True, text=text)
    diagnosis = diagnose_folder(pruned_folder, tiny(), options=options)
    model = load_model(pruned_folder, dtype=torch.float32)
    inputs = []
    model.get_submodule(UP).register_forward_pre_hook(lambda _module, args: inputs.append(args[0].flatten(0, 1)))
    with torch.inference_mode():
        model(text.windows.tokens)
    return diagnosis, inputs[0].double()


def test_calibration_metrics_are_of_the_inputs_in_the_pruned_model(full_diagnosis, pruned_folder, tiny):
    diagnosis, x = full_diagnosis
    weight = load_file(pruned_folder / "model.safetensors")[f"{UP}.weight"].double()
    permutations = CheckpointReader.of_file(pruned_folder / ORDERS)
    columns = permutations.read("residual").long()
    rows = permutations.read("model.layers.1.mlp").long()
    dense = load_file(tiny() / "model.safetensors")[f"{UP}.weight"].double()[rows][:, columns]
    matrix = matrix_of(diagnosis, UP)
    norm = x.square().mean(0).sqrt()
    dense_energy = (x @ dense.T).square().sum()
    expected = {
        "dead_activation": 0.0,
        "output_error": (x @ (dense - weight).T).square().sum() / dense_energy,
        "mask_error": (x @ (dense * (weight == 0)).T).square().sum() / dense_energy,
        "retained_wanda": (dense.abs() * norm * (weight != 0)).sum() / (dense.abs() * norm).sum(),
    }
    for name, value in expected.items():
        assert matrix.calibrated[name] == pytest.approx(float(value), rel=1e-4), name
    for model, tensor in (("dense", dense), ("pruned", weight)):
        assert matrix.weighted[model] == pytest.approx(torch.linalg.svdvals(tensor * norm)[:8].tolist(), rel=1e-4)
    assert diagnosis.calibration["nsamples"] == 3


def test_lower_bounds_are_below_every_error_found(full_diagnosis):
    diagnosis, _ = full_diagnosis
    for matrix in diagnosis.matrices:
        bounds = matrix.bounds
        errors = matrix.calibrated
        assert 0 < bounds["least_unchanged"] < bounds["best_unchanged"] <= errors["mask_error"] * (1 + 1e-6)
        assert 0 <= bounds["least_updated"] < bounds["best_updated"] < bounds["best_unchanged"]
        assert bounds["best_updated"] <= errors["output_error"]
        assert bounds["least_updated"] <= bounds["least_unchanged"]
    summary = diagnosis.summary
    assert summary["mean_bounds"]["least_unchanged"] < summary["mean_calibrated"]["mask_error"]


def test_bounds_use_the_permutation_in_which_the_mask_has_its_pattern(tiny, tmp_path, text_file):
    """Gathered: the weights are in the source's channel order, in which the mask does not have its pattern."""
    settings = {
        "method": "ria_cp",
        "calibration": str(text_file),
        "nsamples": 4,
        "seqlen": 32,
        "include": ["*.1.mlp.*"],
    }
    folder = tmp_path / "gathered"
    api.prune(str(tiny()), folder, permutation="gather", **settings)
    options = DiagnosisOptions(bounds=True, text=calibration_text())
    matrix = matrix_of(diagnose_folder(folder, tiny(), options=options), UP)
    bounds = matrix.bounds
    assert bounds["least_unchanged"] < bounds["best_unchanged"] <= matrix.calibrated["mask_error"] * (1 + 1e-6)
    (folder / ORDERS).unlink()
    with pytest.raises(ModelError, match="missing"):
        diagnose_folder(folder, tiny(), options=options)


@pytest.fixture(scope="module")
def unpruned(tiny):
    return diagnose_folder(tiny(), tiny(), options=DiagnosisOptions(flow=True, text=calibration_text()))


def test_gradient_flows_are_equal_without_pruning(unpruned):
    for dense, pruned in unpruned.gradient_flow:
        assert pruned.jacobian.singular_values == pytest.approx(dense.jacobian.singular_values, rel=1e-3)
        assert pruned.gradient_ratio == dense.gradient_ratio > 0
    assert {matrix.calibrated["output_error"] for matrix in unpruned.matrices} == {0.0}
    assert all(matrix.bounds is None for matrix in unpruned.matrices)  # no pattern is recorded


def test_folded_permutations_do_not_change_the_dense_model(full_diagnosis, unpruned):
    diagnosis, _ = full_diagnosis
    for (dense, pruned), (unpermuted, _) in zip(diagnosis.gradient_flow, unpruned.gradient_flow, strict=True):
        assert dense.jacobian.singular_values == pytest.approx(unpermuted.jacobian.singular_values, rel=5e-3)
        assert dense.gradient_in == pytest.approx(unpermuted.gradient_in, rel=1e-4)
        assert pruned.gradient_in != pytest.approx(dense.gradient_in, rel=1e-3)


def test_reachability_equals_products_of_the_masks(copy):
    for name in ("self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        generator = torch.Generator().manual_seed(len(name))

        def keep_tenth(weight, generator=generator):
            return weight * (torch.rand(weight.shape, generator=generator) < 0.1)

        for block in (0, 1):
            edit_weight(copy, f"model.layers.{block}.{name}", keep_tenth)
    masks = {name: tensor != 0 for name, tensor in load_file(copy / "model.safetensors").items()}
    chained = torch.eye(32)
    with_residual = torch.eye(32)
    for reachability in diagnose_folder(copy, options=DiagnosisOptions(reach=True)).reachability:
        prefix = f"model.layers.{reachability.block}."
        values = masks[f"{prefix}self_attn.v_proj.weight"].view(2, 8, 32).repeat_interleave(2, 0).flatten(0, 1)
        inner = masks[f"{prefix}mlp.gate_proj.weight"] | masks[f"{prefix}mlp.up_proj.weight"]
        attention = masks[f"{prefix}self_attn.o_proj.weight"].float() @ values.float()
        mlp = masks[f"{prefix}mlp.down_proj.weight"].float() @ inner.float()
        assert reachability.inside == pytest.approx(
            {"heads": float((attention > 0).float().mean()), "mlp": float((mlp > 0).float().mean())}
        )
        chained = ((mlp @ attention @ chained) > 0).float()
        with_residual = ((mlp + torch.eye(32)) @ (attention + torch.eye(32)) @ with_residual > 0).float()
        assert reachability.chained == pytest.approx(float(chained.mean()))
        assert reachability.with_residual == pytest.approx(float(with_residual.mean()))
        assert 0 < reachability.chained < reachability.with_residual < 1


def field_paths(value, path=""):
    if isinstance(value, dict):
        for key, item in value.items():
            is_model = path == "blocks.flow" and key in ("dense", "pruned")
            yield from field_paths(item, path if is_model else f"{path}.{key}".removeprefix("."))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for item in value:
            yield from field_paths(item, path)
    elif value is not None:
        yield path


def test_every_field_has_a_description(full_diagnosis, pruned_folder):
    fields = full_diagnosis[0].to_dict()
    descriptions = fields.pop("meaning")
    assert {path for path in field_paths(fields) if not is_described(path)} == set()
    assert not is_described("matrices.something")
    assert descriptions.keys() == FIELD_DESCRIPTIONS.keys()  # everything was measured
    of_degrees = diagnose_folder(pruned_folder).to_dict()["meaning"]
    assert {"matrices.bounds.least_updated", "blocks.flow.rms"}.isdisjoint(of_degrees)


def test_calibration_text_needs_a_model_to_compare_with(pruned_folder, tiny):
    text = calibration_text()
    for options in (DiagnosisOptions(text=text), DiagnosisOptions(bounds=True), DiagnosisOptions(flow=True)):
        with pytest.raises(CheckpointError, match="pass both --against and --calibration"):
            diagnose_folder(pruned_folder, options=options)
    with pytest.raises(CheckpointError, match="pass both --against and --calibration"):
        diagnose_folder(pruned_folder, tiny(), options=DiagnosisOptions(bounds=True))


def test_progress_counts_all_requested_measurements(pruned_folder, tiny):
    reports = []
    options = DiagnosisOptions(reach=True, text=calibration_text())
    diagnose_folder(pruned_folder, tiny(), options=options, progress=lambda done, total: reports.append((done, total)))
    assert reports == [(done, 14 + 14 + 2) for done in range(1, 31)]
