"""Writes llama.npz: the weights of a tiny Llama, tokens, and the logits of Hugging Face's LlamaForCausalLM for them.

    .venv/bin/pip install -e '.[bench]'
    python tests/golden/llama.py

Weights have our paths and layouts; the transposes below are what Hugging Face's layout differs by.
"""

import pathlib

import numpy as np
import torch
import transformers

VOCAB, WIDTH, HEADS, LAYERS, FFN, LENGTH = 40, 16, 2, 2, 24, 10
SHAPES = {
    'embed/table': (VOCAB, WIDTH),
    'head/kernel': (WIDTH, VOCAB),
    'final_norm/scale': (WIDTH,),
    'blocks/attn_norm/scale': (LAYERS, WIDTH),
    'blocks/mlp_norm/scale': (LAYERS, WIDTH),
    **{f'blocks/attn/{name}/kernel': (LAYERS, WIDTH, HEADS, WIDTH // HEADS) for name in 'qkv'},
    'blocks/attn/o/kernel': (LAYERS, HEADS, WIDTH // HEADS, WIDTH),
    'blocks/mlp/gate/kernel': (LAYERS, WIDTH, FFN),
    'blocks/mlp/up/kernel': (LAYERS, WIDTH, FFN),
    'blocks/mlp/down/kernel': (LAYERS, FFN, WIDTH),
}


def hugging_face(weights: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The same weights under Hugging Face's names: their matrices are (out, in), with the heads in one axis."""
    state = {'model.embed_tokens.weight': weights['embed/table'], 'model.norm.weight': weights['final_norm/scale']}
    state['lm_head.weight'] = weights['head/kernel'].T
    for layer in range(LAYERS):
        block = {path.removeprefix('blocks/'): leaf[layer] for path, leaf in weights.items() if 'blocks' in path}
        name = f'model.layers.{layer}.'
        state[f'{name}input_layernorm.weight'] = block['attn_norm/scale']
        state[f'{name}post_attention_layernorm.weight'] = block['mlp_norm/scale']
        for letter in 'qkv':
            state[f'{name}self_attn.{letter}_proj.weight'] = block[f'attn/{letter}/kernel'].reshape(WIDTH, WIDTH).T
        state[f'{name}self_attn.o_proj.weight'] = block['attn/o/kernel'].reshape(WIDTH, WIDTH).T
        for matrix in ('gate', 'up', 'down'):
            state[f'{name}mlp.{matrix}_proj.weight'] = block[f'mlp/{matrix}/kernel'].T
    return {path: torch.tensor(np.ascontiguousarray(leaf)) for path, leaf in state.items()}


def main() -> None:
    rng = np.random.default_rng(0)
    weights = {path: rng.normal(0, 0.5, shape).astype(np.float32) for path, shape in SHAPES.items()}
    tokens_BxL = rng.integers(0, VOCAB, (2, LENGTH))
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=LENGTH,
        rms_norm_eps=1e-6,
        rope_theta=1e4,
        attn_implementation='eager',
    )
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(hugging_face(weights))
    with torch.no_grad():
        logits_BxLxV = model.double()(input_ids=torch.tensor(tokens_BxL)).logits.numpy()
    about = f'transformers {transformers.__version__}, torch {torch.__version__}, float64'
    np.savez_compressed(
        pathlib.Path(__file__).with_name('llama.npz'), tokens=tokens_BxL, logits=logits_BxLxV, about=about, **weights
    )


if __name__ == '__main__':
    main()
