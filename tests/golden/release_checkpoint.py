"""Writes release_checkpoint.pt, a checkpoint with the keys of the release of the paper's code at a tiny size, and
release_checkpoint.npz, tokens with the logits that Hugging Face's Llama gives for these weights plus the head's bias.

    .venv/bin/pip install -r launch/oracle.lock
    .venv/bin/python tests/golden/release_checkpoint.py
"""

import pathlib

import numpy as np
import torch
import transformers

ROWS, VOCAB, WIDTH, HEADS, LAYERS, FFN, LENGTH = 48, 34, 8, 2, 2, 12, 10
HERE = pathlib.Path(__file__).parent


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn, self.mlp = torch.nn.Module(), torch.nn.Module()
        for letter in 'qkvo':
            self.self_attn.add_module(f'{letter}_proj', torch.nn.Linear(WIDTH, WIDTH, bias=False))
        for name, sizes in {'gate': (WIDTH, FFN), 'up': (WIDTH, FFN), 'down': (FFN, WIDTH)}.items():
            self.mlp.add_module(f'{name}_proj', torch.nn.Linear(*sizes, bias=False))
        self.input_layernorm, self.post_attention_layernorm = torch.nn.RMSNorm(WIDTH), torch.nn.RMSNorm(WIDTH)


class Model(torch.nn.Module):
    """The release's names; what its forward pass computes is Llama's."""

    def __init__(self):
        super().__init__()
        self.input_proj = torch.nn.Embedding(ROWS, WIDTH)
        self.layers = torch.nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = torch.nn.RMSNorm(WIDTH)
        self.output_proj = torch.nn.Linear(WIDTH, ROWS)


def main() -> None:
    torch.manual_seed(0)
    model = Model()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    sum(parameter.square().sum() for parameter in model.parameters()).backward()
    optimizer.step()
    scheduler.step()
    parts = {'model': model, 'optimizer': optimizer, 'scheduler': scheduler}
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save({**state, 'epoch': 3, 'val_loss': 6.214}, HERE / 'release_checkpoint.pt')

    config = transformers.LlamaConfig(
        vocab_size=ROWS,
        hidden_size=WIDTH,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        rms_norm_eps=1e-6,
        attn_implementation='eager',
    )
    llama = transformers.LlamaForCausalLM(config)
    names = {'input_proj.weight': 'model.embed_tokens.weight', 'output_proj.weight': 'lm_head.weight'}
    weights = {name: tensor for name, tensor in state['model'].items() if name != 'output_proj.bias'}
    llama.load_state_dict({names.get(name, f'model.{name}'): tensor for name, tensor in weights.items()})
    tokens_BxL = torch.randint(0, VOCAB, (2, LENGTH))
    with torch.no_grad():
        logits_BxLxV = llama.double()(input_ids=tokens_BxL).logits + state['model']['output_proj.bias'].double()
    about = f'transformers {transformers.__version__}, torch {torch.__version__}, float64'
    logits_BxLxV = logits_BxLxV[..., :VOCAB].numpy()
    np.savez_compressed(HERE / 'release_checkpoint.npz', tokens=tokens_BxL, logits=logits_BxLxV, about=about)


if __name__ == '__main__':
    main()
