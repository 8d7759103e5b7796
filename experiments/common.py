"""What the experiment files share: words, named sizes, recipes and plans. Every knob of a run is visible here."""

import re
from typing import Any

from ml_collections import ConfigDict, config_dict

# Width, layers, heads (arXiv 2603.10055 names the last three; the others are ours).
SIZES = {
    'tiny': (64, 2, 2),
    '10m': (256, 8, 4),
    '50m': (512, 12, 8),
    '124m': (768, 12, 12),
    '400m': (1024, 24, 16),
    '600m': (1024, 36, 16),
    '1b6': (2048, 24, 32),
}

BANDS = {'20-30': (0.2, 0.3), '30-40': (0.3, 0.4), '40-50': (0.4, 0.5), '50+': (0.5, 2.0)}  # gzip, 10 colours

# What becomes of the tables at a transfer: untied heads, tied ones, and the release's, whose NCA stage has a head bias.
FRESH_TABLES = (('embed/.*', 'fresh'), ('head/.*', 'fresh'))
FRESH_TIED_TABLE = (('embed/.*', 'fresh'),)
FRESH_TABLES_DROP_BIAS = (('head/bias', 'drop'), *FRESH_TABLES)

# Whether a first stage's run had the release's head bias, which a text model has no place for.
PARENTS = {'nca': True, 'dyck': True, 'copy': True, 'noise': True, 'text': False}

# What only_X carries. reinit_X leaves the norm before X as it is: it takes the first pattern alone.
PARTS = {
    'attn': ('blocks/attn/.*', 'blocks/attn_norm/.*'),
    'mlp': ('blocks/mlp/.*', 'blocks/mlp_norm/.*'),
    'norms': ('.*norm/scale',),
}
WRITERS = {'attn': 'blocks/attn/o/kernel', 'mlp': 'blocks/mlp/down/kernel'}  # they add to the residual stream


def words(arg: str, **defaults: Any) -> ConfigDict:
    """Typed options, 'size=1b6,seed=1,smoke': a bare word is True, an unknown one an error that lists the known."""
    chosen = ConfigDict(defaults)
    for word in filter(None, arg.split(',')):
        name, _, value = word.partition('=')
        if name not in defaults:
            raise ValueError(f'unknown word {name!r} in {arg!r}; this experiment knows {", ".join(defaults)}')
        kind = type(defaults[name])
        if kind is bool and value not in ('', 'true', 'false'):
            raise ValueError(f'{name} = {value!r}: write {name}, {name}=true or {name}=false')
        try:
            chosen[name] = value in ('', 'true') if kind is bool else kind(value)
        except ValueError:
            raise ValueError(f'{name} = {value!r}: must be {kind.__name__}') from None
    return chosen.lock()


def choose(table: dict, name: str, what: str) -> Any:
    """`table[name]`, or an error that lists what there is."""
    if name not in table:
        raise ValueError(f'{what} = {name!r}: must be one of {", ".join(table)}')
    return table[name]


def is_release(recipe: str) -> bool:
    """Whether to do as the release of the paper's code does where it departs from the paper; fields override."""
    return choose({'paper': False, 'release': True}, recipe, 'recipe')


def model(size: str, *, length: int, dropout: float) -> ConfigDict:
    """The Llama of the paper at a named size. Layers are scanned and rematerialised; CPU studies unroll them."""
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
            'tied': False,
            'head_bias': False,
            'init': {'std': 0.02, 'residual': 'flat', 'table_std': 0.02, 'head': 'uniform'},
            'remat': 'full',
            'unroll': 1,
            'attention': 'einsum',
            'loss_chunks': 1,
            'dtype': 'bfloat16',
            'param_dtype': 'float32',
        }
    )


def adamw(lr: float, *, warmup: str, horizon: str, final: float = 0.0, weight_decay: float = 0.0) -> ConfigDict:
    """The paper's AdamW, cosine. `name` 'muon' changes the rule alone: at this RMS the learning rate may stay."""
    return ConfigDict(
        {
            'name': 'adamw',
            'lr': lr,
            'b1': 0.9,
            'b2': 0.999,
            'eps': 1e-8,
            'weight_decay': weight_decay,
            'decay': ('.*',),
            'clip': config_dict.placeholder(float),
            'clip_on': 'mean',
            'schedule': {'kind': 'cosine', 'warmup': warmup, 'horizon': horizon, 'final': final, 'decay': '20%'},
            'state_dtype': 'float32',
            'ema': config_dict.placeholder(float),
            'lr_scale': (),
            'frozen': (),
            'muon': {'beta': 0.95, 'steps': 5, 'adam_lr': 1.0, 'consistent_rms': 0.2},
        }
    )


def first_stage(recipe: str, stop: str = '163.84M tokens') -> tuple[ConfigDict, ConfigDict]:
    """Optimizer and loop of pre-pre-training: 163.84M tokens, which are the warm-up of a schedule ten times as long.

    `stop` at '1638.4M tokens' goes to the end of that schedule (the longer of the paper's C4 arms).
    """
    release = is_release(recipe)
    optimizer = adamw(1e-4, warmup='163.84M tokens', horizon='1638.4M tokens')
    optimizer.update({'name': 'adam', 'clip_on': 'sum' if release else 'mean'})
    keep = ('81.92M tokens', '163.84M tokens')
    return optimizer, loop(batch=32 if release else 16, stop=stop, keep=keep)


def accepted(band: str) -> dict[str, Any]:
    """The fields that a band's word sets: a key of BANDS, or 'q50-100' and such for quantiles of unfiltered rules in
    percent, which mean the same for every alphabet and measure."""
    quantiles = re.fullmatch(r'q(\d+)-(\d+)', band)
    if quantiles:
        low, high = (int(percent) / 100 for percent in quantiles.groups())
        return {'band': (low, high), 'band_by': 'quantile'}
    if band not in BANDS:
        raise ValueError(f'band = {band!r}: must be one of {", ".join(BANDS)}, or quantiles in percent like q50-100')
    return {'band': BANDS[band], 'band_by': 'score'}


def automata(recipe: str, band: str) -> ConfigDict:
    """The paper's automata: a 12 x 12 torus of 10 colours, 2 x 2 patches, 27 frames after 10 burn-in updates."""
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
    """Text by its corpus, with a given tokenizer.json or a byte-level BPE of `vocab_size` that is trained on it."""
    return ConfigDict(
        {
            'corpus': corpus,
            'path': path,
            'field': field,
            'encoding_errors': 'replace',
            'tokenizer': tokenizer,
            'vocab_size': 0 if tokenizer else vocab_size,
            'valid_share': 0.05,
            'cache': 'runs/text',
        }
    )


def loop(*, batch: int, stop: str, keep: tuple[str, ...] = (), every: str = '250 steps') -> ConfigDict:
    """How long, and how often to log, evaluate and save."""
    return ConfigDict(
        {
            'batch': batch,
            'accumulate': 1,
            'stop': stop,
            'log_every': '10 steps',
            'eval_every': every,
            'save_every': every,
            'keep': keep,
            'keep_last': 2,
        }
    )


def init_from(run: str, plan: tuple, step: int | None = None) -> ConfigDict:
    """The parent run's folder, its step (None: the newest), which of its weights ('params' or 'ema'), what of them."""
    block = ConfigDict({'run': run, 'step': config_dict.placeholder(int), 'weights': 'params', 'plan': plan})
    block.step = step
    return block


def fresh_tables(recipe: str, parent_stage: str) -> tuple:
    """The entries of a plan for a model of text that starts from a run of `parent_stage` with another vocabulary."""
    biased = choose(PARENTS, parent_stage, 'parent_stage')
    if not is_release(recipe):
        return FRESH_TIED_TABLE
    return FRESH_TABLES_DROP_BIAS if biased else FRESH_TABLES


def transfer_plan(transfer: str, writers: float, tables: tuple = FRESH_TABLES) -> tuple:
    """The named plans. Tables are never carried, for the vocabularies differ; `tables` holds their entries.

    all: every block is carried. only_X: X and its norm carried, the rest fresh (our ablation). reinit_X: X fresh
    without its norm, the rest carried (the paper's figure). X is attn, mlp or norms. `writers` scales the carried
    residual writers (attn/o, mlp/down): at full size they drown the fresh tables.
    """
    scaled = {name: ((pattern, 'carry', {'scale': writers}),) for name, pattern in WRITERS.items()}
    carried = {name: (*scaled.get(name, ()), *((p, 'carry') for p in patterns)) for name, patterns in PARTS.items()}
    rest_carried, rest_fresh = (('.*', 'carry'),), (('.*', 'fresh'),)
    plans = {'all': (*tables, *scaled['attn'], *scaled['mlp'], *rest_carried)}
    for name, patterns in PARTS.items():
        kept = [entry for other, entries in scaled.items() if other != name for entry in entries]
        plans[f'only_{name}'] = (*tables, *carried[name], *rest_fresh)
        plans[f'reinit_{name}'] = (*tables, (patterns[0], 'fresh'), *kept, *rest_carried)
    return choose(plans, transfer, 'transfer')


def experiment(**blocks: Any) -> ConfigDict:
    """A locked experiment with the fields that every run has. One mesh axis takes all devices: data parallelism.

    `profile` names the updates to trace ('10-12'), `track` where the run is shown besides TensorBoard ('wandb').
    """
    mesh = {'data': -1, 'fsdp': 1, 'tensor': 1, 'shard_optimizer': False}
    common = {'benchmark': None, 'mesh': mesh, 'profile': '', 'track': '', 'init_from': None}
    return ConfigDict({**common, **blocks}).lock()


def pre_pretraining(name: str, arm: str, stage: str, data: ConfigDict, words: ConfigDict) -> ConfigDict:
    """An experiment of the first stage, by the words size, recipe, seed and smoke: only its data differ."""
    release = is_release(words.recipe)
    llama = model(words.size, length=1024, dropout=0.1)
    llama.update({'tied': not release, 'head_bias': release})
    optimizer, train = first_stage(words.recipe)
    optimizer.name = words.optimizer or optimizer.name
    config = experiment(
        name=name,
        arm=arm,
        stage=stage,
        seed=words.seed,
        smoke=words.smoke,
        data=data,
        model=llama,
        optimizer=optimizer,
        train=train,
        eval={'batch': 32, 'batches': 16},
    )
    if words.smoke:
        shrink(config)
    return config


def shrink(config: ConfigDict) -> None:
    """`smoke`: the same code paths at a size that says nothing, in seconds on a CPU."""
    config.model.update({'layers': 2, 'width': 32, 'heads': 2, 'ffn': 64, 'length': 64, 'remat': 'full', 'unroll': 1})
    config.model.dtype = 'float32'
    config.train.update({'batch': 8, 'accumulate': 1, 'stop': '6 steps', 'keep': ()})
    config.train.update({'log_every': '1 steps', 'eval_every': '3 steps', 'save_every': '3 steps'})
    config.optimizer.schedule.update({'horizon': '6 steps', 'warmup': '2 steps'})
    config.eval.update({'batch': 8, 'batches': 2})
    if config.stage == 'nca':
        rules = min(config.data.rules_per_epoch, 48)  # one set, and one rule stays one
        config.data.update({'rules_per_epoch': rules, 'search_block': 8, 'stream_block': 8})
        side = 4 * config.data.patch  # so that three grids fit
        config.data.rule.update({'height': side, 'width': side})
    elif config.stage == 'copy':
        config.data.period = (4, 24)  # so that most of a row repeats
    elif config.stage == 'text' and not config.data.tokenizer:
        config.data.vocab_size = 300
