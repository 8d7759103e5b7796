"""Training tokens a second on a CPU: our step against PyTorch's LlamaForCausalLM with fused AdamW.

    .venv/bin/pip install -e '.[bench]'
    python -m experiments.benchmarks.train_step [--json]

Both sides take one update of the same shapes and precision (bfloat16: autocast in PyTorch) and use all cores. Each may
cut its batch into micro-batches: ours does, and of PyTorch's two ways, whole and cut alike, the faster one counts.
"""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator

import jax
import numpy as np

from experiments import quickstart
from experiments.benchmarks import common
from nca_jax import config as configs
from nca_jax import keys
from nca_jax import mesh as meshes
from nca_jax.batch import Vocab, to_batch
from nca_jax.model import transformer
from nca_jax.train.optimizer import make_optimizer
from nca_jax.train.state import init_state
from nca_jax.train.step import make_sum_loss, make_train_step

CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
SHAPES = ((1024, 128, 4, 4, 16, 256), (1024, 256, 4, 4, 16, 256), (4096, 256, 6, 8, 16, 256))
ROWS_AT_ONCE = 2  # sequences of a micro-batch on each core: what they need stays in its cache
AIM = 1.0


def ours(shape: tuple[int, ...], dtype: str, accumulate: int) -> Callable[[], object]:
    """One update on a mesh of one virtual device for each core."""
    vocab_size, width, layers, heads, batch, length = shape
    file = quickstart.get_config('arm=scratch')
    file.model.update({'layers': layers, 'width': width, 'heads': heads, 'ffn': 4 * width, 'length': length})
    file.model.update({'unroll': layers, 'dtype': dtype})
    config = configs.resolve(file)
    mesh, vocab = meshes.make_mesh(config.mesh), Vocab(vocab_size)
    optimizer = make_optimizer(config.optimizer, batch * length)
    step = make_train_step(make_sum_loss(config.model, vocab), optimizer, seed=0, dropout=False, accumulate=accumulate)
    jitted = jax.jit(step, donate_argnums=0)
    tokens = np.random.default_rng(0).integers(0, vocab_size, (batch, length + 1), np.int32)
    state = init_state(transformer.init_params(config.model, vocab, keys.key(0)), optimizer)
    state = jax.device_put(state, meshes.replicated(mesh))
    placed = jax.device_put(to_batch(tokens), meshes.batch_sharding(mesh))

    def update() -> None:
        nonlocal state
        with meshes.use(mesh):
            state, metrics = jitted(state, placed)
        jax.block_until_ready(metrics)

    return update


def pytorch(shape: tuple[int, ...], dtype: str, accumulate: int) -> Callable[[], object]:
    """The same update in eager PyTorch, with its scaled-dot-product attention."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    vocab_size, width, layers, heads, batch, length = shape
    torch.set_num_threads(CORES)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=length,
            attn_implementation='sdpa',
            use_cache=False,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=1e-4, fused=True)
    tokens = torch.randint(0, vocab_size, (batch, length + 1))
    half = torch.autocast('cpu', torch.bfloat16) if dtype == 'bfloat16' else contextlib.nullcontext()

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        for micro in tokens.chunk(accumulate):
            with half:
                logits = model(input_ids=micro[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), micro[:, 1:].flatten())
            (loss / accumulate).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return update


def rows() -> Iterator[common.Row]:
    for shape in SHAPES:
        tokens, accumulate = shape[4] * shape[5], max(1, shape[4] // (ROWS_AT_ONCE * CORES))
        for dtype in ('float32', 'bfloat16'):
            sides = {
                'ours': ours(shape, dtype, accumulate),
                'whole': pytorch(shape, dtype, 1),
                'cut': pytorch(shape, dtype, accumulate),
            }
            seconds = common.seconds_in_turn(sides, rounds=7)
            best = min(('whole', 'cut'), key=seconds.get)
            rates = tokens / seconds['ours'], tokens / seconds[best]
            name = f'train_step/{"-".join(map(str, shape))}/{dtype}'
            note = f'PyTorch with its batch {best}; aim {AIM}'
            yield common.Row(name, *rates, rates[0] / rates[1], None, 'tokens/s', note)


if __name__ == '__main__':
    missing = [name for name in ('torch', 'transformers') if importlib.util.find_spec(name) is None]
    if missing and '--help' not in sys.argv:
        sys.exit(f"error: no {missing[0]} to compare with: .venv/bin/pip install -e '.[bench]'")
    jax.config.update('jax_num_cpu_devices', CORES)
    common.main(rows(), __doc__.splitlines()[0])
