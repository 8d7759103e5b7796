"""What an MFU is a share of: the chips' peaks, as their makers publish them; and the names of TPU slices."""

# FLOP/s of dense bfloat16 products: half of what data sheets print with sparsity.
TPUS = {'v4': 275e12, 'v5e': 197e12, 'v5p': 459e12, 'v6e': 918e12}
GPUS = {
    'A100-40': 312e12,
    'A100-80': 312e12,
    'H100': 989e12,
    'H100 PCIe': 756e12,
    'H200': 989e12,
    'B200': 2250e12,
}

# JAX's name of a device: its peak. A device is a whole chip (v4 and v5p: both of its cores, JAX's default).
PEAKS = {
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

# A slice is named as v5p-32: the chip's name there, and how many of the number make one chip (older ones count cores).
SLICES = {'v4': ('v4', 2), 'v5e': ('v5litepod', 1), 'v5p': ('v5p', 2), 'v6e': ('v6e', 1)}
