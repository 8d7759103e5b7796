"""Stage 2, language modelling from scratch or from a first stage's run (arXiv 2603.10055, section on pre-training).

    python -m nca_jax train --workdir=runs/owt-nca-1b6 \
        --config=experiments/language.py:size=1b6,corpus=openwebtext,path=DIR,tokenizer=FILE,parent=runs/nca-1b6

`path` is your copy of the published files and `tokenizer` GPT-2's tokenizer.json. Your own text trains with
corpus=text_files,path=DIR, a dataset of TFDS with corpus=tfds:NAME,path=DIR,field=FEATURE.

Published final perplexities at 1b6, scratch against automata: openwebtext 14.66 / 13.82, openwebmath 8.11 / 7.70,
codeparrot 1.92 / 1.84.

corpus=c4 is the paper's control for the first stage, text in place of automata: tokens=164M, or 1.6B to the end of the
schedule (the arms C4 164M and C4 1.6B). Its recipe wasn't released: it has the automata stage's. A run that starts from
it has parent_stage=text; from one of experiments/baselines.py, parent_stage=dyck, copy or noise.
"""

from ml_collections import ConfigDict

from experiments import common

# Corpus: length, peak learning rate, warm-up, weight decay (the warm-up of openwebmath isn't published).
STAGES = {
    'openwebtext': ('17234 steps', 5e-4, '10%', 1e-4),
    'openwebmath': ('8000 steps', 5e-4, '10%', 0.0),
    'codeparrot': ('24000 steps', 2e-4, '750 steps', 0.0),
    'python_stdlib': ('20M tokens', 1e-3, '10%', 1e-4),
    'python_docs': ('20M tokens', 1e-3, '10%', 1e-4),
    'text_files': ('20M tokens', 1e-3, '10%', 1e-4),
    'tfds': ('20M tokens', 1e-3, '10%', 1e-4),
    'c4': None,  # a first stage: see common.first_stage
}
C4_TOKENS = {'164M': '163.84M tokens', '1.6B': '1638.4M tokens'}


def get_config(arg: str = '') -> ConfigDict:
    """Words: size, corpus, path, field, tokenizer, tokens (164M or 1.6B, of c4), parent (the folder of a run; none is
    scratch), parent_stage (nca, dyck, copy, noise, or text for a run of this file), transfer, writers, arm (the name
    that reports group seeds under, where the usual one wouldn't tell parents apart), recipe, optimizer
    (adamw, adam or muon; without one the published), seed, smoke."""
    words = common.words(
        arg,
        size='400m',
        corpus='python_stdlib',
        path='',
        field='',
        tokenizer='',
        tokens='',
        parent='',
        parent_stage='nca',
        transfer='all',
        writers=1.0,
        arm='',
        recipe='paper',
        optimizer='',
        seed=0,
        smoke=False,
    )
    if not words.parent and (words.transfer, words.writers) != ('all', 1.0):
        raise ValueError('transfer and writers say what is carried from a parent: name it by parent=FOLDER')
    release = common.is_release(words.recipe)
    stage = common.choose(STAGES, words.corpus.partition(':')[0], 'corpus')
    model = common.model(words.size, length=1024, dropout=0.1)
    model.tied = not release
    model.init.table_std = 1.0 if release else 0.02
    if words.tokens and stage is not None:
        raise ValueError(f'tokens = {words.tokens!r}: is of corpus=c4 alone; others have --config.train.stop')
    if stage is None:
        stop = common.choose(C4_TOKENS, words.tokens or '164M', 'tokens')
        optimizer, train = common.first_stage(words.recipe, stop)
    else:
        length, lr, warmup, decay = stage
        optimizer = common.adamw(lr, warmup=warmup, horizon=length, weight_decay=decay)
        optimizer.update({'clip': 1.0, 'clip_on': 'sum' if release else 'mean'})
        train = common.loop(batch=512, stop=length)
        train.accumulate = 32
    optimizer.name = words.optimizer or optimizer.name
    tables = common.fresh_tables(words.recipe, words.parent_stage)
    plan = common.transfer_plan(words.transfer, words.writers, tables)
    arm = 'scratch' if stage else f'C4 {words.tokens or "164M"}'
    if words.parent:
        arm = f'{words.parent_stage} {words.transfer} x{words.writers:g}'
    arm = f'{arm} {words.optimizer}'.strip()
    config = common.experiment(
        name='language',
        arm=words.arm or arm,
        stage='text',
        seed=words.seed,
        smoke=words.smoke,
        data=common.text(words.corpus, vocab_size=4096, path=words.path, field=words.field, tokenizer=words.tokenizer),
        model=model,
        optimizer=optimizer,
        train=train,
        eval={'batch': 32, 'batches': 16},
        init_from=common.init_from(words.parent, plan) if words.parent else None,
    )
    if words.smoke:
        common.shrink(config)
    return config
