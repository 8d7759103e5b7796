"""Shared parts of the experiment files: words, sizes, config blocks with all their fields, and plans.

The rates, batches, lengths and durations of a stage stand in its own file. The dataclasses of nca_jax explain the
fields of the blocks.
"""

import re
from typing import Any

from ml_collections import ConfigDict

from experiments import smoke

# Width, layers, heads. The last three are sizes of arXiv 2603.10055, the others are ours.
SIZES = {
    'tiny': (64, 2, 2),
    '10m': (256, 8, 4),
    '50m': (512, 12, 8),
    '124m': (768, 12, 12),
    '400m': (1024, 24, 16),
    '600m': (1024, 36, 16),
    '1b6': (2048, 24, 32),
}

# Compressed over raw size of the rules that are accepted: the paper's bands for gzip and 10 colours.
BANDS = {'20-30': (0.2, 0.3), '30-40': (0.3, 0.4), '40-50': (0.4, 0.5), '50+': (0.5, 2.0)}

# A plan's entries for the tables (input embedding and output head), which a transfer between vocabularies draws fresh.
FRESH_TABLES = (('embed/.*', 'fresh'), ('head/.*', 'fresh'))
# A tied model has no head.
FRESH_TIED_TABLE = (('embed/.*', 'fresh'),)
# The first stage of the release has a head bias, a text model has none.
FRESH_TABLES_DROP_BIAS = (('head/bias', 'drop'), *FRESH_TABLES)

# Whether the release's model has a head bias after this stage.
PARENTS = {'nca': True, 'dyck': True, 'copy': True, 'noise': True, 'text': False}

# The plan for a parent with the same vocabulary: every weight is carried.
WHOLE = (('.*', 'carry'),)

# Parts that a plan may name. only_X carries all of its patterns; reinit_X draws only the first one fresh, so that the
# norm before X is carried.
PARTS = {
    'attn': ('blocks/attn/.*', 'blocks/attn_norm/.*'),
    'mlp': ('blocks/mlp/.*', 'blocks/mlp_norm/.*'),
    'norms': ('.*norm/scale',),
}
# The residual writers: these projections add to the residual stream.
WRITERS = {'attn': 'blocks/attn/o/kernel', 'mlp': 'blocks/mlp/down/kernel'}


def words(arg: str, **defaults: Any) -> ConfigDict:
    """The options in `arg`, such as 'size=1b6,seed=1,smoke', over their defaults. A bare word is True.

    A value takes the type of its default. Raises ValueError for an unknown word, with a list of the known ones.
    """
    chosen = ConfigDict(defaults)
    for word in filter(None, arg.split(',')):
        name, _, value = word.partition('=')
        if name not in defaults:
            raise ValueError(f'unknown word {name!r} in {arg!r}; this experiment knows {", ".join(defaults)}')
        kind = type(defaults[name])
        # bool('false') is True, so that truth values are read by name.
        if kind is bool and value not in ('', 'true', 'false'):
            raise ValueError(f'{name} = {value!r}: write {name}, {name}=true or {name}=false')
        try:
            chosen[name] = value in ('', 'true') if kind is bool else kind(value)
        except ValueError:
            raise ValueError(f'{name} = {value!r}: must be {kind.__name__}') from None
    return chosen.lock()


def choose(table: dict, name: str, word: str) -> Any:
    """`table[name]`. Raises ValueError that lists the allowed values of `word`."""
    if name not in table:
        raise ValueError(f'{word} = {name!r}: must be one of {", ".join(table)}')
    return table[name]


def is_release(recipe: str) -> bool:
    """Whether to follow the release of the paper's code where it departs from the paper."""
    return choose({'paper': False, 'release': True}, recipe, 'recipe')


def model(size: str, *, length: int, dropout: float, tied: bool = False, head_bias: bool = False) -> ConfigDict:
    """The Llama of the paper at a named size."""
    width, layers, heads = choose(SIZES, size, 'size')
    return ConfigDict(
        {
            'layers': layers,
            'width': width,
            'heads': heads,
            'ffn': 4 * width,
            'length': length,
            'rope_theta': 1e4,
            'norm_eps': 1e-6,
            'dropout': dropout,
            'tied': tied,
            'head_bias': head_bias,
            'init': {'std': 0.02, 'residual': 'flat', 'table_std': 0.02, 'head': 'uniform'},
            # These two save memory and compile time; quickstart.py, a small model on CPUs, is faster without them.
            'remat': 'full',
            'unroll': 1,
            'attention': 'einsum',
            'loss_chunks': 1,
            'dtype': 'bfloat16',
            'param_dtype': 'float32',
        }
    )


def optimizer(
    name: str,
    lr: float,
    *,
    warmup: str,
    horizon: str,
    final: float = 0.0,
    b2: float = 0.999,
    weight_decay: float = 0.0,
    clip: float | None = None,
    clip_on: str = 'mean',
) -> ConfigDict:
    """The optimizer `name` (adamw, adam or muon) with the paper's cosine schedule."""
    return ConfigDict(
        {
            'name': name,
            'lr': lr,
            'b1': 0.9,
            'b2': b2,
            'eps': 1e-8,
            'weight_decay': weight_decay,
            'decay': ('.*',),
            'clip': clip,
            'clip_on': clip_on,
            'schedule': {'kind': 'cosine', 'warmup': warmup, 'horizon': horizon, 'final': final, 'decay': '20%'},
            'state_dtype': 'float32',
            'ema': None,
            'lr_scale': (),
            'frozen': (),
            # An update of RMS 0.2 is as large as Adam's, so that muon keeps the learning rate.
            'muon': {'beta': 0.95, 'steps': 5, 'adam_lr': 1.0, 'consistent_rms': 0.2},
        }
    )


def accepted(band: str) -> dict[str, Any]:
    """The fields for a band: a key of BANDS, or quantiles of unfiltered rules in percent, such as 'q50-100'.

    Quantiles mean the same for every alphabet and measure.
    """
    quantiles = re.fullmatch(r'q(\d+)-(\d+)', band)
    if quantiles:
        low, high = (int(percent) / 100 for percent in quantiles.groups())
        return {'band': (low, high), 'band_by': 'quantile'}
    if band not in BANDS:
        raise ValueError(f'band = {band!r}: must be one of {", ".join(BANDS)}, or quantiles in percent like q50-100')
    return {'band': BANDS[band], 'band_by': 'score'}


def automata(recipe: str, band: str) -> ConfigDict:
    """The paper's automata: a 12 x 12 torus of 10 colours, 2 x 2 patches, the first frame after 10 updates."""
    release = is_release(recipe)
    return ConfigDict(
        {
            'rule': {
                'family': 'random',
                'height': 12,
                'width': 12,
                'colours': 10,
                'hidden': 4,
                'features': 16,
                'padding': 'channel_wrap' if release else 'spatial',
                'identity_bias': 0.0,
                'temperature': 1e-4 if release else 1e-3,
                'start': 'softmax' if release else 'uniform',
                'sampler': 'inverse_cdf',
                'perceive': 'auto',
            },
            'burn_in': 10,
            'stride': 1,
            'patch': 2,
            'complexity': {'measure': 'gzip', 'frames': 10, 'bytes_per_token': 4, 'level': 9},
            **accepted(band),
            'band_sample': 4096,
            'rules_per_epoch': 16_000,
            'trajectories_per_rule': 1,
            'fresh_rules': not release,
            'held_out': 'rules',
            'shuffle': 'none',
            'mask_grids': 1,
            'candidates_per_rule': 200,
            'search_block': 64,
            'stream_block': 16,
        }
    )


def text(corpus: str, *, vocab_size: int, path: str = '', field: str = '', tokenizer: str = '') -> ConfigDict:
    """A corpus, read with the file `tokenizer` or else with a byte-level BPE of `vocab_size` trained on it."""
    return ConfigDict(
        {
            'corpus': corpus,
            'path': path,
            'field': field,
            'tokenizer': tokenizer,
            # A given tokenizer has its own size.
            'vocab_size': 0 if tokenizer else vocab_size,
            'valid_share': 0.05,
            'cache': 'runs/text',
        }
    )


def loop(
    *, batch: int, stop: str, accumulate: int = 1, keep: tuple[str, ...] = (), every: str = '250 steps'
) -> ConfigDict:
    """How long a run trains, and how often it logs, evaluates and saves."""
    return ConfigDict(
        {
            'batch': batch,
            'accumulate': accumulate,
            'stop': stop,
            'log_every': '10 steps',
            'eval_every': every,
            'save_every': every,
            'keep': keep,
            'keep_last': 2,
        }
    )


def init_from(run: str, plan: tuple) -> ConfigDict | None:
    """A start from the newest checkpoint in the folder `run`; None, a start from scratch, if `run` is ''."""
    if not run:
        return None
    # --config.init_from.step=N takes an older checkpoint.
    return ConfigDict({'run': run, 'step': None, 'weights': 'params', 'plan': plan})


def fresh_tables(recipe: str, parent_stage: str) -> tuple:
    """A plan's entries for the tables of a text model whose parent has another vocabulary."""
    biased = choose(PARENTS, parent_stage, 'parent_stage')
    # The paper ties its tables, the release doesn't.
    if not is_release(recipe):
        return FRESH_TIED_TABLE
    return FRESH_TABLES_DROP_BIAS if biased else FRESH_TABLES


def transfer_plan(transfer: str, writers: float, tables: tuple = FRESH_TABLES) -> tuple:
    """A named plan: which blocks a model takes from its parent. X is attn, mlp or norms.

    - all: every block is carried.
    - only_X: X and its norm are carried, the rest is fresh (our ablation).
    - reinit_X: X is fresh, the rest and X's norm are carried (the paper's figure).

    `writers` multiplies the carried residual writers, which drown fresh tables at full size. `tables` comes first.
    """
    # The first entry that matches a leaf decides: narrow patterns stand before wide ones.
    scaled = {name: ((pattern, 'carry', {'scale': writers}),) for name, pattern in WRITERS.items()}
    carried = {name: (*scaled.get(name, ()), *((p, 'carry') for p in patterns)) for name, patterns in PARTS.items()}
    rest_carried, rest_fresh = (('.*', 'carry'),), (('.*', 'fresh'),)
    plans = {'all': (*tables, *scaled['attn'], *scaled['mlp'], *rest_carried)}
    for name, patterns in PARTS.items():
        # An entry that matches nothing is an error, so that a fresh part's writer gets none.
        kept = [entry for other, entries in scaled.items() if other != name for entry in entries]
        plans[f'only_{name}'] = (*tables, *carried[name], *rest_fresh)
        plans[f'reinit_{name}'] = (*tables, (patterns[0], 'fresh'), *kept, *rest_carried)
    return choose(plans, transfer, 'transfer')


def experiment(words: ConfigDict, **blocks: Any) -> ConfigDict:
    """A locked experiment: `blocks`, the words seed and smoke, and defaults of the fields that seldom change."""
    common = {
        'seed': words.seed,
        'smoke': words.smoke,
        # Problems that the model answers at every evaluation.
        'benchmark': None,
        # One axis takes all devices: data parallelism.
        'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1, 'shard_optimizer': False},
        # Updates to trace, such as '10-12'.
        'profile': '',
        # 'wandb' shows the run there too.
        'track': '',
        # None starts from scratch.
        'init_from': None,
    }
    config = ConfigDict({**common, **blocks}).lock()
    if words.smoke:
        smoke.shrink(config)
    return config
