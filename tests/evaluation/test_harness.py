"""Local tasks ask what lm-eval's own ask, and models answer as in lm-eval's own loop."""

import json
import os.path
import random
import sys
from pathlib import Path

import pytest

from eggs_ptp.errors import CalibrationError
from eggs_ptp.evaluation.harness import LOCAL, TASKS, load_tasks, quiet, run_tasks
from eggs_ptp.evaluation.zeroshot import zero_shot

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra eval)")
FILES = {name: f"{name}.jsonl" for name in TASKS} | {"hellaswag": "hellaswag_1000.jsonl"}
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
    """What lm-eval's cleaning of HellaSwag (marks in brackets out, two blanks to one) makes `text` of."""
    text = text.replace("  ", "    ")
    return f"{'[step]' * text.startswith(' ')}{text}{'[step]' * text.endswith(' ')}"


def hub_row(name, row):
    """A row of a local file as the hub's data set has it, which is what lm-eval's own task starts from."""
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
    """The first rows of each file, and some from its middle."""

    def read(name, count):
        lines = (shared / "data/zeroshot" / FILES[name]).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in (*lines[:count], *lines[len(lines) // 2 :][:count])]

    return read


def own_task(name, rows):
    """lm-eval's own task on these rows in the place of the hub's."""
    from datasets import Dataset
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks import __file__ as home
    from lm_eval.tasks._yaml_loader import load_yaml

    documents = Dataset.from_list([hub_row(name, row) for row in rows])
    config = load_yaml(Path(home).parent / UPSTREAM[name], resolve_func=True)
    splits = dict.fromkeys(("train", "validation", "test"), documents)
    config |= {"custom_dataset": lambda **_: splits, "task": name}
    with quiet():
        task = TaskManager(include_defaults=False).load([config])["tasks"][name]
        task.set_config(key="num_fewshot", value=0)
    return task


def local_task(name, rows, folder):
    (folder / FILES[name]).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_tasks([f"{name}_local"], folder)[f"{name}_local"]


def requests(task):
    with quiet():
        task.build_all_requests(limit=None, rank=0, world_size=1)
    return [(one.doc_id, one.idx, one.args) for one in task.instances]


@pytest.mark.parametrize("name", TASKS)
def test_local_tasks_make_the_requests_and_the_scores_of_lm_evals_own(name, rows, tmp_path):
    some = rows(name, 40)
    own, local = own_task(name, some), local_task(name, some, tmp_path)
    made = requests(local)
    assert made == requests(own)
    assert len({args for *_, args in made}) > 80
    chance = random.Random(0)  # noqa: S311
    for mine, theirs in zip(local.eval_docs, own.eval_docs, strict=True):
        choices = len(local.doc_to_choice(mine))
        answers = [(-chance.random() * 9, False) for _ in range(choices)]
        scores = local.process_results(mine, answers)
        assert scores == own.process_results(theirs, answers)
        assert set(scores) <= {"acc", "acc_norm"}


@pytest.fixture(scope="module")
def stories(shared):
    from eggs_ptp.models.load import load_model, load_tokenizer

    folder = shared / "data/models/tinystories-656k"
    return load_model(folder), load_tokenizer(folder)


@pytest.mark.parametrize("name", ["boolq", "winogrande", "arc_easy"])
def test_items_are_answered_as_in_lm_evals_own_loop(name, rows, stories, tmp_path):
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    some = rows(name, 6)
    with quiet():
        model = HFLM(pretrained=stories[0], tokenizer=stories[1], batch_size=4)
        found = evaluator.evaluate(model, {"tasks": {name: own_task(name, some)}}, bootstrap_iters=0)
    local = f"{name}_local"
    tasks = {local: local_task(name, some, tmp_path)}
    samples, cut = run_tasks(*stories, tasks)
    for mine, theirs in zip(samples[local], found["samples"][name], strict=True):
        for (likelihood, greedy), (expected, same) in zip(
            mine["filtered_resps"], theirs["filtered_resps"], strict=True
        ):
            assert likelihood == pytest.approx(expected, rel=1e-5)
            assert greedy == same
        assert mine["acc"] == theirs["acc"]
    result = zero_shot(*stories, tasks)[local]
    assert result.scores["acc"] == tuple(one["acc"] for one in found["samples"][name])
    assert result.mean("acc").value == pytest.approx(found["results"][name]["acc,none"])
    assert bool(cut) == bool(result.truncated) == (name == "boolq")


def test_lm_evals_standard_error_is_ours(rows, stories, tmp_path):
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    tasks = {"arc_easy_local": local_task("arc_easy", rows("arc_easy", 10), tmp_path)}
    result = zero_shot(*stories, tasks)["arc_easy_local"]
    with quiet():
        model = HFLM(pretrained=stories[0], tokenizer=stories[1], batch_size=8)
        found = evaluator.evaluate(model, {"tasks": tasks}, bootstrap_iters=1)["results"]["arc_easy_local"]
    for metric in ("acc", "acc_norm"):
        assert result.mean(metric).value == pytest.approx(found[f"{metric},none"])
        assert result.mean(metric).standard_error == pytest.approx(found[f"{metric}_stderr,none"])


def test_a_limit_takes_the_first_items(rows, stories, tmp_path):
    tasks = {"arc_easy_local": local_task("arc_easy", rows("arc_easy", 5), tmp_path)}
    few, all_items = (zero_shot(*stories, tasks, limit=limit)["arc_easy_local"] for limit in (3, None))
    assert few.scores["acc"] == all_items.scores["acc"][:3]
    assert few.sha256 != all_items.sha256


def test_without_tasks_nothing_is_imported():
    assert load_tasks([], None) == {}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["piqa_local"], "there is no local task piqa_local; there are boolq_local, rte_local"),
        (["boolq_local"], "task boolq_local reads boolq.jsonl from a folder of yours: pass --data FOLDER"),
    ],
)
def test_says_what_is_missing(names, message):
    with pytest.raises(CalibrationError, match=message):
        load_tasks(names, None)


def test_says_where_files_belong_and_what_is_wrong_with_them(tmp_path):
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


def test_without_lm_eval_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CalibrationError, match="pip install lm-eval"):
        load_tasks(["boolq"], None)


def test_tasks_of_the_hub_are_lm_evals(monkeypatch):
    """By name they come from lm-eval's own index; the data are the hub's, whose absence is said in one line."""
    import datasets

    asked = []

    def unreachable(path, name=None, **options):
        asked.append((path, name))
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(CalibrationError, match=r"arc_easy cannot be had .*no network.*use arc_easy_local with --data"):
        load_tasks(["arc_easy"], None)
    assert asked == [("allenai/ai2_arc", "ARC-Easy")]


def test_every_local_task_names_its_file():
    import yaml

    from eggs_ptp.evaluation.harness import FOLDER

    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(LOCAL)
    for name, file in FILES.items():
        found = yaml.safe_load((FOLDER / f"{name}_local.yaml").read_text(encoding="utf-8"))
        assert (found["task"], found["dataset_kwargs"]["data_files"]["validation"]) == (f"{name}_local", file)


def test_remarks_and_bars_of_lm_eval_are_kept_away(capsys):
    with quiet():
        sys.stderr.write("a bar")
    assert capsys.readouterr().err == ""
