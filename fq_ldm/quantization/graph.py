"""Graph convolutional module (GCM): weights that refine the quantized tokens (equation 12)."""

import torch
from torch import nn

DENSE_TOKENS = 1024  # up to here W, C and the convolution are U x U; beyond, memory and time would grow with U^2
RANK = 64  # of each of them beyond


class LowRankLinear(nn.Module):
    """As `nn.Linear`, with a matrix that is a product of two thin ones, of rank 64."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.down = nn.Linear(in_features, RANK, bias=False)
        self.up = nn.Linear(RANK, out_features, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)."""
        return self.up(self.down(x))


class GraphModule(nn.Module):
    """One weight per token, from the energies of all the tokens of an image (equation 12).

    The tokens are the vertices of a graph. With f the (1x1-convolved) vertex features, the refined
    features are `W f (A B + C)`, where A is the identity, `B = diag(softmax(conv1d(f)))` and C is a
    learnt adjacency; a sigmoid turns them into weights, as in AGCA, the module's origin.

    Two readings, where the paper leaves room: a vertex's feature is the log of its energy (a mean
    over a Fourier coefficient's map is zero), and the weights are `2 sigmoid(.)` with W = 0 at the
    start, so that an untrained module changes nothing.

    Only quantized tokens enter, so no unquantized information passes the codebook.

    Beyond 1,024 tokens the three U x U matrices are products of matrices of rank 64, so that weights and time grow
    with U and not with its square.

    Args:
        num_tokens: U, the number of vertices.
    """

    def __init__(self, num_tokens: int):
        super().__init__()
        dense = num_tokens <= DENSE_TOKENS
        make = nn.Linear if dense else LowRankLinear
        self.features = make(num_tokens, num_tokens)  # a 1x1 convolution of U x 1 x 1 maps
        self.attention = nn.Conv1d(1, 1, kernel_size=1)
        self.adjacency: nn.Parameter | LowRankLinear  # C, zero at the start
        if dense:
            self.adjacency = nn.Parameter(torch.zeros(num_tokens, num_tokens))
        else:
            self.adjacency = LowRankLinear(num_tokens, num_tokens, bias=False)
            nn.init.zeros_(self.adjacency.up.weight)
        self.output = make(num_tokens, num_tokens)  # W
        last = self.output.up if isinstance(self.output, LowRankLinear) else self.output
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Quantized tokens (B, U, m) -> weights (B, U) in (0, 2)."""
        energy = tokens.square().mean(-1)  # (B, U)
        f = self.features(torch.log(energy + 1e-6))
        attention = self.attention(f.unsqueeze(1)).squeeze(1).softmax(-1)  # the diagonal of B
        neighbours = f @ self.adjacency if isinstance(self.adjacency, nn.Parameter) else self.adjacency(f)
        return 2 * torch.sigmoid(self.output(f * attention + neighbours))
