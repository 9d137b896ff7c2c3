"""Graph convolutional module (GCM): weights that refine the quantized tokens (equation 12)."""

import torch
from torch import nn


class GraphModule(nn.Module):
    """One weight per token, from the energies of all the tokens of an image (equation 12).

    The tokens are the vertices of a graph. With f the (1x1-convolved) vertex features, the refined
    features are `W f (A B + C)`, where A is the identity, `B = diag(softmax(conv1d(f)))` and C is a
    learnt adjacency; a sigmoid turns them into weights, as in AGCA, the module's origin.

    Two readings, where the paper leaves room: a vertex's feature is the log of its energy (a mean
    over a Fourier coefficient's map is zero), and the weights are `2 sigmoid(.)` with W = 0 at the
    start, so that an untrained module changes nothing.

    Only quantized tokens enter, so no unquantized information passes the codebook.

    Args:
        num_tokens: U, the number of vertices.
    """

    def __init__(self, num_tokens: int):
        super().__init__()
        self.features = nn.Linear(num_tokens, num_tokens)  # a 1x1 convolution of U x 1 x 1 maps
        self.attention = nn.Conv1d(1, 1, kernel_size=1)
        self.adjacency = nn.Parameter(torch.zeros(num_tokens, num_tokens))  # C
        self.output = nn.Linear(num_tokens, num_tokens)  # W
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Quantized tokens (B, U, m) -> weights (B, U) in (0, 2)."""
        energy = tokens.square().mean(-1)  # (B, U)
        f = self.features(torch.log(energy + 1e-6))
        attention = self.attention(f.unsqueeze(1)).squeeze(1).softmax(-1)  # the diagonal of B
        return 2 * torch.sigmoid(self.output(f * attention + f @ self.adjacency))
