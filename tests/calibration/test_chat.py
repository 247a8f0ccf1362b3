"""Chats: what the template gets, and which rows are refused with which reason."""

import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from eggs_ptp.calibration import hub
from eggs_ptp.calibration.documents import read_documents
from eggs_ptp.calibration.tokens import token_ids, tokenise
from eggs_ptp.calibration.windows import calibration_windows
from eggs_ptp.errors import CalibrationError
from eggs_ptp.evaluation.text import load_text
from eggs_ptp.evaluation.window import make_windows
from eggs_ptp.recipe.recipe import CalibrationSpec

USER = {"role": "user", "content": "hello"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern", "day": None}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


class Recorder:
    """A tokenizer whose template renders all that it gets as JSON."""

    def apply_chat_template(self, messages, **options):
        assert options.pop("tokenize") is False
        return json.dumps({"messages": messages, **options})


def written(tmp_path, *rows, name="c.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rendered(tmp_path, row):
    (document,) = read_documents(written(tmp_path, row), tokenizer=Recorder())
    return json.loads(document)


def refusal(tmp_path, row, tokenizer=None):
    path = written(tmp_path, {"messages": [USER]}, row)
    with pytest.raises(CalibrationError) as caught:
        read_documents(path, tokenizer=tokenizer or Recorder())
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}, line 2")
    return str(caught.value).removeprefix(f"{path}, line 2").lstrip(",: ")


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "system", "content": ""},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": "yes", "reasoning_content": "because"},
        {"role": "assistant", "content": None, "reasoning_content": "because"},
        {"role": "tool", "content": "21 degrees", "tool_call_id": "a1", "name": "weather"},
        {"role": "developer", "content": "be brief", "weight": 0},
    ],
)
def test_turns_reach_the_template_as_they_are(tmp_path, turn):
    assert rendered(tmp_path, {"messages": [USER, turn]}) == {"messages": [USER, turn]}


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"from": "human", "value": "hi"}, {"role": "user", "content": "hi"}),
        ({"from": "gpt", "value": ""}, {"role": "assistant", "content": ""}),
        ({"from": "bing", "value": "hello"}, {"role": "assistant", "content": "hello"}),
        ({"from": "system", "value": "be brief"}, {"role": "system", "content": "be brief"}),
        ({"from": "observation", "value": "21"}, {"role": "tool", "content": "21"}),
        ({"role": "user", "content": None, "value": "hi"}, {"role": "user", "content": "hi"}),
        ({**USER, "name": None, "tool_calls": None}, USER),
        ({"role": "user", "content": [{"type": "text", "text": "hi"}]}, {"role": "user", "content": "hi"}),
        ({"role": "user", "content": ["one ", {"text": "two"}]}, {"role": "user", "content": "one two"}),
        (
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "text", "text": " b"}]},
            {"role": "user", "content": "a b"},
        ),
        ({"role": "user", "content": []}, {"role": "user", "content": ""}),
    ],
)
def test_what_templates_do_not_know_is_renamed_or_joined(tmp_path, turn, message):
    assert rendered(tmp_path, {"messages": [turn]})["messages"] == [message]


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])])
def test_tools_reach_the_template(tmp_path, tools):
    assert rendered(tmp_path, {"messages": [USER], "tools": tools})["tools"] == [TOOL]


@pytest.mark.parametrize("tools", [None, [], "", " "])
def test_without_tools_the_template_gets_none(tmp_path, tools):
    assert "tools" not in rendered(tmp_path, {"messages": [USER], "tools": tools})


def test_a_system_prompt_beside_the_turns_comes_first(tmp_path):
    row = {"system": "be brief", "conversations": [{"from": "human", "value": "hi"}]}
    assert rendered(tmp_path, row)["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
    ]
    row["conversations"].insert(0, {"from": "system", "value": "be long"})
    assert [turn["content"] for turn in rendered(tmp_path, row)["messages"]] == ["be long", "hi"]


def test_a_chat_under_a_name_of_its_own(tmp_path):
    path = written(tmp_path, {"dialogue": [USER]})
    (document,) = read_documents(path, field="dialogue", tokenizer=Recorder())
    assert json.loads(document) == {"messages": [USER]}


def test_a_chat_beside_a_text_that_is_null(tmp_path):
    assert rendered(tmp_path, {"text": None, "messages": [USER]}) == {"messages": [USER]}


def image(**part):
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "look"}, part]}]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            image(type="image_url", image_url={"url": "http://x"}),
            "'messages', message 1, part 2: expected text, got an image ('image_url'); language models are pruned with "
            "text alone, so leave such rows out",
        ),
        (image(type="image", image="x.png"), "'messages', message 1, part 2: expected text, got an image ('image')"),
        (image(type="input_audio", input_audio={}), "'messages', message 1, part 2: expected text, got audio ("),
        (image(type="video", video="x.mp4"), "'messages', message 1, part 2: expected text, got a video ('video')"),
        (image(image="x.png"), "'messages', message 1, part 2: expected text, got an image ('image')"),
        (
            {"messages": [USER], "images": ["x.png"]},
            "expected a chat of text, got an image with it ('images'); language models",
        ),
        ({"conversations": [USER], "audio": "x.wav"}, "expected a chat of text, got audio with it ('audio')"),
        ({"messages": [USER], "Videos": [{"path": "x"}]}, "expected a chat of text, got a video with it ('Videos')"),
        (
            {"messages": [USER, {**USER, "images": ["x.png"]}]},
            "'messages', message 2: expected a message of text, got an image with it ('images'); language models",
        ),
        (
            {"messages": [{**USER, "audio": {"id": "a"}}]},
            "'messages', message 1: expected a message of text, got audio with it ('audio')",
        ),
        (
            image(type="file", file={"id": "a"}),
            "'messages', message 1, part 2: expected a part of type 'text', got 'file'; correct the row",
        ),
        ({"messages": [{**USER, "content": 3}]}, "'messages', message 1: expected content as text, got int; correct"),
        (
            {"messages": [USER, {"role": "assistant", "content": None}]},
            "'messages', message 2: expected role and content (or from and value), got no content and no tool calls "
            "among 'role', 'content'; correct the row or leave it out",
        ),
        (
            {"messages": [{"content": "hi"}]},
            "'messages', message 1: expected role and content (or from and value), got no role among 'content'; ",
        ),
        (
            {"messages": [{"role": 3, "content": "hi"}]},
            "'messages', message 1: expected role and content (or from and value), got a role that is int among ",
        ),
        (
            {"messages": [USER, "hi"]},
            "'messages', message 2: expected an object with role and content, got str; correct the row or leave it out",
        ),
        ({"messages": []}, "'messages': expected at least one message, got an empty list; leave the row out"),
        ({"messages": "hi"}, "'messages': expected a list of messages, got str; name another field"),
        ({"messages": [USER], "tools": "{"}, "'messages': expected 'tools' as a list or as JSON of one, got text that"),
        ({"messages": [USER], "tools": {"a": 1}}, "'messages': expected 'tools' as a list, got dict; correct the row"),
    ],
)
def test_a_bad_row_says_which_and_why(tmp_path, row, message):
    assert refusal(tmp_path, row).startswith(message)


def test_a_chat_without_media_in_a_field_for_them(tmp_path):
    assert rendered(tmp_path, {"messages": [USER], "images": [], "audio": None})["messages"] == [USER]
    assert rendered(tmp_path, {"messages": [{**USER, "images": None}]})["messages"] == [USER]


class Failing:
    def apply_chat_template(self, messages, **_):
        if len(messages) % 2 == 0:
            raise ValueError("roles must\nalternate")
        return "x"


def test_a_row_that_the_template_refuses_says_which_and_why(tmp_path):
    row = {"messages": [USER, USER]}
    assert refusal(tmp_path, row, Failing()) == (
        "'messages': the tokenizer's chat template fails (roles must alternate); change the row, leave it out, or give "
        "plain text instead"
    )


def words(template, *, writes=True):
    """Return a tokenizer of transformers with one token a word, a begin token and a chat template."""
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2, "[user]": 3, "hello": 4, "[assistant]": 5, "yes": 6}
    inner = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if writes:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )


TURNS = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
LLAMA = "{{ bos_token }} " + TURNS
MISTRAL = "{{ bos_token }} " + TURNS + "{{ eos_token }}"
CHATML = "{% for m in messages %}<s> [{{ m.role }}] {{ m.content }} </s>\n{% endfor %}"
CHAT = [USER, {"role": "assistant", "content": "yes"}]


@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize("template", [LLAMA, MISTRAL, CHATML])
def test_a_template_that_writes_the_begin_token_gets_no_second_one(tmp_path, template, writes):
    tokenizer = words(template, writes=writes)
    text = load_text(str(written(tmp_path, {"messages": CHAT})), tokenizer=tokenizer)
    expected = tokenizer.apply_chat_template(CHAT, return_dict=False)
    evaluated = make_windows(tokenizer, text.documents, protocol=text.protocol, context=64).sequences[0].tolist()
    ends = [] if expected[-1] == 1 else [1]
    assert evaluated == [*expected, *ends]
    packed = make_windows(tokenizer, text.documents, protocol="packed", context=64, seqlen=len(expected))
    assert packed.sequences[0].tolist() == expected
    assert token_ids(text.documents[0], tokenizer) == expected
    assert tokenise(text.documents * 2, tokenizer).tolist() == expected * 2


@pytest.mark.parametrize("sampling", ["packed", "documents"])
def test_calibration_windows_of_chats_have_one_begin_token_in_front(tmp_path, sampling):
    path = written(tmp_path, *[{"messages": CHAT}] * 6)
    spec = CalibrationSpec(text=str(path), nsamples=100, sampling=sampling)
    windows = calibration_windows(spec, words(LLAMA), seqlen=4, seed=0, vocab_size=7).tokens.tolist()
    assert {window[0] for window in windows} == {0}
    assert not [window for window in windows if window[1] == 0]


def test_a_template_that_writes_no_begin_token_gets_the_tokenizers(tmp_path):
    tokenizer = words(TURNS)
    (document,) = read_documents(written(tmp_path, {"messages": CHAT}), tokenizer=tokenizer)
    assert token_ids(document, tokenizer) == [0, 3, 4, 5, 6]


def test_a_tool_call_without_content_and_a_template_that_cannot_render_null(tmp_path):
    tokenizer = words("{% for m in messages %}{{ '[' + m.role + '] ' + m.content + ' ' }}{% endfor %}")
    path = written(tmp_path, {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]})
    assert read_documents(path, tokenizer=tokenizer) == ["[user] hello [assistant]  "]


MIXED = [
    {"messages": [USER], "tools": None},
    {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}], "tools": [TOOL]},
    {"messages": [{"role": "user", "content": "hello", "name": "eve"}], "tools": None},
]


def test_nulls_that_a_table_adds_do_not_reach_the_template(tmp_path):
    parquet.write_table(pyarrow.Table.from_pylist(MIXED), tmp_path / "c.parquet")
    documents = [json.loads(text) for text in read_documents(tmp_path / "c.parquet", tokenizer=Recorder())]
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
    assert [document["messages"] for document in documents] == [
        [USER],
        [USER, {"role": "assistant", "tool_calls": [call]}],
        [{**USER, "name": "eve"}],
    ]
    assert ["tools" in document for document in documents] == [False, True, False]


def test_chats_of_the_hub_are_read_like_those_of_a_file():
    rows = pyarrow.Table.from_pylist(MIXED).to_pylist()
    documents = hub._Documents("owner/set", rows, "text", Recorder())
    assert json.loads(documents[0]) == {"messages": [USER]}
    with pytest.raises(CalibrationError, match=r"^owner/set, row 1: expected a chat of text, got an image"):
        hub._Documents("owner/set", [{"messages": [USER], "image": b"x"}], "text", Recorder())[0]


def test_compressed_chats(tmp_path):
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"messages": [USER]}).encode()))
    assert [json.loads(document) for document in read_documents(path, tokenizer=Recorder())] == [{"messages": [USER]}]
