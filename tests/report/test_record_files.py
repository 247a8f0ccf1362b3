import pytest
from synthetic_records import bench, comparison, diagnosis, evaluation, perplexity, sample, write_record

from eggs_ptp.errors import CheckpointError
from eggs_ptp.report.record_files import Kind, read_record, read_records, record_candidates

KINDS = [
    (evaluation("out/a", "demo"), Kind.evaluation),
    ({"model": "out/a", "text": None, **perplexity(28.0)}, Kind.evaluation),
    (bench("out/a"), Kind.bench),
    (comparison("demo"), Kind.comparison),
    ({"perplexity": 28.0, "evaluation": perplexity(28.0), "versions": {}}, Kind.compared_run),
    (diagnosis("out/a"), Kind.diagnosis),
    (sample("out/a", " upon"), Kind.sample),
    ({"dense": {}, "rows": [], "prompt": "Once", "samples": {"dense": "Once"}, "output": "out/a"}, Kind.demo),
]


@pytest.mark.parametrize(("data", "kind"), KINDS)
def test_a_record_is_recognised_by_its_keys(tmp_path, data, kind):
    record = read_record(write_record(tmp_path / "any.json", data))
    assert record.kind is kind
    assert record.model == (data.get("model") or data.get("folder") or data.get("output"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model": "a", "perplexity": {"val', "truncated"),
        ("", "truncated"),
        ("[1, 2]", "not a record; expected one of eggs evaluate"),
        ('{"recipe": {}, "matrices": []}', "give the folder itself"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    with pytest.raises(CheckpointError, match=message):
        read_record(write_record(tmp_path / "any.json", text))


def test_records_are_found_in_a_run_or_next_to_it_if_they_are_named_after_it(tmp_path):
    run = tmp_path / "run"
    names = ["run.evaluation.json", "run-bench.json", "runner.json", "other.json", "run/mine.json"]
    paths = [write_record(tmp_path / name, "{}") for name in names]
    for name in (
        "config.json",
        "tokenizer.json",
        "generation_config.json",
        "eggs.json",
        "model.safetensors.index.json",
    ):
        write_record(run / name, "{}")
    assert sorted(record_candidates(run)) == sorted([paths[0], paths[1], paths[4]])


def test_broken_files_are_skipped_and_other_files_only_if_they_were_requested(tmp_path):
    run = tmp_path / "run"
    requested = write_record(tmp_path / "requested" / "other.json", "{}")
    write_record(run / "other.json", "{}")
    broken = write_record(run / "broken.json", '{"a"')
    good = write_record(tmp_path / "run.bench.json", bench("run"))
    missing = tmp_path / "missing.json"
    records, skipped = read_records([requested.parent, good, missing], [run])
    assert [record.path for record in records] == [good]  # once, though it was requested and is next to the run
    assert [file.path for file in skipped] == [requested, missing, broken]
    assert "not a record" in skipped[0].reason
    assert "cannot be read" in skipped[1].reason
