"""Candidate projections as torch has them."""

import numpy as np
import torch

from anchorjax.models.linear import named_leaves


def torch_candidates(params, num_layers: int) -> list[dict[str, torch.Tensor]]:
    """Weights of q, k, v and o, [outputs, inputs], by layer."""
    leaves = {name: np.asarray(x) for name, x in named_leaves(params).items() if ".candidate." in name}
    layers = []
    for number in range(num_layers):
        of_layer = {}
        for name, leaf in leaves.items():
            letter, weight = name.rpartition(".")[2][0], leaf[number]
            inputs = int(np.prod(weight.shape[: 2 if letter == "o" else 1]))
            of_layer[letter] = torch.tensor(weight.reshape(inputs, -1).T.copy())
        layers.append(of_layer)
    return layers
