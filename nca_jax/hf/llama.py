"""The same model under Hugging Face's names: parameters and config of LlamaForCausalLM, out and in.

One table, TENSORS, says for both directions where each parameter goes. Nothing here reads or writes a file: theirs are
NumPy arrays by name.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from nca_jax import trees
from nca_jax.batch import Vocab
from nca_jax.errors import UserError, check

STACKED = 'blocks/'


class Row(NamedTuple):
    """Our path and axes (of one layer), their name, and how many of our first axes are inputs of a projection.

    Their projections are (out, in), with heads and head width as one axis; 0 stands for arrays that are laid out alike.
    """

    path: str
    axes: str
    name: str
    inputs: int


TENSORS = (
    Row('embed/table', 'VD', 'model.embed_tokens.weight', 0),
    Row('blocks/attn_norm/scale', 'D', 'model.layers.{}.input_layernorm.weight', 0),
    Row('blocks/attn/q/kernel', 'DHK', 'model.layers.{}.self_attn.q_proj.weight', 1),
    Row('blocks/attn/k/kernel', 'DHK', 'model.layers.{}.self_attn.k_proj.weight', 1),
    Row('blocks/attn/v/kernel', 'DHK', 'model.layers.{}.self_attn.v_proj.weight', 1),
    Row('blocks/attn/o/kernel', 'HKD', 'model.layers.{}.self_attn.o_proj.weight', 2),
    Row('blocks/mlp_norm/scale', 'D', 'model.layers.{}.post_attention_layernorm.weight', 0),
    Row('blocks/mlp/gate/kernel', 'DF', 'model.layers.{}.mlp.gate_proj.weight', 1),
    Row('blocks/mlp/up/kernel', 'DF', 'model.layers.{}.mlp.up_proj.weight', 1),
    Row('blocks/mlp/down/kernel', 'FD', 'model.layers.{}.mlp.down_proj.weight', 1),
    Row('final_norm/scale', 'D', 'model.norm.weight', 0),
    Row('head/kernel', 'DV', 'lm_head.weight', 1),
    Row('head/bias', 'V', 'lm_head.bias', 0),
)
RELEASED = {'model.embed_tokens': 'input_proj', 'lm_head': 'output_proj', 'model.': ''}  # what its code calls them

# What a config.json may leave out, and what it stands for then (LlamaConfig's own defaults).
DEFAULTS = {
    'num_key_value_heads': None,
    'head_dim': None,
    'hidden_act': 'silu',
    'attention_bias': False,
    'mlp_bias': False,
    'max_position_embeddings': 2048,
    'rms_norm_eps': 1e-6,
    'rope_theta': 1e4,
    'rope_scaling': None,
    'rope_parameters': None,
    'tie_word_embeddings': False,
    'quantization_config': None,
}


@dataclasses.dataclass(frozen=True)
class Llama:
    """What both sides say about a model. The fields are those of ModelConfig with the same names."""

    layers: int
    width: int
    heads: int
    ffn: int
    length: int
    rope_theta: float
    norm_eps: float
    tied: bool
    head_bias: bool

    def __post_init__(self):
        for field in ('layers', 'width', 'heads', 'ffn', 'length'):
            value = getattr(self, field)
            check(type(value) is int and value > 0, field, value, 'must be a positive whole number')
        for field in ('rope_theta', 'norm_eps'):
            value = getattr(self, field)
            check(type(value) in (int, float) and 0 < value < math.inf, field, value, 'must be a positive number')
        check(self.width % (2 * self.heads) == 0, 'heads', self.heads, f'must divide width {self.width} in even parts')

    @classmethod
    def of(cls, model: Mapping[str, Any]) -> 'Llama':
        """From the model block of a run's config."""
        return cls(**{field.name: model[field.name] for field in dataclasses.fields(cls)})

    @property
    def rows(self) -> tuple[Row, ...]:
        """The lines of TENSORS that this model has."""
        absent = {'head/kernel': self.tied, 'head/bias': not self.head_bias}
        return tuple(row for row in TENSORS if not absent.get(row.path))

    def shape(self, row: Row, vocab: int) -> tuple[int, ...]:
        """Of our parameter, of one layer; `vocab` is the length of the vocabulary's axis."""
        sizes = {'V': vocab, 'D': self.width, 'H': self.heads, 'K': self.width // self.heads, 'F': self.ffn}
        return tuple(sizes[axis] for axis in row.axes)

    def their_shapes(self, vocab: int) -> dict[str, tuple[int, ...]]:
        """Every tensor of Hugging Face's with its shape."""
        shapes = {}
        for row in self.rows:
            ours = self.shape(row, vocab)
            theirs = (math.prod(ours[row.inputs :]), math.prod(ours[: row.inputs])) if row.inputs else ours
            shapes |= dict.fromkeys(self.names(row), theirs)
        return shapes

    def names(self, row: Row) -> list[str]:
        """Their names of a parameter: one, or one a layer."""
        return [row.name.format(layer) for layer in range(self.layers)] if row.path.startswith(STACKED) else [row.name]


def released(name: str) -> str:
    """Hugging Face's name of a tensor as the release of the paper's code has it."""
    for theirs, short in RELEASED.items():
        if name.startswith(theirs):
            return short + name.removeprefix(theirs)
    return name


def exported(llama: Llama, params: trees.Tree, vocab: Vocab, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """Their names and arrays of `dtype`, one after the other, of parameters on any device; padding is cut."""
    leaves = trees.flatten(params)
    for row in llama.rows:
        for name, view in _views(llama, row, np.asarray(leaves[row.path])):
            yield name, np.ascontiguousarray(view[_real(row, vocab)], dtype)


def imported(
    llama: Llama, read: Callable[[str], np.ndarray], vocab: Vocab, dtype: np.dtype
) -> dict[str, dict[str, Any]]:
    """Our parameters of `dtype` on the default device, from what `read` gives for Hugging Face's names, one by one.

    Tables get the first `vocab.size` of their rows, and zeros in the vocabulary's padding.
    """
    leaves = {}
    for row in llama.rows:
        layers = (llama.layers,) if row.path.startswith(STACKED) else ()
        leaf = np.zeros(layers + llama.shape(row, vocab.padded), dtype)
        for name, view in _views(llama, row, leaf):
            view[_real(row, vocab)] = read(name)[_real(row, vocab)]
        leaves[row.path] = jnp.asarray(leaf)
    return flax.traverse_util.unflatten_dict(leaves, sep='/')


def _views(llama: Llama, row: Row, leaf: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Their names, and the pieces of our leaf that belong to them, seen in their layout."""
    for name, ours in zip(llama.names(row), leaf if row.path.startswith(STACKED) else [leaf], strict=True):
        yield name, ours.reshape(math.prod(ours.shape[: row.inputs]), -1).T if row.inputs else ours


def _real(row: Row, vocab: Vocab) -> slice:
    """Of their first axis, which is the vocabulary's if any is."""
    return slice(vocab.size) if 'V' in row.axes else slice(None)


def check_tensors(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: object) -> None:
    """Raises UserError, naming the tensors, unless exactly these are there and have these shapes."""
    for what, names in (('lacks', expected.keys() - found.keys()), ('has unexpected', found.keys() - expected.keys())):
        if names:
            shown = [repr(name)[1:-1][:100] for name in sorted(names)[:3]]  # whatever a file calls them: one line
            more = f' and {len(names) - len(shown)} more' if len(names) > len(shown) else ''
            raise UserError(f'{where}: {what} {", ".join(shown)}{more}')
    for name, shape in expected.items():
        if found[name] != shape:
            raise UserError(f'{where}: {name} has shape {found[name]}, not {shape}')


def to_config(llama: Llama, vocab: Vocab, end_of_text: int | None, dtype: str) -> dict[str, Any]:
    """The config.json that LlamaForCausalLM reads, in the form of transformers 5 and in that of older ones.

    `end_of_text` begins and ends texts; None where no token does. Raises UserError for a head with a bias.
    """
    if llama.head_bias:
        raise UserError("head/bias: Hugging Face's LlamaForCausalLM has no place for a bias of the head")
    return {
        'architectures': ['LlamaForCausalLM'],
        'model_type': 'llama',
        'vocab_size': vocab.size,
        'hidden_size': llama.width,
        'intermediate_size': llama.ffn,
        'num_hidden_layers': llama.layers,
        'num_attention_heads': llama.heads,
        'num_key_value_heads': llama.heads,
        'head_dim': llama.width // llama.heads,
        'max_position_embeddings': llama.length,
        'rms_norm_eps': llama.norm_eps,
        'rope_theta': llama.rope_theta,
        'rope_parameters': {'rope_type': 'default', 'rope_theta': llama.rope_theta},
        'hidden_act': 'silu',
        'attention_bias': False,
        'mlp_bias': False,
        'tie_word_embeddings': llama.tied,
        'bos_token_id': end_of_text,
        'eos_token_id': end_of_text,
        'pad_token_id': None,
        'torch_dtype': dtype,
    }


def from_config(given: Mapping[str, Any], where: object) -> tuple[Llama, int]:
    """The model of a config.json, and the rows of its tables. UserError names what this model can't have."""

    def demand(ok: bool, field: str, allowed: str) -> None:
        if not ok:
            raise UserError(f'{where}: {field} = {given.get(field)!r}: {allowed}')

    demand(given.get('model_type') == 'llama', 'model_type', "must be 'llama', the only architecture that is read")
    config = DEFAULTS | given
    needed = ('vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads')
    for field in (*needed, 'max_position_embeddings'):
        ok = field in config and type(config[field]) is int and config[field] > 0
        demand(ok, field, 'must be a positive whole number')
    heads, width = config['num_attention_heads'], config['hidden_size']
    demand(config['num_key_value_heads'] in (None, heads), 'num_key_value_heads', f'must be {heads}, one for each head')
    demand(config['head_dim'] in (None, width / heads), 'head_dim', f'must be {width} / {heads}')
    demand(config['hidden_act'] == 'silu', 'hidden_act', "must be 'silu'")
    for field in ('attention_bias', 'mlp_bias'):
        demand(config[field] is False, field, 'must be false: there are no biases in the layers')
    demand(
        config['quantization_config'] is None, 'quantization_config', 'must be absent: quantised weights are not read'
    )
    demand(type(config['tie_word_embeddings']) is bool, 'tie_word_embeddings', 'must be true or false')
    theta = config['rope_theta']
    for field in ('rope_scaling', 'rope_parameters'):
        allowed = "must be of rope_type 'default': scaled rotary positions are not read"
        demand(config[field] is None or isinstance(config[field], dict), field, allowed)
        plain = {'rope_type': 'default', 'type': 'default', 'rope_theta': theta}
        rope = plain | (config[field] or {})
        demand(rope == plain | {'rope_theta': rope['rope_theta']}, field, allowed)
        theta = rope['rope_theta']
    try:
        llama = Llama(
            layers=config['num_hidden_layers'],
            width=width,
            heads=heads,
            ffn=config['intermediate_size'],
            length=config['max_position_embeddings'],
            rope_theta=theta,
            norm_eps=config['rms_norm_eps'],
            tied=config['tie_word_embeddings'],
            head_bias=False,
        )
    except UserError as error:
        raise UserError(f'{where}: {error}') from None
    return llama, config['vocab_size']


def from_shapes(shapes: Mapping[str, tuple[int, ...]], heads: int, where: object) -> tuple[Llama, int]:
    """The model that tensors with the release's names and these shapes make, and the rows of its tables.

    Heads can't be seen in shapes; length, rotary base and the norms' epsilon are those of the release.
    """
    for name in ('input_proj.weight', 'layers.0.mlp.gate_proj.weight'):
        if len(shapes.get(name, ())) != 2:
            raise UserError(f'{where}: {name} must be a matrix, and {"is none" if name in shapes else "is missing"}')
    rows, width = shapes['input_proj.weight']
    layers = {found[1] for name in shapes if (found := re.match(r'layers\.(\d+)\.', name))}
    llama = Llama(
        layers=len(layers),
        width=width,
        heads=heads,
        ffn=shapes['layers.0.mlp.gate_proj.weight'][0],
        length=1024,
        rope_theta=1e4,
        norm_eps=1e-6,
        tied=False,
        head_bias=released('lm_head.bias') in shapes,
    )
    return llama, rows
