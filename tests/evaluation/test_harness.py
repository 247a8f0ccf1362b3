"""Local tasks make the requests of lm-eval's own tasks, and models score as in lm-eval's own loop."""

import json
import os.path
import random
import sys
from pathlib import Path

import pytest

from eggs_ptp.errors import CalibrationError
from eggs_ptp.evaluation.harness import LOCAL_TASKS, PAPER_TASKS, TASK_FOLDER, load_tasks, run_tasks, silenced_lm_eval
from eggs_ptp.evaluation.zeroshot import zero_shot

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra eval)")
FILES = {name: f"{name}.jsonl" for name in PAPER_TASKS} | {"hellaswag": "hellaswag_1000.jsonl"}
UPSTREAM = {
    "boolq": "super_glue/boolq/default.yaml",
    "rte": "glue/rte/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
}
LABELS = "ABCDE"


def uncleaned(text):
    """Return a text that lm-eval's cleaning of HellaSwag, which drops [marks] and double spaces, turns into `text`."""
    text = text.replace("  ", "    ")
    return f"{'[step]' * text.startswith(' ')}{text}{'[step]' * text.endswith(' ')}"


def hub_row(name, row):
    """Turn a row of a local file into that of the hub's data set, which lm-eval's own task reads."""
    if name == "rte":
        return row
    if name == "boolq":
        passage, question = row["query"].rsplit("\nQuestion: ", 1)
        assert row["choices"] == ["no", "yes"]
        return {"passage": passage[len("Passage: ") :], "question": question[:-1], "label": row["gold"]}
    if name == "hellaswag":
        label, text = row["query"].split(": ", 1)
        endings = [uncleaned(ending) for ending in row["choices"]]
        return {
            "activity_label": label,
            "ctx_a": text.replace("  ", "    "),
            "ctx_b": "",
            "endings": endings,
            "label": str(row["gold"]),
        }
    if name == "winogrande":
        before = os.path.commonprefix(row["context_options"])  # noqa: RUF071 - of text
        options = [context[len(before) :] for context in row["context_options"]]
        return {
            "sentence": f"{before}_ {row['continuation']}",
            "option1": options[0],
            "option2": options[1],
            "answer": str(row["gold"] + 1),
        }
    choices = {"text": row["choices"], "label": list(LABELS[: len(row["choices"])])}
    key = "question_stem" if name == "openbookqa" else "question"
    return {key: row["query"].removeprefix("Question: "), "choices": choices, "answerKey": LABELS[row["gold"]]}


@pytest.fixture(scope="module")
def rows(shared):
    """`rows(name, count)`: the first rows of a file, and as many from its middle."""

    def read(name, count):
        lines = (shared / "data/zeroshot" / FILES[name]).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in (*lines[:count], *lines[len(lines) // 2 :][:count])]

    return read


def own_task(name, rows):
    """Make lm-eval's own task with these rows in place of the hub's."""
    from datasets import Dataset
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks import __file__ as tasks_file
    from lm_eval.tasks._yaml_loader import load_yaml

    documents = Dataset.from_list([hub_row(name, row) for row in rows])
    config = load_yaml(Path(tasks_file).parent / UPSTREAM[name], resolve_func=True)
    splits = dict.fromkeys(("train", "validation", "test"), documents)
    config |= {"custom_dataset": lambda **_: splits, "task": name}
    with silenced_lm_eval():
        task = TaskManager(include_defaults=False).load([config])["tasks"][name]
        task.set_config(key="num_fewshot", value=0)
    return task


def local_task(name, rows, folder):
    (folder / FILES[name]).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_tasks([f"{name}_local"], folder)[f"{name}_local"]


def requests(task):
    with silenced_lm_eval():
        task.build_all_requests(limit=None, rank=0, world_size=1)
    return [(instance.doc_id, instance.idx, instance.args) for instance in task.instances]


@pytest.mark.parametrize("name", PAPER_TASKS)
def test_local_tasks_make_the_requests_and_the_scores_of_lm_evals_own(name, rows, tmp_path):
    sample = rows(name, 40)
    own = own_task(name, sample)
    local = local_task(name, sample, tmp_path)
    local_requests = requests(local)
    assert local_requests == requests(own)
    assert len({args for *_, args in local_requests}) > 80
    random_numbers = random.Random(0)  # noqa: S311
    for local_document, own_document in zip(local.eval_docs, own.eval_docs, strict=True):
        choices = len(local.doc_to_choice(local_document))
        answers = [(-random_numbers.random() * 9, False) for _ in range(choices)]
        scores = local.process_results(local_document, answers)
        assert scores == own.process_results(own_document, answers)
        assert set(scores) <= {"acc", "acc_norm"}


@pytest.fixture(scope="module")
def stories(shared):
    from eggs_ptp.models.load import load_model, load_tokenizer

    folder = shared / "data/models/tinystories-656k"
    return load_model(folder), load_tokenizer(folder)


@pytest.mark.parametrize("name", ["boolq", "winogrande", "arc_easy"])
def test_items_are_scored_as_in_lm_evals_own_loop(name, rows, stories, tmp_path):
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    sample = rows(name, 6)
    with silenced_lm_eval():
        model = HFLM(pretrained=stories[0], tokenizer=stories[1], batch_size=4)
        expected = evaluator.evaluate(model, {"tasks": {name: own_task(name, sample)}}, bootstrap_iters=0)
    expected_items = expected["samples"][name]
    local = f"{name}_local"
    tasks = {local: local_task(name, sample, tmp_path)}
    samples, truncated = run_tasks(*stories, tasks)
    for item, expected_item in zip(samples[local], expected_items, strict=True):
        responses = zip(item["filtered_resps"], expected_item["filtered_resps"], strict=True)
        for (likelihood, is_greedy), (expected_likelihood, expected_greedy) in responses:
            assert likelihood == pytest.approx(expected_likelihood, rel=1e-5)
            assert is_greedy == expected_greedy
        assert item["acc"] == expected_item["acc"]
    result = zero_shot(*stories, tasks)[local]
    assert result.scores["acc"] == tuple(item["acc"] for item in expected_items)
    assert result.mean("acc").value == pytest.approx(expected["results"][name]["acc,none"])
    assert bool(truncated) == bool(result.truncated) == (name == "boolq")


def test_the_standard_error_equals_lm_evals(rows, stories, tmp_path):
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    tasks = {"arc_easy_local": local_task("arc_easy", rows("arc_easy", 10), tmp_path)}
    result = zero_shot(*stories, tasks)["arc_easy_local"]
    with silenced_lm_eval():
        model = HFLM(pretrained=stories[0], tokenizer=stories[1], batch_size=8)
        expected = evaluator.evaluate(model, {"tasks": tasks}, bootstrap_iters=1)["results"]["arc_easy_local"]
    for metric in ("acc", "acc_norm"):
        assert result.mean(metric).value == pytest.approx(expected[f"{metric},none"])
        assert result.mean(metric).standard_error == pytest.approx(expected[f"{metric}_stderr,none"])


def test_a_limit_takes_the_first_items(rows, stories, tmp_path):
    tasks = {"arc_easy_local": local_task("arc_easy", rows("arc_easy", 5), tmp_path)}
    limited, complete = (zero_shot(*stories, tasks, limit=limit)["arc_easy_local"] for limit in (3, None))
    assert limited.scores["acc"] == complete.scores["acc"][:3]
    assert limited.sha256 != complete.sha256


def test_without_tasks_nothing_is_imported():
    assert load_tasks([], None) == {}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["piqa_local"], "there is no local task piqa_local; choose from boolq_local, rte_local"),
        (["boolq_local"], "task boolq_local reads boolq.jsonl from a local folder; pass --data FOLDER"),
    ],
)
def test_a_missing_task_or_folder_is_named(names, message):
    with pytest.raises(CalibrationError, match=message):
        load_tasks(names, None)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(CalibrationError, match=r"there is no file .*rte\.jsonl; put rte\.jsonl there"):
        load_tasks(["rte_local"], tmp_path)
    (tmp_path / "rte.jsonl").write_text('{"a": 1}\n{"a"')
    with pytest.raises(CalibrationError, match=r"rte\.jsonl, line 2: not JSON"):
        load_tasks(["rte_local"], tmp_path)
    (tmp_path / "rte.jsonl").write_text("[1]\n")
    with pytest.raises(CalibrationError, match="expected one JSON object a line"):
        load_tasks(["rte_local"], tmp_path)
    (tmp_path / "rte.jsonl").write_text('{"query": 1}\n')
    with pytest.raises(CalibrationError, match=r"rte_local: .*rte\.jsonl does not have the rows .*sentence1"):
        load_tasks(["rte_local"], tmp_path)


def test_without_lm_eval_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CalibrationError, match="pip install lm-eval"):
        load_tasks(["boolq"], None)


def test_other_tasks_are_loaded_from_the_hub(monkeypatch):
    """lm-eval's own index finds them by name; without a network the error is one line."""
    import datasets

    requested = []

    def unreachable(path, name=None, **options):
        requested.append((path, name))
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        CalibrationError, match=r"arc_easy cannot be loaded .*no network.*use arc_easy_local with --data"
    ):
        load_tasks(["arc_easy"], None)
    assert requested == [("allenai/ai2_arc", "ARC-Easy")]


def test_every_local_task_names_its_file():
    import yaml

    assert sorted(path.stem for path in TASK_FOLDER.iterdir()) == sorted(LOCAL_TASKS)
    for name, file in FILES.items():
        definition = yaml.safe_load((TASK_FOLDER / f"{name}_local.yaml").read_text(encoding="utf-8"))
        assert definition["task"] == f"{name}_local"
        assert definition["dataset_kwargs"]["data_files"]["validation"] == file


def test_messages_and_progress_bars_of_lm_eval_are_silenced(capsys):
    with silenced_lm_eval():
        sys.stderr.write("a bar")
    assert capsys.readouterr().err == ""
