"""Accelerators: what an MFU is a share of, as their makers publish it; and the names of TPU slices."""

# By the name that flags take: FLOP/s of dense bfloat16 products (half of what data sheets print with sparsity), and
# JAX's names of the device. A device is a whole chip (v4 and v5p: both of its cores, JAX's default).
CHIPS = {
    'v4': (275e12, ('TPU v4',)),
    'v5e': (197e12, ('TPU v5 lite',)),
    'v5p': (459e12, ('TPU v5',)),
    'v6e': (918e12, ('TPU v6 lite',)),
    'A100-40': (312e12, ('NVIDIA A100-SXM4-40GB', 'NVIDIA A100-PCIE-40GB')),
    'A100-80': (312e12, ('NVIDIA A100-SXM4-80GB', 'NVIDIA A100 80GB PCIe')),
    'H100': (989e12, ('NVIDIA H100 80GB HBM3',)),
    'H100 PCIe': (756e12, ('NVIDIA H100 PCIe',)),
    'H200': (989e12, ('NVIDIA H200',)),
    'B200': (2250e12, ('NVIDIA B200',)),
}
# By JAX's name of a device.
PEAKS = {device: peak for peak, devices in CHIPS.values() for device in devices}

# A slice is named as v5p-32: the chip's name there, and how many of the number make one chip (older ones count cores).
SLICES = {'v4': ('v4', 2), 'v5e': ('v5litepod', 1), 'v5p': ('v5p', 2), 'v6e': ('v6e', 1)}
