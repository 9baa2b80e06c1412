from functools import partial

import pytest
import torch

from dpo_core.kernels.attention import _in_padded_rows, attention_bias, scaled_dot_product_attention, without_padding

TOKENS = torch.arange(12) < torch.tensor([12, 5, 9])[:, None]  # (3, 12) bool, the rest is padding
UNPADDED = TOKENS.flatten().nonzero().flatten()
CAUSAL = torch.ones(12, 12, dtype=torch.bool).tril().expand(3, 1, 12, 12)


def attended(mask, dtype, heads=3, width=9, size=8):
    """Values and gradients on the same random numbers."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, heads, width, size, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
    bias = None if mask is None else attention_bias(mask, dtype)
    mixed = scaled_dot_product_attention(*parts, bias, 0.0)
    mixed.float().pow(2).sum().backward()
    return [mixed, *(part.grad for part in parts)]


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bf16_is_that_in_float32(masked):
    mask = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(1)) < 0.5
    mask = (mask.tril() | torch.eye(9, dtype=torch.bool)) if masked else None
    for low, full in zip(attended(mask, torch.bfloat16), attended(mask, torch.float32)):
        torch.testing.assert_close(low.float(), full, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("width", [1, 8, 13, 37])
def test_rows_of_the_bias_begin_at_multiples_of_eight_numbers(width):
    """Else CUDA's kernel copies the bias in each layer."""
    mask = torch.rand(2, 1, width, width, generator=torch.Generator().manual_seed(0)) < 0.5
    bias = attention_bias(mask, torch.float32)
    assert bias.stride(-1) == 1 and all(stride % 8 == 0 for stride in bias.stride()[:-1])
    assert torch.equal(bias, torch.zeros(mask.shape).masked_fill(~mask, -torch.inf))


def test_padding_left_out_changes_nothing(tiny_model):
    ids = torch.randint(97, (3, 12), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(12).expand(3, 12)
    whole = tiny_model.hidden(ids, positions, CAUSAL)[TOKENS]
    attend = without_padding(CAUSAL, UNPADDED, torch.float32)
    packed = tiny_model.hidden(ids[TOKENS], positions[TOKENS], attend=attend)
    torch.testing.assert_close(packed, whole, rtol=1e-5, atol=1e-5)


def test_padded_rows_and_row_by_row_give_the_same_values_and_gradients():
    """Which of them is taken depends on the device; both are tried on this one."""
    found = []
    row_by_row = without_padding(CAUSAL, UNPADDED, torch.float32)
    padded = partial(_in_padded_rows, bias=attention_bias(CAUSAL, torch.float32), unpadded=UNPADDED)
    for attend in (row_by_row, padded):
        generator = torch.Generator().manual_seed(0)
        parts = [torch.randn(26, 2, 8, generator=generator).requires_grad_() for _ in range(3)]
        mixed = attend(*parts, 0.0)
        mixed.pow(2).sum().backward()
        found.append([mixed, *(part.grad for part in parts)])
    assert found[0][0].shape == (26, 2, 8) and row_by_row.func is not padded.func
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
