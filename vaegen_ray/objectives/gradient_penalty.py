"""Zero-centred gradient penalties."""

import torch
from torch import Tensor


def squared_gradient_norm(logits_B: Tensor, images_BCHW: Tensor) -> Tensor:
    """Mean over images of ||d logit / d image||^2, differentiable again (Mescheder et al. 2018, eq. 9).

    R1 is gamma/2 times this at real images, R2 at generated ones. ``images_BCHW`` must require gradients and
    have led to ``logits_B``. An image's logit is the mean of its patches' where the discriminator judges patches.
    """
    logits_B = logits_B if logits_B.dim() == 1 else logits_B.mean(1)
    (gradient_BCHW,) = torch.autograd.grad(logits_B.sum(), images_BCHW, create_graph=True)
    return gradient_BCHW.square().flatten(1).sum(1).mean()
