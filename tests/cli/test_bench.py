"""`eggs bench`: tables, JSON, record, plot, and refused input."""

import json

import pytest

QUICK = ("--batches", "1,2", "--prefill", "0", "--seconds", "0")


@pytest.fixture(scope="module")
def packed(tiny, tmp_path_factory):
    from eggs_ptp import api
    from eggs_ptp.checkpoint.packed import export

    top = tmp_path_factory.mktemp("bench")
    api.prune(str(tiny()), top / "dense", method="magnitude")
    export(top / "dense", top / "packed", "packed")
    return top / "packed"


def test_shapes(eggs, tmp_path):
    record, plot = tmp_path / "record.json", tmp_path / "plot.svg"
    ran = eggs("bench", "--shapes", "64x32", "--patterns", "2:4,4:8", *QUICK, "--record", record, "--plot", plot)
    assert ran.code == 0, ran
    rows = [line.split() for line in ran.out.splitlines() if line.strip().startswith("64x32")]
    assert [(row[1], row[2], row[3]) for row in rows] == [
        (kind, batch, pattern) for batch in "12" for kind in ("fp32", "bf16") for pattern in ("2:4", "4:8")
    ]
    assert "?: not reliable, the interquartile range is more than 10% of the median" in ran.out
    assert "load " in ran.out.splitlines()[0]
    assert "bench: 2/2" in ran.err
    stored = json.loads(record.read_text())
    assert stored["command"].startswith("eggs bench --shapes 64x32")
    assert [product["batch"] for product in stored["products"]] == [1, 2]
    assert plot.read_text().startswith("<svg")


def test_a_prefill_and_one_dtype(eggs):
    record = eggs("bench", "--shapes", "64x32", *QUICK, "--prefill", "24", "--dtype", "bfloat16", "--json").json
    assert [product["batch"] for product in record["products"]] == [1, 2, 24]
    assert {name.split()[1] for name in record["products"][2]["backends"]} == {"bf16"}


def test_a_folder(eggs, packed):
    flags = ("--tokens", "8", "--prompt", "4", "--texts", "5", *QUICK)
    ran = eggs("bench", packed, *flags)
    assert ran.code == 0, ran
    assert "packed" in ran.out
    assert "dense stock" in ran.out
    assert "generate: 8 new tokens after a prompt of 4, greedy, batch 1, float32; the first 8 are the same" in ran.out
    record = eggs("bench", packed, *flags, "--json").json
    assert record["folder"] == str(packed)
    assert sum(matrix["count"] for matrix in record["matrices"]) == 14
    assert len(record["products"]) == 2 * len(record["matrices"])
    linears = record["generate"]["linears_bytes"]
    assert linears["packed"] * 32 == linears["dense"] * 17  # values and bits of float32 2:4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected one thing to measure: a packed folder, or --shapes such as 4096x4096"),
        (("out", "--shapes", "8x8"), "expected one thing to measure"),
        (("--shapes", "8"), "--shapes: '8' is not a shape"),
        (("--shapes", "8x8", "--batches", "no"), "--batches: 'no' is not a number"),
        (("--shapes", "8x8", "--patterns", "0.5"), "unstructured"),
        (("--shapes", "8x6"), "8x6: 6 columns are not a multiple of 4, as 2:4 needs"),
        (("--shapes", "8x8", "--rounds", "4"), "--rounds"),
        (("--shapes", "8x8", "--dtype", "int8"), "--dtype"),
        (("--shapes", "8x8", "--plot", "nowhere/plot.svg"), "--plot nowhere/plot.svg: there is no such folder"),
        (("none/at/all",), "no such folder"),
    ],
)
def test_bad_input_is_one_line(eggs, arguments, message):
    assert message in eggs("bench", *arguments).error


def test_a_record_that_cannot_be_written_is_refused_before_anything_is_measured(eggs, tmp_path):
    (tmp_path / "file").write_text("")
    ran = eggs("bench", "--shapes", "8x8", "--record", tmp_path / "file" / "record.json")
    assert "cannot be written" in ran.error
    assert "bench: 1/" not in ran.err


def test_a_dense_model_is_refused(eggs, tiny):
    assert "no linear of this LlamaForCausalLM is N:M" in eggs("bench", tiny()).error


def test_prompt_and_tokens_must_fit_the_context(eggs, packed):
    error = eggs("bench", packed, "--tokens", "200", *QUICK).error
    assert "8 prompt tokens and 200 new ones exceed the model's context of 128" in error


def test_the_requested_backend_is_measured(eggs, monkeypatch):
    monkeypatch.setenv("EGGS_BACKEND", "reference")
    record = eggs("bench", "--shapes", "16x16", *QUICK, "--json").json
    assert set(record["products"][0]["backends"].values()) == {"reference"}
