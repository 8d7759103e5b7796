"""Sampled tokens a second on a CPU: our decoder against transformers' generate with the same weights and settings.

    .venv/bin/pip install -e '.[bench]'
    python -m experiments.benchmarks.decode [--json]

64 answers of 128 tokens to each of 16 prompts of 40 to 200 tokens, float32, temperature 0.6, top_p 0.95, the `10m` size
with a vocabulary of 1,024. transformers answers two of the prompts, of 82 and 168 tokens: in batches of several sizes,
of which the fastest counts, and one answer at a time. The last row has answers of 8 to 128 tokens, and our decoder on
both sides: its batch refilled, or begun anew when its longest row has ended.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from experiments import common as experiment
from experiments.benchmarks import common
from nca_jax import mesh as meshes
from nca_jax.batch import Vocab
from nca_jax.decode.decoder import DecodeConfig, Prompt, make_decoder
from nca_jax.decode.sampling import Sampling, make_stops
from nca_jax.hf import llama as hf
from nca_jax.model import transformer
from nca_jax.model.config import InitConfig, ModelConfig

CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
VOCAB = Vocab(1024)
SAMPLING = Sampling(temperature=0.6, top_p=0.95, top_k=0)
ANSWERS, LONGEST, SHORTEST = 64, 128, 8
ROWS = 256
THEIR_ROWS = (16, 64, 128)
EVERY = 8  # of the prompts is theirs
ALONE = 4  # answers, one at a time
FLOOR, AIM, FLOOR_ALONE, AIM_ALONE = 2.0, 5.0, 10.0, 20.0


def model() -> ModelConfig:
    file = experiment.model('10m', length=1024, dropout=0.0)
    file.dtype = 'float32'
    values = file.to_dict()
    return ModelConfig(**values | {'init': InitConfig(**values['init'])})


def prompts() -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(1, VOCAB.size, length) for length in np.linspace(40, 200, 16).astype(int)]


def asked(limits_QxS: np.ndarray) -> list[Prompt]:
    return [
        Prompt(tokens, number, range(len(limits_S)), limits_S.tolist())
        for number, (tokens, limits_S) in enumerate(zip(prompts(), limits_QxS, strict=True))
    ]


def ours(params: dict) -> Callable[[Sequence[Prompt]], int]:
    """`run(prompts)` -> tokens written."""
    mesh = meshes.make_mesh(meshes.MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    stops = make_stops((), (), [b'.'] * VOCAB.size)
    decode = make_decoder(model(), VOCAB, mesh, DecodeConfig(rows=ROWS, share=8, chunk=32), SAMPLING, stops)
    return lambda wanted: sum(len(answer.tokens) for answer in decode(params, wanted, 0))


def theirs(params: dict) -> Callable[[Sequence[np.ndarray], int], None]:
    """`generate(prompt of each row, rows at a time)` with the same weights in PyTorch."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(CORES)
    twin = LlamaForCausalLM(LlamaConfig(**hf.to_config(model(), VOCAB, None, 'float32'), attn_implementation='sdpa'))
    weights = hf.exported(params, VOCAB, np.dtype('float32'))
    twin.load_state_dict({name: torch.from_numpy(np.array(tensor)) for name, tensor in weights})
    twin.eval()

    def generate(each: Sequence[np.ndarray], rows: int) -> None:
        for start in range(0, len(each), rows):
            part = each[start : start + rows]
            width = max(map(len, part))
            tokens = np.stack([np.pad(prompt, (width - len(prompt), 0)) for prompt in part])
            mask = np.stack([np.arange(width) >= width - len(prompt) for prompt in part])
            with torch.inference_mode():
                written = twin.generate(
                    torch.from_numpy(tokens),
                    attention_mask=torch.from_numpy(mask.astype(np.int64)),
                    do_sample=True,
                    temperature=SAMPLING.temperature,
                    top_p=SAMPLING.top_p,
                    top_k=0,
                    max_new_tokens=LONGEST,
                    min_new_tokens=LONGEST,
                    pad_token_id=0,
                )
            assert written.shape == (len(part), width + LONGEST)

    return generate


def rows() -> Iterator[common.Row]:
    params = transformer.init_params(model(), VOCAB, jax.random.key(0))
    run = ours(params)
    yield from against_transformers(params, run)
    limits_QxS = np.random.default_rng(1).integers(SHORTEST, LONGEST + 1, (16, ANSWERS))
    varied, together = asked(limits_QxS), ROWS // ANSWERS
    parts = [varied[start : start + together] for start in range(0, len(varied), together)]
    yield common.throughput_row(
        'decode/refilled/float32',
        lambda: run(varied),
        lambda: [run(part) for part in parts],
        amount=int(limits_QxS.sum()),
        unit='tokens/s',
        floor=None,
        note=f'answers of {SHORTEST} to {LONGEST} tokens, {ROWS} rows; against a batch that waits for its longest row',
        rounds=3,
    )


def against_transformers(params: dict, run: Callable[[Sequence[Prompt]], int]) -> Iterator[common.Row]:
    generate, everything = theirs(params), asked(np.full((16, ANSWERS), LONGEST))
    each = [prompt for prompt in prompts()[EVERY // 2 :: EVERY] for _ in range(ANSWERS)]
    sizes = {rows: lambda rows=rows: generate(each, rows) for rows in THEIR_ROWS}
    first = common.seconds_in_turn(sizes, rounds=1)
    best = min(first, key=first.get)
    alone = prompts()[len(prompts()) // 2]
    sides = {
        'ours': lambda: run(everything),
        'best': sizes[best],
        'alone': lambda: generate([alone] * ALONE, 1),
    }
    amount = {'ours': 16 * ANSWERS * LONGEST, 'best': len(each) * LONGEST, 'alone': ALONE * LONGEST}
    rate = {side: amount[side] / s for side, s in common.seconds_in_turn(sides, rounds=3).items()}
    tried = ', '.join(f'{rows}: {len(each) * LONGEST / s:,.0f}' for rows, s in first.items())
    for side, floor, note in (
        ('best', FLOOR, f'its batch of {best} (once each, {tried}); aim {AIM:g}'),
        ('alone', FLOOR_ALONE, f'one answer at a time; aim {AIM_ALONE:g}'),
    ):
        ratio = rate['ours'] / rate[side]
        yield common.Row(f'decode/{side}/float32', rate['ours'], rate[side], ratio, floor, 'tokens/s', note)


if __name__ == '__main__':
    missing = [name for name in ('torch', 'transformers') if importlib.util.find_spec(name) is None]
    if missing and '--help' not in sys.argv:
        sys.exit(f"error: no {missing[0]} to compare with: .venv/bin/pip install -e '.[bench]'")
    common.main(rows(), __doc__.splitlines()[0])
