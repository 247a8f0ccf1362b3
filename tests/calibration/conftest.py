from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

BEGIN = 0
UNKNOWN = 1


class Words:
    """A tokenizer with `w7` as token 7, which adds a begin token by default."""

    def __init__(self, size=100):
        vocabulary = {"<s>": BEGIN, "<unk>": UNKNOWN} | {f"w{index}": index for index in range(2, size)}
        self.inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        self.inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        self.inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
        self.calls = []

    def __call__(self, text, *, add_special_tokens=True, verbose=True):
        self.calls.append(SimpleNamespace(text=text, special=add_special_tokens, verbose=verbose))
        return SimpleNamespace(input_ids=self.inner.encode(text, add_special_tokens=add_special_tokens).ids)


@pytest.fixture
def tokenizer():
    return Words()
