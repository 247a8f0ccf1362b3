"""Windows with and without a stride, and batches of them."""

import pytest
import torch
from tiny import byte_tokenizer

from eggs_ptp.errors import CalibrationError
from eggs_ptp.evaluation.window import IGNORED, make_windows, padded_batches

TEXT = ["The quick brown fox jumps over the lazy dog, and the dog does not care. " * 3]


def windows(documents=TEXT, **changes):
    options = {"protocol": "packed", "context": 128, "seqlen": 16, **changes}
    return make_windows(byte_tokenizer(), documents, **options)


def test_without_a_stride_windows_do_not_overlap():
    got = windows()
    assert torch.equal(torch.cat(list(got.sequences)), text_ids()[: 13 * 16])
    assert (len(got.sequences), got.scored.tolist(), got.text_tokens) == (13, [15] * 13, len(TEXT[0]))


def text_ids():
    return torch.tensor(byte_tokenizer()(TEXT[0])["input_ids"])


@pytest.mark.parametrize("stride", [1, 5, 8, 15])
def test_a_stride_predicts_each_token_once_with_enough_context(stride):
    got = windows(stride=stride)
    ids = text_ids().tolist()
    targets = []
    for number, (sequence, scored) in enumerate(zip(got.sequences, got.scored.tolist(), strict=True)):
        assert sequence.tolist() == ids[number * stride : number * stride + 16]
        first = number * stride + 16 - scored
        targets += range(first, number * stride + 16)
        assert number == 0 or first - number * stride == 16 - stride
    assert targets == list(range(1, len(targets) + 1))
    assert len(ids) - stride < len(targets) + 1 <= len(ids)


def test_the_default_stride_is_the_window_length():
    assert windows(stride=16).digest == windows().digest
    assert windows(stride=8).digest != windows().digest


def test_batches_have_the_scored_targets_only():
    got = windows(stride=5, max_windows=4)
    (batch,) = padded_batches(got, 4096)
    for row, index in enumerate(batch.indices):
        scored = (batch.targets[row] != IGNORED).nonzero().flatten().tolist()
        assert scored == list(range(15 - int(got.scored[index]), 15))
        assert all(batch.targets[row, i] == got.sequences[index][i + 1] for i in scored)


def test_documents_are_joined_by_the_joiner():
    joined = windows(["ab" * 20, "cd" * 20], joiner=" ")
    assert bytes(byte_tokenizer().decode(joined.sequences[2]), "utf8") == b"abababab cdcdcdc"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 17}, "stride: expected 1 to 16, .* got 17"),
        ({"stride": 0}, "stride: expected 1 to 16, .* got 0"),
        ({"stride": 4, "protocol": "documents"}, "with protocol packed, got 4 with protocol documents"),
    ],
)
def test_impossible_strides_are_refused(options, message):
    with pytest.raises(CalibrationError, match=message):
        windows(**options)
