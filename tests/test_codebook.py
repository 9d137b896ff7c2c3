import math

import numpy as np
import pytest
import torch

from fq_ldm.quantization import lookup
from fq_ldm.quantization.codebook import Codebook, dependency, kmeans, perplexity, step_size, update_usage
from fq_ldm.quantization.lookup import count_entries, nearest_entries, nearest_tokens


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("weighted", [False, True])
def test_nearest_entries_against_loops(weighted):
    tokens, entries = randn(3, 5, 4), randn(7, 4, seed=1)
    weights = randn(5, 4, seed=2).exp() if weighted else None
    found = nearest_entries(tokens, entries, weights)
    for b in range(3):
        for u in range(5):
            scale = weights[u] if weighted else 1
            cost = [float((scale * (tokens[b, u] - entry) ** 2).sum()) for entry in entries]
            assert found[b, u] == min(range(7), key=cost.__getitem__)


def test_anchors_are_the_nearest_tokens():
    tokens, entries = randn(20, 4), randn(6, 4, seed=1)
    expected = tokens[torch.cdist(entries, tokens).argmin(1)]
    assert torch.equal(nearest_tokens(tokens, entries), expected)


def test_dependency_against_numpy():
    """Equations 9 and 10: the largest Pearson correlation with another entry, clamped to (0, 1]."""
    entries = randn(9, 5)
    correlation = np.corrcoef(entries.numpy().astype(np.float64))
    np.fill_diagonal(correlation, -1)
    expected = torch.tensor(correlation.max(1).clip(1e-6, 1), dtype=torch.float32)
    torch.testing.assert_close(dependency(entries), expected)


def test_entries_that_are_multiples_depend_fully_and_opposites_not_at_all():
    entry = torch.tensor([1.0, -2.0, 0.5, 0.5])
    torch.testing.assert_close(dependency(torch.stack([entry, 3 * entry + 1])), torch.ones(2))
    assert (dependency(torch.stack([entry, -entry])) == 1e-6).all()


def test_usage_and_step_size_by_hand():
    """Equations 7 and 8 with M = 2, gamma = 0.5: N = 0.5 * (0.5, 0.5) + 0.5 * (0, 1) = (0.25, 0.75)."""
    usage = update_usage(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 4.0]), decay=0.5)
    torch.testing.assert_close(usage, torch.tensor([0.25, 0.75]))
    alpha = step_size(usage, torch.tensor([0.5, 1.0]), decay=0.5)
    # exponents: -(0.25 / 0.5) * 2 * 10 / 0.5 - 0.001 = -20.001 and -0.75 * 2 * 10 / 0.5 - 0.001 = -30.001
    torch.testing.assert_close(alpha, torch.tensor([math.exp(-20.001), math.exp(-30.001)]))


def test_update_by_hand():
    """Equations 6-10 on three entries of two components, gamma = 0.9.

    The tokens (1, 0), (1, 0.5), (0.5, -1) all go to entry 0; entries 1 and 2 starve.
    """
    codebook = Codebook(3, 2, usage_decay=0.9)
    with torch.no_grad():
        codebook.entries.copy_(torch.tensor([[1.0, 0.0], [5.0, 4.0], [-4.0, 6.0]]))
        codebook.usage.copy_(torch.tensor([0.9, 0.1, 0.0]))
    tokens = torch.tensor([[[1.0, 0.0], [1.0, 0.5], [0.5, -1.0]]])
    indices = codebook.nearest(tokens)
    assert indices.tolist() == [[0, 0, 0]]
    codebook.update_(tokens, count_entries(indices, len(codebook.entries)))

    torch.testing.assert_close(codebook.usage, torch.tensor([0.91, 0.09, 0.0]))
    # Two components correlate by +-1: entries 0 and 1 fall (+1 with each other), entry 2 rises (-1 with both).
    # alpha_0 = exp(-0.91 * 3 * 10 / 0.1 - 0.001) = 0 and alpha_1 = exp(-27.001) = 2e-12: neither moves.
    # alpha_2 = exp(-0.001), towards the token nearest to (-4, 6), which is (1, 0.5): 55.25 < 61 < 69.25.
    step = math.exp(-0.001)
    moved = [-4 + step * 5, 6 - step * 5.5]
    torch.testing.assert_close(codebook.entries.data, torch.tensor([[1.0, 0.0], [5.0, 4.0], moved]))


def test_a_dead_entry_comes_back_to_life():
    codebook = Codebook(8, 4)
    tokens = randn(4, 64, 4)
    codebook.initialize_(tokens.flatten(0, 1))
    with torch.no_grad():
        codebook.entries[3] = 100.0
        codebook.usage[3] = 0.0
    for _ in range(3):
        indices = codebook.nearest(tokens)
        codebook.update_(tokens, count_entries(indices, len(codebook.entries)))
    assert (codebook.nearest(tokens) == 3).any()


def test_kmeans_converges_to_the_means_of_its_clusters():
    tokens = randn(200, 3)
    entries, counts = kmeans(tokens, 5, iterations=100)
    index = nearest_entries(tokens, entries)
    means = torch.stack([tokens[index == k].mean(0) for k in range(5)])
    torch.testing.assert_close(entries, means)
    assert torch.equal(counts, torch.bincount(index, minlength=5).float())


def test_weighted_centroid_is_the_weighted_mean():
    tokens, weights = randn(30, 2), randn(30, 2, seed=1).exp()
    entries, _ = kmeans(tokens, 1, weights)
    torch.testing.assert_close(entries[0], (weights * tokens).sum(0) / weights.sum(0))


def test_kmeans_needs_a_token_for_each_entry():
    with pytest.raises(ValueError, match="5 tokens cannot fill 6 codebook entries"):
        kmeans(randn(5, 2), 6)


def test_perplexity_closed_forms():
    assert perplexity(torch.tensor([0, 7, 0])).item() == 1
    assert perplexity(torch.tensor([3, 3, 3, 3])).item() == pytest.approx(4)
    assert perplexity(torch.tensor([2, 1, 1])).item() == pytest.approx(2**1.5)


def test_an_excluded_entry_gives_way_to_the_next_nearest():
    tokens, entries = randn(3, 5, 4), randn(7, 4, seed=1)
    order = torch.cdist(tokens, entries).argsort(-1)
    found = nearest_entries(tokens, entries, exclude=2)
    assert torch.equal(found, torch.where(order[..., 0] == 2, order[..., 1], order[..., 0]))


def test_unknown_anchors():
    with pytest.raises(ValueError, match="anchors must be one of closest, random, probabilistic, none, not nearby"):
        Codebook(4, 2, anchors="nearby")


def test_distances_in_parts_give_the_same_choice(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    tokens, entries = torch.randn(7, 9, 4, generator=generator), torch.randn(10, 4, generator=generator)
    weights = torch.rand(9, 4, generator=generator)
    choices = []
    for distances in (10**9, 50, 1):
        monkeypatch.setattr(lookup, "DISTANCES", distances)
        choices.append(
            [
                nearest_entries(tokens, entries),
                nearest_entries(tokens, entries, weights),
                nearest_entries(tokens, entries, weights, exclude=3),
                nearest_tokens(tokens.flatten(0, 1), entries),
            ]
        )
    assert not (choices[0][2] == 3).any()
    for others in choices[1:]:
        assert all(map(torch.equal, others, choices[0]))
