"""The built-in text: its content, its splits, and missing sources; and the folder of the built-in model."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

import eggs_ptp.demo
from eggs_ptp.demo import corpus
from eggs_ptp.errors import CalibrationError

SPLITS: tuple[corpus.Split, ...] = ("train", "calibration", "evaluation")
MODEL = Path(eggs_ptp.demo.__file__).parent / "model"


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    return {split: corpus.documents(split) for split in SPLITS}


@pytest.fixture
def uncached() -> Iterator[None]:
    corpus._documents_by_split.cache_clear()
    yield
    corpus._documents_by_split.cache_clear()


def normalised(documents: list[str]) -> list[str]:
    return [corpus.normalise(paragraph) for text in documents for paragraph in text.split("\n\n")]


# --- splits ---------------------------------------------------------------------------------------


def test_no_paragraph_is_in_two_splits_or_twice_in_one(texts: dict[str, list[str]]) -> None:
    everything = [paragraph for split in SPLITS for paragraph in normalised(texts[split])]
    assert len(everything) > 5000
    assert len(set(everything)) == len(everything)


def test_every_paragraph_is_in_the_split_that_its_text_determines(texts: dict[str, list[str]]) -> None:
    for split in SPLITS:
        splits = {corpus.split_of(paragraph) for text in texts[split] for paragraph in text.split("\n\n")}
        assert splits == {split}


@pytest.mark.parametrize("variant", ["RETURN the value\n of this key.", "  return the   value of this key  "])
def test_case_space_and_punctuation_do_not_move_a_paragraph_to_another_split(variant: str) -> None:
    assert corpus.normalise(variant) == "return the value of this key"
    assert corpus.split_of(variant) == corpus.split_of("Return the value of this key.")


def test_the_split_does_not_change_between_releases() -> None:
    # The shipped model was trained with this rule; another one would move its training text to evaluation.
    assigned = [corpus.split_of(f"paragraph number {number}") for number in range(12)]
    assert "".join(split[0] for split in assigned) == "ttcettttttct"


def test_an_additional_training_source_moves_no_paragraph_between_splits(texts: dict[str, list[str]]) -> None:
    train = set(normalised(corpus.documents("train", sources=(*corpus.RUNTIME_SOURCES, "numpy"))))
    assert train > set(normalised(texts["train"]))
    assert train.isdisjoint(normalised(texts["evaluation"]) + normalised(texts["calibration"]))


@pytest.mark.usefixtures("uncached")
def test_reading_again_gives_the_same_documents(texts: dict[str, list[str]]) -> None:
    assert corpus.documents("evaluation") == texts["evaluation"]


def test_the_text_does_not_depend_on_the_hash_seed(texts: dict[str, list[str]]) -> None:
    program = "from eggs_ptp.demo.corpus import documents; print(ascii(documents('calibration')))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"}
    )
    assert done.stdout == ascii(texts["calibration"]) + "\n"


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown split 'test'"):
        corpus.documents("test")  # type: ignore[arg-type]


def test_reading_the_corpus_does_not_load_torch() -> None:
    program = "import sys; import eggs_ptp.demo.corpus; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --- paragraphs -----------------------------------------------------------------------------------


def test_prose_is_unwrapped() -> None:
    text = """Return the value of the key if it is
        in the dictionary, and the default otherwise.

        The default is used only when there is no such key.
        """
    assert list(corpus.paragraphs(text)) == [
        "Return the value of the key if it is in the dictionary, and the default otherwise.",
        "The default is used only when there is no such key.",
    ]


def test_markup_is_removed_and_list_items_keep_their_lines() -> None:
    text = "The result of :func:`os.path.join` is a ``str`` that\n- is the first of the items, or\n- is an `Error`."
    assert list(corpus.paragraphs(text)) == [
        "The result of os.path.join is a str that\n- is the first of the items, or\n- is an Error."
    ]


@pytest.mark.parametrize(
    "text",
    [
        ">>> a = 1  # the one and only of the values that are used here",
        "def f(x):\n    return x if x is not None and the or a of in to",
        "if_stmt ::= 'if' the of a to in expression is and suite with for",
        "+-----+-----+\n| the | is a|\n+-----+-----+",
        "x y z w alpha beta gamma delta epsilon zeta eta theta",
        "Return it.",
        "a = [0.5, 0.25, 1e-3]; b = {1: (2, 3)}; c[0] @ d % of the = is in 12345 == 67890 / 3",
    ],
)
def test_code_tables_grammar_and_fragments_are_dropped(text: str) -> None:
    assert list(corpus.paragraphs(text)) == []


# --- missing texts --------------------------------------------------------------------------------


def message_of(error: pytest.ExceptionInfo[CalibrationError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.usefixtures("uncached")
def test_a_missing_topics_module_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(CalibrationError) as error:
        corpus.documents("calibration")
    assert "pydoc_data.topics" in message_of(error)


@pytest.mark.usefixtures("uncached")
def test_a_standard_library_without_sources_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(corpus, "_stdlib_folder", lambda: tmp_path)
    with pytest.raises(CalibrationError) as error:
        corpus.documents("evaluation")
    assert "standard library" in message_of(error)
    assert str(tmp_path) in str(error.value)


@pytest.mark.usefixtures("uncached")
def test_sources_without_english_are_reported_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text("x = 1\n")
    monkeypatch.setattr(corpus, "_stdlib_folder", lambda: tmp_path)
    with pytest.raises(CalibrationError) as error:
        corpus.documents("evaluation")
    assert "no English paragraph" in message_of(error)


@pytest.mark.usefixtures("uncached")
def test_a_source_that_cannot_be_read_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nowhere.py")
    monkeypatch.setattr(corpus, "_stdlib_folder", lambda: tmp_path)
    with pytest.raises(CalibrationError) as error:
        corpus.documents("evaluation")
    assert "dangling.py" in message_of(error)


def test_an_unknown_package_is_reported_in_one_line() -> None:
    with pytest.raises(CalibrationError) as error:
        corpus.documents("train", sources=("no_such_package_here",))
    assert "no_such_package_here" in message_of(error)


@pytest.mark.usefixtures("uncached")
def test_test_suites_and_installed_packages_are_not_the_standard_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for folder in (".", "test", "json/tests", "site-packages/thing", "lib2to3"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        sentence = f"This is the text of a module that was found in {folder.replace('/', ' and ')} for the test."
        (tmp_path / folder / "module.py").write_text(f'"""{sentence}"""\n')
    (tmp_path / "broken.py").write_text("def (:\n")
    monkeypatch.setattr(corpus, "_stdlib_folder", lambda: tmp_path)
    documents = [text for split in SPLITS for text in corpus.documents(split, sources=(corpus.STDLIB,))]
    assert documents == ["This is the text of a module that was found in . for the test."]


@pytest.mark.usefixtures("uncached")
def test_files_are_read_in_the_order_of_their_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    sentences = []
    for number, name in enumerate(("a/z.py", "b.py", "c.py")):
        sentences.append(f"This is the paragraph that is number {number} of those in the order of the paths.")
        (tmp_path / name).write_text(f'"""{sentences[-1]}"""\n')
    monkeypatch.setattr(corpus, "_stdlib_folder", lambda: tmp_path)
    monkeypatch.setattr(corpus, "_split_of_digest", lambda digest: "train")
    assert corpus.documents("train", sources=(corpus.STDLIB,)) == sentences


# --- the model's folder ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def test_the_texts_are_long_enough_for_calibration_and_evaluation(
    texts: dict[str, list[str]], tokenizer: Tokenizer
) -> None:
    calibration = len(tokenizer.encode("\n\n".join(texts["calibration"])).ids)
    evaluation = len(tokenizer.encode("\n\n".join(texts["evaluation"])).ids)
    assert calibration >= 128 * 256
    assert evaluation >= 40_000


def test_the_tokenizer_is_lossless(texts: dict[str, list[str]], tokenizer: Tokenizer) -> None:
    for text in (*texts["evaluation"][:50], "naïve  café\t\n\n 你好 🥚 \x00"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_model_is_a_small_grouped_query_llama() -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_hidden_layers"] >= 4
    assert 0 < config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0
    assert config["max_position_embeddings"] >= 256
    assert config["dtype"] == "bfloat16"


def test_the_weights_have_the_expected_size_and_type(tokenizer: Tokenizer) -> None:
    config = json.loads((MODEL / "config.json").read_text())
    files = list(MODEL.glob("*.safetensors"))
    assert [file.name for file in files] == ["model.safetensors"]
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 16 * 2**20
    parameters = 0
    with safe_open(files[0], framework="numpy") as weights:
        for name in weights.keys():  # noqa: SIM118 (not a mapping)
            tensor = weights.get_slice(name)
            assert tensor.get_dtype() == "BF16", name
            shape = tensor.get_shape()
            assert all(size % 16 == 0 for size in shape), name
            parameters += math.prod(shape)
        assert weights.get_slice("model.embed_tokens.weight").get_shape()[0] == config["vocab_size"]
    assert 700_000 <= parameters <= 8_000_000
    assert tokenizer.get_vocab_size() == config["vocab_size"]


def test_the_training_log_reports_a_model_that_pruning_damages() -> None:
    log = json.loads((MODEL / "training.json").read_text())
    dense, pruned = log["held_out_perplexity"], log["held_out_perplexity_2_4_magnitude"]
    assert 1 < dense < 60
    assert pruned >= 1.5 * dense
    assert log["log"][-1]["step"] == log["steps"]
    assert (MODEL / "TRAINING.md").is_file()
    for path in MODEL.iterdir():
        if path.suffix in {".json", ".md"}:
            assert "/root/" not in path.read_text()
            assert "/tmp/" not in path.read_text()  # noqa: S108 (no file is opened there)
