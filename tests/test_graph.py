import math

import torch

from fq_ldm.quantization.graph import GraphModule


def test_equation_12_against_loops():
    torch.manual_seed(0)
    u, m = 5, 3
    graph = GraphModule(u)
    for parameter in graph.parameters():
        torch.nn.init.normal_(parameter)
    tokens = torch.randn(2, u, m)
    weights = graph(tokens)
    for b in range(2):
        pooled = [math.log(sum(v * v for v in token) / m + 1e-6) for token in tokens[b].tolist()]
        w, bias = graph.features.weight.tolist(), graph.features.bias.tolist()
        f = [sum(w[i][j] * pooled[j] for j in range(u)) + bias[i] for i in range(u)]
        logits = [graph.attention.weight.item() * v + graph.attention.bias.item() for v in f]
        total = sum(math.exp(v) for v in logits)
        a = [[float(i == j) for j in range(u)] for i in range(u)]
        diagonal = [[(math.exp(logits[j]) / total) * (i == j) for j in range(u)] for i in range(u)]
        c = graph.adjacency.tolist()
        mixing = [[sum(a[i][k] * diagonal[k][j] for k in range(u)) + c[i][j] for j in range(u)] for i in range(u)]
        mixed = [sum(f[i] * mixing[i][j] for i in range(u)) for j in range(u)]
        w, bias = graph.output.weight.tolist(), graph.output.bias.tolist()
        refined = [sum(w[i][j] * mixed[j] for j in range(u)) + bias[i] for i in range(u)]
        expected = [2 / (1 + math.exp(-v)) for v in refined]
        torch.testing.assert_close(weights[b].tolist(), expected, rtol=1e-4, atol=1e-5)


def test_an_untrained_module_changes_nothing():
    assert torch.equal(GraphModule(6)(torch.randn(3, 6, 4)), torch.ones(3, 6))


def test_a_silent_image_has_finite_weights():
    assert GraphModule(4)(torch.zeros(1, 4, 2)).isfinite().all()


def test_many_tokens_have_weights_that_grow_with_their_number():
    """Rank-64 matrices in place of U x U ones, and still nothing changes before training."""
    small, large = (sum(p.numel() for p in GraphModule(u).parameters()) for u in (2048, 4096))
    assert large < 2.01 * small
    graph = GraphModule(1025)
    tokens = torch.randn(2, 1025, 3)
    assert torch.equal(graph(tokens), torch.ones(2, 1025))
    for parameter in graph.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    f = graph.features(torch.log(tokens.square().mean(-1) + 1e-6))
    c = graph.adjacency.down.weight.T @ graph.adjacency.up.weight.T
    b = torch.diag_embed((graph.attention.weight.squeeze() * f + graph.attention.bias).softmax(-1))
    expected = 2 * torch.sigmoid(graph.output((f.unsqueeze(1) @ (b + c)).squeeze(1)))
    torch.testing.assert_close(graph(tokens), expected, rtol=1e-4, atol=1e-4)
