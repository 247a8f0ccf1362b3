import pytest
import torch
from tiny import byte_tokenizer

from eggs_ptp.errors import CalibrationError
from eggs_ptp.evaluation.window import IGNORED, batches, cut

TEXT = ["The quick brown fox jumps over the lazy dog, and the dog does not care. " * 3]


def windows(documents=TEXT, **changes):
    how = {"protocol": "packed", "context": 128, "seqlen": 16, **changes}
    return cut(byte_tokenizer(), documents, **how)


def test_without_a_stride_windows_stand_side_by_side():
    got = windows()
    assert torch.equal(torch.cat(list(got.sequences)), text_ids()[: 13 * 16])
    assert (len(got.sequences), got.scored.tolist(), got.text_tokens) == (13, [15] * 13, len(TEXT[0]))


def text_ids():
    return torch.tensor(byte_tokenizer()(TEXT[0])["input_ids"])


@pytest.mark.parametrize("stride", [1, 5, 8, 15])
def test_a_stride_predicts_each_token_once_with_enough_before_it(stride):
    got = windows(stride=stride)
    ids, seen = text_ids().tolist(), []
    for number, (sequence, scored) in enumerate(zip(got.sequences, got.scored.tolist(), strict=True)):
        assert sequence.tolist() == ids[number * stride : number * stride + 16]
        first = number * stride + 16 - scored
        seen += range(first, number * stride + 16)
        assert number == 0 or first - number * stride == 16 - stride
    assert seen == list(range(1, len(seen) + 1))
    assert len(ids) - stride < len(seen) + 1 <= len(ids)


def test_a_stride_of_a_window_is_the_default():
    assert windows(stride=16).digest == windows().digest
    assert windows(stride=8).digest != windows().digest


def test_batches_hold_the_scored_targets_and_nothing_else():
    got = windows(stride=5, max_windows=4)
    (batch,) = batches(got, 4096)
    for row, index in enumerate(batch.chosen):
        counted = (batch.targets[row] != IGNORED).nonzero().flatten().tolist()
        assert counted == list(range(15 - int(got.scored[index]), 15))
        assert all(batch.targets[row, i] == got.sequences[index][i + 1] for i in counted)


def test_the_joiner_is_that_of_the_data_set():
    joined = windows(["ab" * 20, "cd" * 20], joiner=" ")
    assert bytes(byte_tokenizer().decode(joined.sequences[2]), "utf8") == b"abababab cdcdcdc"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 17}, "stride 17: expected 1 to 16"),
        ({"stride": 0}, "stride 0: expected 1 to 16"),
        ({"stride": 4, "protocol": "documents"}, "protocol packed, not documents"),
    ],
)
def test_refuses_strides_that_cannot_be(options, message):
    with pytest.raises(CalibrationError, match=message):
        windows(**options)
