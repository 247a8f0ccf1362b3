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
