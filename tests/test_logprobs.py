from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dpo_core.data import EncodedPair, collate
from dpo_core.formats.pairs import PreferencePair
from dpo_core.logprobs import pair_logps, reference_logps, sequence_logps, token_logps

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def random_pairs(count=6, seed=0, vocabulary=257):
    generator = torch.Generator().manual_seed(seed)

    def ids(most):
        length = torch.randint(1, most, (), generator=generator)
        return torch.randint(vocabulary, (length,), generator=generator).tolist()

    return [EncodedPair(ids(9), ids(14), ids(14), PreferencePair("", "", "")) for _ in range(count)]


def textbook(model, encoded):
    """Each answer in a row of its own, as the paper has it; (pairs, 2)."""
    rows = []
    for e in encoded:
        for answer in (e.chosen, e.rejected):
            ids = torch.tensor([e.prompt + answer])
            mask = torch.tensor([[0] * len(e.prompt) + [1] * len(answer)])
            rows.append(sequence_logps(model, ids, mask))
    return torch.cat(rows).view(-1, 2)


def gradients(model, value):
    names, parameters = zip(*model.named_parameters())
    return dict(zip(names, torch.autograd.grad(value, parameters)))


def assert_same_gradients(model, one, other):
    theirs = gradients(model, other)
    for name, gradient in gradients(model, one).items():
        torch.testing.assert_close(gradient, theirs[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


def test_token_logps_by_hand():
    logits = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    expected = torch.log(torch.tensor([0.5, 1 / (1 + torch.e**2)]))
    torch.testing.assert_close(token_logps(logits, torch.tensor([1, 0])), expected)


def test_token_logps_are_float32_even_for_bfloat16_logits():
    logits = torch.randn(4, 50).bfloat16()
    logps = token_logps(logits, torch.arange(4))
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, logits.double().log_softmax(1)[range(4), range(4)].float())


def test_sequence_logps_shift_and_mask(tiny_model):
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    logps = tiny_model(ids).log_softmax(-1)[0]
    expected = logps[1, 4] + logps[3, 5]  # what stands before a token predicts it
    torch.testing.assert_close(sequence_logps(tiny_model, ids, torch.tensor([[0, 0, 1, 0, 1]]))[0], expected)


def test_one_row_per_pair_equals_two_rows(tiny_model):
    encoded = random_pairs()
    chosen, rejected = pair_logps(tiny_model, collate(encoded))
    expected = textbook(tiny_model, encoded)
    torch.testing.assert_close(torch.stack([chosen, rejected], dim=1), expected, **CLOSE)
    weights = torch.linspace(-1, 1, len(encoded))
    assert_same_gradients(
        tiny_model, (weights * (chosen - 2 * rejected)).sum(), (weights * (expected @ torch.tensor([1.0, -2.0]))).sum()
    )


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_the_head_in_chunks_equals_the_head_at_once(tiny_model, chunk):
    batch = collate(random_pairs())
    whole = torch.stack(pair_logps(tiny_model, batch, chunk=10_000))
    parts = torch.stack(pair_logps(tiny_model, batch, chunk=chunk))
    torch.testing.assert_close(parts, whole, **CLOSE)
    weights = torch.randn(whole.shape, generator=torch.Generator().manual_seed(0))
    assert_same_gradients(tiny_model, (parts * weights).sum(), (whole * weights).sum())


class LogitRows(TorchDispatchMode):
    """Notes of how many tokens logits exist at a time, whichever operation makes them."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary, self.seen = vocabulary, []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        out = function(*arguments, **(keywords or {}))
        if isinstance(out, torch.Tensor) and out.dim() and 0 <= out.shape[-1] - self.vocabulary < 64:  # with padding
            self.seen.append((function.name(), out.numel() // out.shape[-1]))
        return out


def test_logits_exist_for_answers_only_and_in_chunks(tiny_model):
    encoded = random_pairs()
    answers = sum(len(e.chosen) + len(e.rejected) for e in encoded)
    with LogitRows(tiny_model.config.vocab_size) as rows:
        chosen, rejected = pair_logps(tiny_model, collate(encoded), chunk=8)
        forward = [count for name, count in rows.seen if "mm" in name]
        (chosen - rejected).sum().backward()
        both = [count for name, count in rows.seen if "mm" in name]
    assert sum(forward) == answers
    assert sum(both) == 2 * answers - 8  # once more in the backward pass, but for the last chunk
    assert {count for name, count in rows.seen if "mm" in name or "softmax" in name} == {8}


def test_padding_and_order_change_nothing(tiny_model):
    encoded = random_pairs()
    alone = torch.cat([torch.stack(pair_logps(tiny_model, collate([e])), dim=1) for e in encoded])
    longest = EncodedPair([1] * 30, [2] * 30, [3] * 30, PreferencePair("", "", ""))
    padded = torch.stack(pair_logps(tiny_model, collate([*reversed(encoded), longest])), dim=1)
    torch.testing.assert_close(padded[:-1].flip(0), alone, **CLOSE)


def test_an_empty_answer_has_a_log_prob_of_zero_and_leaves_the_other_as_it_is(tiny_model):
    encoded = random_pairs()
    expected = torch.stack(pair_logps(tiny_model, collate(encoded)))
    for i, e in enumerate(encoded):
        encoded[i] = replace(e, **{"chosen" if i % 2 else "rejected": []})
        expected[0 if i % 2 else 1, i] = 0.0
    found = torch.stack(pair_logps(tiny_model, collate(encoded)))
    torch.testing.assert_close(found, expected, **CLOSE)
    assert ((found == 0) == (expected == 0)).all() and (found == 0).sum() == len(encoded)
    nothing = collate([replace(encoded[0], chosen=[], rejected=[])])
    assert torch.stack(pair_logps(tiny_model, nothing)).tolist() == [[0.0], [0.0]]


def test_the_padding_token_does_not_matter(tiny_model):
    batch = collate(random_pairs())
    expected = torch.stack(pair_logps(tiny_model, batch))
    batch.ids[batch.segments == -1] = 99
    assert (batch.segments == -1).any()
    assert torch.equal(torch.stack(pair_logps(tiny_model, batch)), expected)


@pytest.mark.parametrize("other", ["chosen", "rejected"])
def test_an_answer_does_not_see_the_other(tiny_model, other):
    (encoded,) = random_pairs(1)
    kept = {"chosen": 1, "rejected": 0}[other]
    changed = EncodedPair(**vars(encoded) | {other: [7, 7, 7]})
    before, after = (pair_logps(tiny_model, collate([e])) for e in (encoded, changed))
    torch.testing.assert_close(before[kept], after[kept], **CLOSE)
    assert (before[1 - kept] - after[1 - kept]).abs() > 0.1


def test_a_pair_may_be_longer_than_the_model_as_long_as_each_answer_fits(tiny_model):
    encoded = [EncodedPair([1] * 30, [2] * 34, [3] * 34, PreferencePair("", "", ""))]  # 98 tokens, 64 positions
    torch.testing.assert_close(
        torch.stack(pair_logps(tiny_model, collate(encoded)), dim=1), textbook(tiny_model, encoded), **CLOSE
    )


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_reference_logps_come_in_the_order_given(tiny_model, batch_size):
    encoded = random_pairs()
    logps = reference_logps(tiny_model, encoded, batch_size)
    assert not logps.requires_grad
    torch.testing.assert_close(logps, textbook(tiny_model, encoded).detach(), **CLOSE)


def test_reference_logps_of_nothing(tiny_model):
    assert reference_logps(tiny_model, []).shape == (0, 2)
