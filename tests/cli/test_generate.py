import json
import shutil

import pytest


@pytest.fixture
def chatty(tiny, tmp_path):
    """A folder whose tokenizer has a chat template."""
    folder = shutil.copytree(tiny(), tmp_path / "chatty")
    path = folder / "tokenizer_config.json"
    template = "{{ bos_token }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    return folder


def test_continues_the_prompt(eggs, tiny):
    command = ("generate", tiny(), "--prompt", "abc", "--tokens", 5)
    first = eggs(*command)
    assert first.code == 0
    assert first.out.startswith("abc")
    assert eggs(*command).out == first.out
    assert eggs(*command, "--seed", 1).out != first.out
    record = eggs(*command, "--temperature", 0, "--json").json
    assert record["prompt"] == "abc"
    assert record["text"].startswith("abc")


def test_refuses_more_than_the_context(eggs, tiny):
    error = eggs("generate", tiny(), "--prompt", "abc", "--tokens", 126).error
    assert error == "3 prompt tokens and 126 new ones exceed the model's context of 128; ask for fewer tokens"


def test_a_chat_template_is_used_where_there_is_one(eggs, tiny, chatty):
    command = ("generate", chatty, "--prompt", "abc", "--tokens", 5, "--temperature", 0, "--json")
    record = eggs(*command).json
    assert record["chat"] is True
    assert not record["text"].startswith("abc")
    plain = eggs(*command, "--no-chat").json
    assert (plain["chat"], plain["text"][:3]) == (False, "abc")
    assert eggs("generate", tiny(), "--prompt", "abc", "--tokens", 5, "--json").json["chat"] is False
    error = eggs("generate", tiny(), "--prompt", "abc", "--chat").error
    assert error.startswith("--chat: expected a tokenizer with a chat template, got one without")


def test_two_models_side_by_side(eggs, tiny):
    command = ("generate", tiny(), "--prompt", "abc", "--tokens", 5)
    ran = eggs(*command, "--against", tiny(seed=1))
    first, second = (eggs("generate", folder, *command[2:]).out for folder in (tiny(), tiny(seed=1)))
    assert ran.out == f"--- {tiny()}\n{first}--- {tiny(seed=1)}\n{second}"
    assert eggs(*command, "--against", tiny(seed=1), "--json").json["against"]["text"] == second.removesuffix("\n")
    assert "nowhere" in eggs(*command, "--against", "nowhere").error


@pytest.mark.parametrize(("is_chat", "advice"), [(True, "--no-chat"), (False, "a longer prompt")])
def test_an_end_at_once_is_said(is_chat, advice):
    from eggs_ptp.cli.generate import remarks
    from eggs_ptp.evaluation.generate import Sample

    (remark,) = remarks(Sample("", 1, "<|im_end|>", ()), is_chat=is_chat)
    assert remark.startswith("the model ended at once: its first token was <|im_end|>; try ")
    assert advice in remark
    assert remarks(Sample("a", 2, "</s>", ()), is_chat=is_chat) == []
    assert remarks(Sample("a<x>b<x>", 9, None, ("<x>", "<x>")), is_chat=is_chat) == ["special tokens in the text: <x>"]
