"""Graph convolutional module (GCM): weights that refine the quantized tokens (equation 12)."""

import torch
from torch import nn

DENSE_TOKENS = 1024  # up to here W, C and the convolution are U x U; beyond, memory and time would grow with U^2
RANK = 64  # of each of them beyond


class LowRankLinear(nn.Module):
    """A linear map of `size` numbers to as many whose matrix is a product of two thin ones.

    Args:
        size: U.
        bias: add a bias.
    """

    def __init__(self, size: int, bias: bool = True):
        super().__init__()
        self.down = nn.Linear(size, RANK, bias=False)
        self.up = nn.Linear(RANK, size, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., U) -> (..., U)."""
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
        self.attention = nn.Conv1d(1, 1, kernel_size=1)
        if num_tokens <= DENSE_TOKENS:
            self.features = nn.Linear(num_tokens, num_tokens)  # a 1x1 convolution of U x 1 x 1 maps
            self.adjacency = nn.Parameter(torch.zeros(num_tokens, num_tokens))  # C
            self.output = nn.Linear(num_tokens, num_tokens)  # W
            last = self.output
        else:
            self.features = LowRankLinear(num_tokens)
            self.adjacency = LowRankLinear(num_tokens, bias=False)
            self.output = LowRankLinear(num_tokens)
            nn.init.zeros_(self.adjacency.up.weight)
            last = self.output.up
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Quantized tokens (B, U, m) -> weights (B, U) in (0, 2)."""
        energy = tokens.square().mean(-1)  # (B, U)
        f = self.features(torch.log(energy + 1e-6))
        attention = self.attention(f.unsqueeze(1)).squeeze(1).softmax(-1)  # the diagonal of B
        dense = isinstance(self.adjacency, nn.Parameter)
        neighbours = f @ self.adjacency if dense else self.adjacency(f)
        return 2 * torch.sigmoid(self.output(f * attention + neighbours))
