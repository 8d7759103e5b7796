"""The same model as Hugging Face's LlamaForCausalLM, out and in, and as the release of the paper's code saved it, in.

One table, TENSORS, says for all of them where each parameter goes.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from nca_jax import files, trees
from nca_jax.batch import Vocab
from nca_jax.checkpoint.graft import STACKED, VOCAB_AXIS
from nca_jax.data import tokenizer as bpe
from nca_jax.errors import UserError, check
from nca_jax.hf import torch_zip
from nca_jax.model import transformer
from nca_jax.model.config import InitConfig, ModelConfig

# Fields of a config.json, and those of a ModelConfig that say the same.
FIELDS = {
    'num_hidden_layers': 'layers',
    'hidden_size': 'width',
    'num_attention_heads': 'heads',
    'intermediate_size': 'ffn',
    'max_position_embeddings': 'length',
    'rope_theta': 'rope_theta',
    'rms_norm_eps': 'norm_eps',
    'tie_word_embeddings': 'tied',
}
# The other fields of a ModelConfig say how a model starts and runs.
SHARED = (*FIELDS.values(), 'head_bias')
# This model has no other values.
FIXED = {'hidden_act': 'silu', 'attention_bias': False, 'mlp_bias': False}
# LlamaConfig's own, for fields that a config.json may leave out.
DEFAULTS = {'max_position_embeddings': 2048, 'rope_theta': 1e4, 'rms_norm_eps': 1e-6, 'tie_word_embeddings': False}
# The dtypes that are read, as safetensors and NumPy name them. Others are quantized: their numbers aren't the weights.
DTYPES = ('F32', 'F16', 'BF16', 'float32', 'float16', 'bfloat16')
FLOATS = 'must be floats of 16 or 32 bits'

# Our path, Hugging Face's name, and how many of our first axes (of one layer) are inputs of a projection: theirs are
# (out, in), with heads and head width as one axis. 0 stands for arrays that both lay out alike.
TENSORS = (
    ('embed/table', 'model.embed_tokens.weight', 0),
    ('blocks/attn_norm/scale', 'model.layers.{}.input_layernorm.weight', 0),
    ('blocks/attn/q/kernel', 'model.layers.{}.self_attn.q_proj.weight', 1),
    ('blocks/attn/k/kernel', 'model.layers.{}.self_attn.k_proj.weight', 1),
    ('blocks/attn/v/kernel', 'model.layers.{}.self_attn.v_proj.weight', 1),
    ('blocks/attn/o/kernel', 'model.layers.{}.self_attn.o_proj.weight', 2),
    ('blocks/mlp_norm/scale', 'model.layers.{}.post_attention_layernorm.weight', 0),
    ('blocks/mlp/gate/kernel', 'model.layers.{}.mlp.gate_proj.weight', 1),
    ('blocks/mlp/up/kernel', 'model.layers.{}.mlp.up_proj.weight', 1),
    ('blocks/mlp/down/kernel', 'model.layers.{}.mlp.down_proj.weight', 1),
    ('final_norm/scale', 'model.norm.weight', 0),
    ('head/kernel', 'lm_head.weight', 1),
    ('head/bias', 'lm_head.bias', 0),
)
# Beginnings of names: the release's, and Hugging Face's. The first that fits counts.
RENAMED = {'input_proj.': 'model.embed_tokens.', 'output_proj.': 'lm_head.', '': 'model.'}

# The array of one of Hugging Face's names, and the shapes of all.
Read, Shapes = Callable[[str], np.ndarray], dict[str, tuple[int, ...]]


class WeightSource(NamedTuple):
    """A model outside, checked, but with its weights still unread."""

    model: ModelConfig
    # Rows of its tables, and how many of them are tokens, if that is known.
    rows: int
    tokens: int | None
    read: Read
    tokenizer: Tokenizer | None


def model_config(shared: Mapping[str, Any], dtype: str = 'float32', param_dtype: str = 'float32') -> ModelConfig:
    """The config of a model whose weights exist: the SHARED fields, no dropout, and what runs on every platform."""
    return ModelConfig(
        **{field: shared[field] for field in SHARED},
        dropout=0.0,
        # Nobody draws these weights.
        init=InitConfig(std=1.0, residual='flat', table_std=1.0, head='normal'),
        remat='none',
        unroll=1,
        attention='einsum',
        loss_chunks=1,
        dtype=dtype,
        param_dtype=param_dtype,
    )


def exported(params: trees.Tree, vocab: Vocab, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """Hugging Face's names and arrays, one after the other, of parameters on any device; padding is cut."""
    for name, view in _views(trees.flatten(params), vocab.size):
        yield name, np.ascontiguousarray(view, dtype)


def imported(model: ModelConfig, read: Read, vocab: Vocab, dtype: np.dtype) -> dict[str, dict[str, Any]]:
    """Our parameters of `dtype` on the default device.

    Tables get the first `vocab.size` of their rows, and zeros in the vocabulary's padding.
    """
    shapes = trees.flatten(transformer.abstract_params(model, vocab))
    arrays = {path: np.zeros(leaf.shape, dtype) for path, leaf in shapes.items()}
    # The views write into the arrays, transposed and cut as the table says.
    for name, view in _views(arrays, vocab.size):
        view[...] = read(name)[: len(view)]
    # Popped, so that a host never holds two copies of all.
    leaves = {path: jnp.asarray(arrays.pop(path)) for path in shapes}
    return flax.traverse_util.unflatten_dict(leaves, sep='/')


def tensor_shapes(model: ModelConfig, rows: int) -> Shapes:
    """Hugging Face's names and shapes, in the order of `exported`, if its tables have `rows` rows."""
    shapes = trees.flatten(transformer.abstract_params(model, Vocab(rows)))
    # Broadcast from one byte: arrays without memory.
    arrays = {path: np.broadcast_to(np.int8(0), leaf.shape) for path, leaf in shapes.items()}
    return {name: view.shape for name, view in _views(arrays, rows)}


def _views(arrays: Mapping[str, Any], rows: int) -> Iterator[tuple[str, np.ndarray]]:
    """Hugging Face's names and tensors, as views into our arrays by path; tables are cut after `rows` rows."""
    for path, name, inputs in TENSORS:
        if path in arrays:
            # Of arrays on a device this is the one copy to the host.
            array = np.asarray(arrays[path])
            for layer, ours in enumerate(array if path.startswith(STACKED) else [array]):
                view = ours.reshape(math.prod(ours.shape[:inputs]), -1).T if inputs else ours
                yield name.format(layer), view[:rows] if path in VOCAB_AXIS else view


def check_tensors(expected: Shapes, actual: Shapes, place: object) -> None:
    """Raises UserError, naming one tensor, unless names and shapes are as expected."""
    for name in sorted(expected.keys() | actual.keys()):
        wanted, given = expected.get(name, 'absent'), actual.get(name, 'missing')
        if name not in expected or wanted != given:
            # A file may use any name: it's escaped and cut, so that the message stays one line.
            raise UserError(f'{place}: tensor {repr(name)[1:-1][:100]} must be {wanted}, and is {given}')


def to_config(model: ModelConfig, vocab: Vocab, end_of_text: int | None, dtype: str) -> dict[str, Any]:
    """The config.json that LlamaForCausalLM reads, in the form of transformers 5 and in that of older ones.

    `end_of_text` is the token that begins and ends texts, if one does. Raises UserError for a head with a bias.
    """
    # Without it the exported model would compute other logits.
    if model.head_bias:
        raise UserError("head/bias: Hugging Face's LlamaForCausalLM has no place for a bias of the head")
    return {
        'architectures': ['LlamaForCausalLM'],
        'model_type': 'llama',
        'vocab_size': vocab.size,
        **{theirs: getattr(model, ours) for theirs, ours in FIELDS.items()},
        **FIXED,
        'num_key_value_heads': model.heads,
        'head_dim': model.head_width,
        'rope_parameters': {'rope_type': 'default', 'rope_theta': model.rope_theta},
        'bos_token_id': end_of_text,
        'eos_token_id': end_of_text,
        'pad_token_id': None,
        'torch_dtype': dtype,
    }


def from_config(given: Mapping[str, Any], place: object) -> tuple[ModelConfig, int]:
    """The model of a config.json, and the rows of its tables. UserError names a field that this model can't have."""
    config = DEFAULTS | given
    try:
        check(config.get('model_type') == 'llama', 'model_type', config.get('model_type'), "must be 'llama'")
        # transformers 5 writes the rotary base into rope_parameters.
        for field in ('rope_scaling', 'rope_parameters'):
            rope = config.get(field) or {}
            plain = isinstance(rope, dict) and all(rope[name] == 'default' for name in rope if name != 'rope_theta')
            check(plain, field, rope, "must be of rope_type 'default': scaled rotary positions are not read")
            config['rope_theta'] = rope.get('rope_theta', config['rope_theta'])
        hints = typing.get_type_hints(ModelConfig)
        kinds = {'vocab_size': int} | {theirs: hints[ours] for theirs, ours in FIELDS.items()}
        for theirs, kind in kinds.items():
            value = config.get(theirs)
            # JSON may write a float without a point.
            right = type(value) is kind or (kind is float and type(value) is int)
            check(right and (kind is bool or value > 0), theirs, value, f'must be a positive {kind.__name__}')
        model = model_config({ours: config[theirs] for theirs, ours in FIELDS.items()} | {'head_bias': False})
        only = {'num_key_value_heads': model.heads, 'head_dim': model.head_width, 'quantization_config': None}
        for field, value in (FIXED | only).items():
            # A field that is missing or null has LlamaConfig's default, which is this value.
            check(config.get(field) in (None, value), field, config.get(field), f'must be {value!r}')
    except UserError as error:
        raise UserError(f'{place}: {error}') from None
    return model, config['vocab_size']


def write_folder(
    folder: pathlib.Path, model: ModelConfig, vocab: Vocab, params: trees.Tree, tokenizer: Tokenizer | None, dtype: str
) -> None:
    """Writes config.json, the weights and the tokenizer. Raises UserError for a head with a bias."""
    end = None if tokenizer is None else bpe.end_of_text(tokenizer)
    contents = {'config.json': to_config(model, vocab, end, dtype)}
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
    file = folder / 'model.safetensors'
    # transformers reads a file only if its format is 'pt'. PyTorch and NumPy lay out arrays alike.
    save_file(dict(exported(params, vocab, jnp.dtype(dtype))), file, metadata={'format': 'pt'})
    # safetensors closes its files to other users.
    file.chmod(folder.stat().st_mode & 0o666)


def read_folder(folder: pathlib.Path) -> WeightSource:
    """A folder that LlamaForCausalLM.save_pretrained wrote, or export. UserError for any other."""
    config = folder / 'config.json'
    model, rows = from_config(files.read_json(config), config)
    # Views of the files: a tensor is read where it's needed, so that memory never holds all of them twice.
    pieces = {}
    # Large weights lie in several files. Each has its own table of contents, so their index isn't needed.
    for file in sorted(folder.glob('model*.safetensors')):
        try:
            with safe_open(str(file), framework='numpy') as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    if name in pieces:
                        raise UserError(f'{file}: {name} is in another file too')
                    pieces[name] = tensors.get_slice(name)
                    dtype = pieces[name].get_dtype()
                    check(dtype in DTYPES, f'{file}: dtype of {name!r}', dtype, FLOATS)
        except (SafetensorError, OSError) as error:
            raise UserError(f'{file}: not a whole safetensors file ({error})') from None
    shapes = {name: tuple(piece.get_shape()) for name, piece in pieces.items()}
    check_tensors(tensor_shapes(model, rows), shapes, folder)
    tokenizer = None
    # Folders may have none, and many published ones aren't byte-level; the weights are of use without them.
    with contextlib.suppress(UserError):
        tokenizer = bpe.load(str(folder / bpe.FILE))
    # Tables with more rows than tokens may be padded, which only the user knows.
    tokens = rows if tokenizer is None or tokenizer.get_vocab_size() == rows else None
    return WeightSource(model, rows, tokens, lambda name: pieces[name][:], tokenizer)


def read_checkpoint(file: pathlib.Path, heads: int) -> WeightSource:
    """A checkpoint of PyTorch that the release of the paper's code wrote. UserError for any other file."""
    content = torch_zip.load(file)
    named = content.get('model') if isinstance(content, dict) else None
    if not isinstance(named, dict) or not all(isinstance(tensor, torch_zip.Tensor) for tensor in named.values()):
        raise UserError(f"{file}: must hold a dict with 'model', a dict of tensors")
    tensors: dict[str, torch_zip.Tensor] = {}
    for of_release, tensor in named.items():
        name, dtype = from_release(str(of_release)), str(tensor.storage.dtype)
        check(name not in tensors, f'{file}: name', of_release, 'another tensor of the file means the same')
        check(dtype in DTYPES, f'{file}: dtype of {name!r}', dtype, FLOATS)
        tensors[name] = tensor
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    model, rows = release_config(shapes, heads, file)
    check_tensors(tensor_shapes(model, rows), shapes, file)
    # The release's tables have more rows than its vocabulary has tokens, and no file says how many.
    return WeightSource(model, rows, tokens=None, read=lambda name: tensors[name].read(), tokenizer=None)


def from_release(name: str) -> str:
    # DistributedDataParallel and torch.compile put these before every name.
    name = re.sub(r'^(module\.|_orig_mod\.)+', '', name)
    beginning = next(beginning for beginning in RENAMED if name.startswith(beginning))
    return RENAMED[beginning] + name.removeprefix(beginning)


def release_config(shapes: Shapes, heads: int, place: object) -> tuple[ModelConfig, int]:
    """The release's model of these shapes, which don't show its heads, and the rows of its tables."""
    table, gate = 'model.embed_tokens.weight', 'model.layers.0.mlp.gate_proj.weight'
    for name in (table, gate):
        check(len(shapes.get(name, ())) == 2, f'{place}: shape of {name}', shapes.get(name), 'must be a matrix')
    given = {
        'model_type': 'llama',
        'vocab_size': shapes[table][0],
        'hidden_size': shapes[table][1],
        'intermediate_size': shapes[gate][0],
        'num_hidden_layers': len({match[1] for name in shapes if (match := re.match(r'model\.layers\.(\d+)', name))}),
        'num_attention_heads': heads,
        'max_position_embeddings': 1024,
    }
    model, rows = from_config(given, place)
    # Only first stages have a bias.
    return dataclasses.replace(model, head_bias='lm_head.bias' in shapes), rows
