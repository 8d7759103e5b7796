"""Training tokens a second on a CPU: our step against PyTorch's LlamaForCausalLM with fused AdamW.

    .venv/bin/pip install -e '.[bench]'
    python -m experiments.benchmarks.train_step [--json]

Both sides take one update of the same shapes on all cores. Each is at its best: ours in float32 or bfloat16, and of
PyTorch's two ways, its batch whole and cut into micro-batches like ours, the faster one. Its bfloat16 is autocast.
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
from nca_jax import mesh as meshes
from nca_jax import run
from nca_jax.batch import Vocab, to_batch
from nca_jax.config import Config
from nca_jax.experiment import resolve

CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
# Vocabulary, width, layers, heads, batch, length.
SHAPES = (
    (1024, 128, 4, 4, 16, 256),
    (1024, 256, 4, 4, 16, 256),
    (4096, 256, 6, 8, 16, 256),
    (10002, 256, 6, 8, 8, 512),
)
TOKENS_AT_ONCE = 512  # of a micro-batch on each core: what they need stays in its cache
FLOOR, AIM, AIM_BFLOAT16 = 1.0, 1.3, 1.0


def configure(shape: tuple[int, ...], **changes: object) -> tuple[Config, Vocab]:
    """The quickstart's recipe at another shape, its batch cut so that each core has TOKENS_AT_ONCE; without loops."""
    vocab_size, width, layers, heads, batch, length = shape
    file = quickstart.get_config('arm=scratch')
    file.model.update({'layers': layers, 'width': width, 'heads': heads, 'ffn': 4 * width, 'length': length})
    file.model.update({'unroll': layers} | changes)
    file.train.update({'batch': batch, 'accumulate': max(1, batch * length // (TOKENS_AT_ONCE * CORES))})
    return resolve(file), Vocab(vocab_size)


def ours(config: Config, vocab: Vocab) -> Callable[[], object]:
    """One update on a mesh of one virtual device for each core."""
    mesh = meshes.make_mesh(config.mesh)
    _, init, train_step = run.make_update(config, mesh, vocab)
    shape = config.train.batch, config.model.length + 1
    tokens = np.random.default_rng(0).integers(0, vocab.size, shape, np.int32)
    placed = jax.device_put(to_batch(tokens), meshes.batch_sharding(mesh))
    state = None

    def update() -> None:
        nonlocal state
        with meshes.use(mesh):
            state, metrics = train_step(init() if state is None else state, placed)
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
        config, vocab = configure(shape)
        accumulate = config.train.accumulate
        sides = {
            'ours float32': ours(config, vocab),
            'ours bfloat16': ours(*configure(shape, dtype='bfloat16')),
            'float32 whole': pytorch(shape, 'float32', 1),
            'float32 cut': pytorch(shape, 'float32', accumulate),
            'bfloat16 whole': pytorch(shape, 'bfloat16', 1),
            'bfloat16 cut': pytorch(shape, 'bfloat16', accumulate),
        }
        rate = {name: shape[4] * shape[5] / s for name, s in common.seconds_in_turn(sides, rounds=7).items()}
        our_other, our_best = sorted(('ours float32', 'ours bfloat16'), key=rate.get)
        for dtype, floor, aim in (('float32', FLOOR, AIM), ('bfloat16', None, AIM_BFLOAT16)):
            best = max((f'{dtype} whole', f'{dtype} cut'), key=rate.get)
            name = f'train_step/{"-".join(map(str, shape))}/{dtype}'
            other = f'{our_other} {rate[our_other]:,.0f}'
            note = f'{our_best} ({other}) against PyTorch with its batch {best.split()[1]}; aim {aim}'
            yield common.Row(name, rate[our_best], rate[best], rate[our_best] / rate[best], floor, 'tokens/s', note)


if __name__ == '__main__':
    missing = [name for name in ('torch', 'transformers') if importlib.util.find_spec(name) is None]
    if missing and '--help' not in sys.argv:
        sys.exit(f"error: no {missing[0]} to compare with: .venv/bin/pip install -e '.[bench]'")
    jax.config.update('jax_num_cpu_devices', CORES)
    common.main(rows(), __doc__.splitlines()[0])
