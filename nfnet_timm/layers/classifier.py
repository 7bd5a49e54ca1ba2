"""The classifier, as the authors initialise it.

Source: ``fc_init`` in deepmind-research/nfnets/nfnet.py and nf_regnet.py.
"""

import torch
from torch import nn

__all__ = ["Classifier"]


class Classifier(nn.Linear):
    """Linear layer from pooled features to logits, (N, in_features) to (N, out_features), initialised as the authors'.

    Args:
        std: Standard deviation of the weight at the start.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        std: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        self.std = std
        super().__init__(in_features, out_features, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Initialise the weight as N(0, std^2) and the bias as 0."""
        nn.init.normal_(self.weight, std=self.std)
        nn.init.zeros_(self.bias)
