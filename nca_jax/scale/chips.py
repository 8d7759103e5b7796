"""What the chips can do, as their makers publish it: for MFU and for estimates.

Peak FLOP/s are of dense bfloat16 products: half of what data sheets print with sparsity. `link` is what one direction
of one inter-chip link of a TPU carries, in bytes a second. Google's pages name a tenth more (both directions of all
links, over their number); what programs get is in https://jax-ml.github.io/scaling-book.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak FLOP/s in bfloat16, and of a TPU the bytes a second of a link."""

    flops: float
    link: float = 0.0


TPUS = {
    'v4': Chip(275e12, 45e9),
    'v5e': Chip(197e12, 45e9),
    'v5p': Chip(459e12, 90e9),
    'v6e': Chip(918e12, 90e9),
}
GPUS = {
    'A100-40': Chip(312e12),
    'A100-80': Chip(312e12),
    'H100': Chip(989e12),
    'H100 PCIe': Chip(756e12),
    'H200': Chip(989e12),
    'B200': Chip(2250e12),
}

# The names that JAX gives to devices. A device is a whole chip (v4 and v5p: both of its cores, JAX's default).
KINDS = {
    'TPU v4': TPUS['v4'],
    'TPU v5 lite': TPUS['v5e'],
    'TPU v5': TPUS['v5p'],
    'TPU v6 lite': TPUS['v6e'],
    'NVIDIA A100-SXM4-40GB': GPUS['A100-40'],
    'NVIDIA A100-PCIE-40GB': GPUS['A100-40'],
    'NVIDIA A100-SXM4-80GB': GPUS['A100-80'],
    'NVIDIA A100 80GB PCIe': GPUS['A100-80'],
    'NVIDIA H100 80GB HBM3': GPUS['H100'],
    'NVIDIA H100 PCIe': GPUS['H100 PCIe'],
    'NVIDIA H200': GPUS['H200'],
    'NVIDIA B200': GPUS['B200'],
}
