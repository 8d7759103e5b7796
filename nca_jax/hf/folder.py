"""Hugging Face folders of a LlamaForCausalLM, out and in: config.json, weights as safetensors, and a tokenizer."""

import json
import pathlib

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from nca_jax import files, trees
from nca_jax.batch import Vocab
from nca_jax.data import tokenizer as bpe
from nca_jax.errors import UserError, check
from nca_jax.hf import llama
from nca_jax.model.config import ModelConfig

# safetensors' names of the dtypes that are read.
DTYPES = ('F32', 'F16', 'BF16')


def write_config(
    folder: pathlib.Path, model: ModelConfig, vocab: Vocab, tokenizer: Tokenizer | None, dtype: str
) -> None:
    """Writes everything but the weights. Raises UserError for a head with a bias."""
    end = None if tokenizer is None else bpe.end_of_text(tokenizer)
    contents = {'config.json': llama.to_config(model, vocab, end, dtype)}
    if tokenizer is not None:
        tokenizer.save(str(folder / bpe.FILE))
        contents['tokenizer_config.json'] = {
            'tokenizer_class': 'PreTrainedTokenizerFast',
            'model_max_length': model.length,
            'model_input_names': ['input_ids', 'attention_mask'],
            'clean_up_tokenization_spaces': False,
            **dict.fromkeys(('bos_token', 'eos_token', 'unk_token'), bpe.END_OF_TEXT),
        }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2) + '\n')


def write_weights(folder: pathlib.Path, params: trees.Tree, vocab: Vocab, dtype: np.dtype) -> None:
    file = folder / 'model.safetensors'
    # transformers reads a file only if its format is 'pt'. PyTorch and NumPy lay out arrays alike.
    save_file(dict(llama.exported(params, vocab, dtype)), file, metadata={'format': 'pt'})
    # safetensors closes its files to other users.
    file.chmod(folder.stat().st_mode & 0o666)


def read(folder: pathlib.Path) -> llama.WeightSource:
    """A folder that LlamaForCausalLM.save_pretrained wrote, or export. UserError for any other."""
    config = folder / 'config.json'
    model, rows = llama.from_config(files.read_json(config), config)
    places, shapes = {}, {}
    # Large weights lie in several files. Each has its own table of contents, so their index isn't needed.
    for file in sorted(folder.glob('model*.safetensors')):
        try:
            with safe_open(str(file), framework='numpy') as tensors:
                pieces = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f'{file}: not a whole safetensors file ({error})') from None
        for name, piece in pieces.items():
            dtype = piece.get_dtype()
            # Others are quantized: their numbers aren't the weights.
            check(dtype in DTYPES, f'{file}: dtype of {name}', dtype, f'must be {", ".join(DTYPES)}')
            if name in places:
                raise UserError(f'{file}: {name} is in {places[name].name} too')
            places[name], shapes[name] = file, tuple(piece.get_shape())
    llama.check_tensors(llama.tensor_shapes(model, rows), shapes, folder)

    # One at a time, so that memory never holds all of them twice.
    def read_tensor(name: str) -> np.ndarray:
        with safe_open(str(places[name]), framework='numpy') as tensors:
            return tensors.get_tensor(name)

    tokenizer, tokens = None, rows
    if (folder / bpe.FILE).exists():
        try:
            tokenizer = bpe.load(str(folder / bpe.FILE))
            tokens = tokenizer.get_vocab_size()
        except UserError:
            # Many published tokenizers aren't byte-level; the weights are of use without them.
            pass
    # Tables with more rows than tokens may be padded, which only the user knows.
    known = tokens if tokens == rows else None
    return llama.WeightSource('Hugging Face folder', model, rows, known, read_tensor, tokenizer)
