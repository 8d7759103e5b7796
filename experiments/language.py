"""Stage 2, language modelling from scratch or from an automata run (arXiv 2603.10055, section on pre-training).

    python -m nca_jax.main --workdir=runs/owt-nca-1b6 \
        --config=experiments/language.py:size=1b6,corpus=openwebtext,path=DIR,tokenizer=FILE,parent=runs/nca-1b6

`path` is your copy of the published files and `tokenizer` GPT-2's tokenizer.json. Your own text trains with
corpus=text_files,path=DIR, a dataset of TFDS with corpus=tfds:NAME,path=DIR,field=FEATURE.

Published final perplexities at 1b6, scratch against automata: openwebtext 14.66 / 13.82, openwebmath 8.11 / 7.70,
codeparrot 1.92 / 1.84.

corpus=c4 is the paper's control for the first stage, 164M tokens of text in place of automata. Its recipe wasn't
released: it has the automata stage's.
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
}


def get_config(arg: str = '') -> ConfigDict:
    """Words: size, corpus, path, field, tokenizer, parent (an automata run; none is scratch), transfer, writers,
    recipe, seed, smoke."""
    words = common.words(
        arg,
        size='400m',
        corpus='python_stdlib',
        path='',
        field='',
        tokenizer='',
        parent='',
        transfer='all',
        writers=1.0,
        recipe='paper',
        seed=0,
        smoke=False,
    )
    release = common.choose({'paper': False, 'release': True}, words.recipe, 'recipe')
    model = common.model(words.size, length=1024, dropout=0.1)
    model.tied = not release
    model.init.table_std = 1.0 if release else 0.02
    if words.corpus == 'c4':
        optimizer, train = common.first_stage(words.recipe)
    else:
        length, lr, warmup, decay = common.choose(STAGES, words.corpus.partition(':')[0], 'corpus')
        optimizer = common.adamw(lr, warmup=warmup, horizon=length, weight_decay=decay)
        optimizer.update({'clip': 1.0, 'clip_on': 'sum' if release else 'mean'})
        train = common.loop(batch=512, stop=length)
        train.accumulate = 32
    tables = common.FRESH_TABLES_DROP_BIAS if release else common.FRESH_TIED_TABLE
    plan = common.transfer_plan(words.transfer, words.writers, tables)
    config = common.experiment(
        name='language',
        arm=words.transfer if words.parent else 'scratch',
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
