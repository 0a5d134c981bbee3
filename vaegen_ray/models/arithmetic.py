"""How an accelerator computes: the same for all that trains, measures or uses a model."""

import torch


def use_exact_arithmetic() -> None:
    """Make an accelerator compute as the job says: float32 without TF32's short mantissa, and repeatably.

    cuDNN would choose among algorithms that add in varying order, and a resumed run would differ in the last bits.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
