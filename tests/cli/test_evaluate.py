import json
import math
import sys

import pytest

from eggs_ptp.errors import CalibrationError
from eggs_ptp.evaluation.verdict import format_ratio, level_of


def test_packed_text(eggs, tiny, text_file):
    ran = eggs("evaluate", tiny(), "--text", text_file, "--seqlen", 64, "--max-windows", 5)
    assert ran.code == 0
    assert "perplexity" in ran.out
    assert "± SE" in ran.out
    assert f"{text_file}: packed: 5 windows of 64 tokens, without overlap; 315 of " in ran.out
    strided = eggs("evaluate", tiny(), "--text", text_file, "--seqlen", 64, "--max-windows", 5, "--stride", 16)
    assert "5 windows of 64 tokens, at a stride of 16; 127 of " in strided.out


def test_json_lines_are_documents(eggs, tiny, tmp_path):
    text = tmp_path / "text.jsonl"
    rows = ["x" * 300, "yes", "no"]
    text.write_text("".join(json.dumps({"story": row}) + "\n" for row in rows))
    ran = eggs("evaluate", tiny(), "--text", text, "--text-field", "story")
    assert "documents: 3 separate documents, 1 cut at 128 tokens; 134 of 311 tokens predicted" in ran.out
    record = eggs("evaluate", tiny(), "--text", text, "--text-field", "story", "--protocol", "packed", "--json").json
    perplexity = record["perplexity"]
    assert (perplexity["protocol"], perplexity["windows"], record["text"]) == ("packed", 2, str(text))
    assert perplexity["value"] == pytest.approx(math.exp(perplexity["nll"]))


def test_refuses_a_text_shorter_than_a_window(eggs, tiny, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("too short")
    assert "128" in eggs("evaluate", tiny(), "--text", text).error


def test_the_default_text_needs_the_hub(eggs, tiny, monkeypatch):
    from eggs_ptp.evaluation import text

    def unreachable(name, **options):
        raise CalibrationError(f"{name} cannot be reached")

    monkeypatch.setattr(text, "hub_documents", unreachable)
    assert "wikitext" in eggs("evaluate", tiny()).error
    assert "allenai/c4" in eggs("evaluate", tiny(), "--text", "c4").error


def test_against_another_model(eggs, tiny, text_file, tmp_path):
    record = tmp_path / "out.json"
    options = ("--text", text_file, "--seqlen", 64, "--max-windows", 5)
    ran = eggs("evaluate", tiny(), "--against", tiny(seed=1), *options, "--record", record)
    assert ran.code == 0
    for words in ("difference", "95 % interval", "KL, nats", "top-1 agreement", "|h' - h| / |h| after block 1"):
        assert words in ran.out
    stored = json.loads(record.read_text())
    printed = eggs("evaluate", tiny(), "--against", tiny(seed=1), *options, "--json").json
    timed = ("seconds", "perplexity", "reference", "peak_memory_bytes", "baseline_memory_bytes")
    assert {key: stored[key] for key in stored if key not in timed} == {
        key: printed[key] for key in stored if key not in timed
    }
    assert f"{stored['paired']['perplexity_ratio']['low']:.4f} to " in ran.out
    assert f"{stored['fidelity']['kl']['value']:.5f}" in ran.out
    paired = eggs("evaluate", tiny(seed=1), "--against", record, *options)
    assert "x 1.0000" not in paired.out
    assert "KL, nats" not in paired.out
    assert "expected perplexity on the same" in eggs("evaluate", tiny(), *options[:-1], 4, "--against", record).error


def test_a_pruned_model_gets_a_verdict_first(eggs, tiny, text_file, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command = ("--method", "wanda", "--calibration", text_file, "--nsamples", 4, "--seqlen", 64, "-o", tmp_path / "out")
    eggs("prune", tiny(), *command)
    options = ("--against", tiny(), "--text", text_file, "--seqlen", 64, "--max-windows", 5)
    ran = eggs("evaluate", tmp_path / "out", *options)
    lines = ran.out.splitlines()
    ratio = eggs("evaluate", tmp_path / "out", *options, "--json").json["paired"]["perplexity_ratio"]["value"]
    assert lines[0].startswith(f"Verdict: {format_ratio(ratio)} times dense: {level_of(ratio).words}")
    assert any(line.startswith("too little text: 5 windows, 315 tokens") for line in lines)
    assert max(len(line) for line in lines if " ± SE" in line or line.startswith(" perplexity")) <= 80
    assert "Verdict" not in eggs("evaluate", tmp_path / "out", *options[2:]).out


def test_hidden_states_of_every_block_are_shown_with_full(eggs, tiny, text_file):
    options = ("--against", tiny(seed=1), "--text", text_file, "--seqlen", 64, "--max-windows", 5)
    brief = [line for line in eggs("evaluate", tiny(), *options).out.splitlines() if "after block" in line]
    full = [line for line in eggs("evaluate", tiny(), *options, "--full").out.splitlines() if "after block" in line]
    assert "(last)" in brief[-1]
    assert len(brief) <= 2
    assert len(full) == 2
    assert not any("(" in line for line in full)


def test_a_model_does_not_differ_from_itself(eggs, tiny, text_file):
    ran = eggs("evaluate", tiny(), "--against", tiny(), "--text", text_file, "--seqlen", 64, "--max-windows", 5)
    assert "no pair differs" in ran.out


@pytest.fixture
def questions(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz"
    rows = [
        {"query": f"Question: what is {i * i}?", "choices": list(letters[i : i + 3]), "gold": i % 3} for i in range(20)
    ]
    (folder / "arc_easy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_tasks_alone_need_no_text(eggs, tiny, questions):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra eval)")
    options = ("--tasks", "arc_easy_local", "--data", questions)
    ran = eggs("evaluate", tiny(), *options, "--limit", 9)
    assert ran.code == 0, ran
    assert "perplexity" not in ran.out
    assert "arc_easy_local acc_norm" in ran.out
    assert "arc_easy_local 9 items" in ran.out
    record = eggs("evaluate", tiny(), "--against", tiny(seed=1), *options, "--json").json
    scores = record["tasks"]["arc_easy_local"]["metrics"]["acc"]["scores"]
    reference_scores = record["reference"]["tasks"]["arc_easy_local"]["metrics"]["acc"]["scores"]
    assert len(scores) == 20
    assert scores != reference_scores
    difference = record["paired"]["tasks"]["arc_easy_local"]["acc"]
    assert difference["value"] == pytest.approx((sum(scores) - sum(reference_scores)) / 20)
    assert difference["low"] < difference["value"] < difference["high"]
    assert record["versions"]["lm_eval"]


def test_errors_name_what_tasks_miss(eggs, tiny, questions, monkeypatch):
    options = ("evaluate", tiny(), "--tasks")
    if "lm_eval" in sys.modules:
        assert "put boolq.jsonl there" in eggs(*options, "boolq_local", "--data", questions).error
        assert "pass --data FOLDER" in eggs(*options, "papers_local").error
        assert "there is no local task sums_local" in eggs(*options, "sums_local").error
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install lm-eval" in eggs(*options, "boolq").error


def test_a_model_that_needs_begin_tokens_gets_them_and_says_so(eggs, tiny_with_begin, text_file, tmp_path):
    model = tiny_with_begin("gemma2")
    options = ("--text", text_file, "--seqlen", 64, "--max-windows", 5)
    why = "without overlap; every window begins with the begin token: gemma2 models are broken without it; 315 of "
    assert why in " ".join(eggs("evaluate", model, *options).out.split())
    never = eggs("evaluate", model, *options, "--begin", "never")
    assert "begin token" not in never.out
    record = tmp_path / "dense.json"
    stored = eggs("evaluate", model, *options, "--begin", "never", "--record", record, "--json").json
    assert stored["perplexity"]["begin_tokens"] == []
    refused = eggs("evaluate", model, *options, "--against", record)
    assert "expected perplexity on windows that begin with the begin token" in refused.error
    assert "--begin never" in refused.error
    assert eggs("evaluate", model, *options, "--against", record, "--begin", "never").code == 0


def test_begin_tokens_change_nothing_for_a_tokenizer_that_writes_none(eggs, tiny, text_file):
    options = ("--text", text_file, "--seqlen", 64, "--max-windows", 5, "--json")
    auto, never = (eggs("evaluate", tiny("gemma2"), *options, "--begin", begin).json for begin in ("auto", "never"))
    assert auto["perplexity"]["losses"] == never["perplexity"]["losses"]
    assert auto["perplexity"]["begin_tokens"] == []
