import pytest
from pruned import bench, comparison, diagnosis, evaluation, keep, perplexity, sample

from eggs_ptp.errors import CheckpointError
from eggs_ptp.report.record import Kind, beside, read_record, read_records

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
def test_a_record_is_known_by_its_content(tmp_path, data, kind):
    found = read_record(keep(tmp_path / "any.json", data))
    assert found.kind is kind
    assert found.model == (data.get("model") or data.get("folder") or data.get("output"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model": "a", "perplexity": {"val', "cut short"),
        ("", "cut short"),
        ("[1, 2]", "no record of eggs evaluate"),
        ('{"recipe": {}, "matrices": []}', "give the folder itself"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, text, message):
    with pytest.raises(CheckpointError, match=message):
        read_record(keep(tmp_path / "any.json", text))


def test_records_are_found_beside_a_run_and_named_for_it(tmp_path):
    run = tmp_path / "run"
    names = ["run.evaluation.json", "run-bench.json", "runner.json", "other.json", "run/mine.json"]
    paths = [keep(tmp_path / name, "{}") for name in names]
    for name in (
        "config.json",
        "tokenizer.json",
        "generation_config.json",
        "eggs.json",
        "model.safetensors.index.json",
    ):
        keep(run / name, "{}")
    assert sorted(beside(run)) == sorted([paths[0], paths[1], paths[4]])


def test_broken_files_are_skipped_by_name_and_strangers_only_where_they_were_given(tmp_path):
    run = tmp_path / "run"
    given = keep(tmp_path / "given" / "stranger.json", "{}")
    keep(run / "stranger.json", "{}")
    broken = keep(run / "broken.json", '{"a"')
    good = keep(tmp_path / "run.bench.json", bench("run"))
    gone = tmp_path / "gone.json"
    found, skipped = read_records([given.parent, good, gone], [run])
    assert [record.path for record in found] == [good]  # once, though it was given and lies beside
    assert [each.path for each in skipped] == [given, gone, broken]
    assert "no record" in skipped[0].reason
    assert "cannot be read" in skipped[1].reason
