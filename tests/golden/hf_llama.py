"""Writes hf_llama/: the weights of llama.npz as transformers saves them, so that its logits are those of the folder.

.venv/bin/pip install -r launch/oracle.lock
.venv/bin/python tests/golden/hf_llama.py
"""

import pathlib

import numpy as np
import transformers
from llama import FFN, HEADS, LAYERS, LENGTH, VOCAB, WIDTH, hugging_face

HERE = pathlib.Path(__file__).parent


def main() -> None:
    golden = np.load(HERE / 'llama.npz')
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=LENGTH,
        rms_norm_eps=1e-6,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(hugging_face({name: golden[name] for name in golden.files if '/' in name}))
    model.save_pretrained(HERE / 'hf_llama')


if __name__ == '__main__':
    main()
