"""The kernel of `native.draws`, compared with plain torch in fp64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ledom.model.native.draws import draw, label_logprobs


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", [3, 700, 70_001])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 1e-30])
def test_draws_invert_the_cumulative_distribution(
    vocabulary: int, temperature: float, compiled: bool
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, vocabulary) * torch.tensor([0.1, 1, 1, 3, 30, 1])[:, None]
    levels = [0.0, 0.3, 0.999999, 0.5, 0.7, -1.0]
    found = draw(logits, temperature, levels)
    if not compiled:
        assert found is None
        return
    assert found is not None
    tokens, certainties, highest = found
    exact = logits.double()
    below = (exact / temperature).softmax(-1).cumsum(-1)
    for row, (token, level) in enumerate(zip(tokens, levels, strict=True)):
        if level < 0:
            assert token == logits[row].argmax()
        else:
            assert below[row, token] > level - 1e-5
            assert token == 0 or below[row, token - 1] <= level + 1e-5
    expected = -exact.log_softmax(-1).mean(-1) - np.log(vocabulary)
    torch.testing.assert_close(torch.tensor(certainties).double(), expected, atol=1e-5, rtol=1e-5)
    assert highest == pytest.approx((logits.amax(-1) / temperature).tolist())


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_draws_from_invalid_logits_are_noticed(odd: float) -> None:
    logits = torch.zeros(2, 100)
    logits[1, 50] = odd
    found = draw(logits, 1.0, [0.5, 0.5])
    assert found is not None
    tokens, certainties, _ = found
    assert [np.isfinite(one) for one in certainties] == [True, False]
    assert tokens[0] == 50
    assert 0 <= tokens[1] < 100


@pytest.mark.parametrize("vocabulary", [3, 700, 70_001])
def test_log_probabilities_of_labels_are_right(vocabulary: int, compiled: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, vocabulary) * torch.tensor([0.1, 1, 1, 3, 30, 100])[:, None]
    labels = torch.randint(vocabulary, (6,))
    labels[1] = vocabulary - 1
    found = label_logprobs(logits, labels)
    expected = logits.double().log_softmax(-1)[torch.arange(6), labels]
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-6)


@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_log_probabilities_from_invalid_logits_are_noticed(odd: float, compiled: bool) -> None:
    logits = torch.zeros(2, 100)
    logits[1, 50] = odd
    found = label_logprobs(logits, torch.tensor([0, 0]))
    assert found[0].item() == pytest.approx(-np.log(100), abs=1e-6)
    assert not torch.isfinite(found[1])


def test_an_excluded_token_has_no_probability(compiled: bool) -> None:
    logits = torch.tensor([[0.0, -torch.inf, 0.0]]).repeat(2, 1)
    found = label_logprobs(logits, torch.tensor([0, 1]))
    assert found.tolist() == [pytest.approx(-np.log(2)), -np.inf]
