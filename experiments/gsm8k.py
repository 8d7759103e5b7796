"""GSM8K: tune a language model on worked solutions, then count how many problems its samples solve (paper, section 3).

    python -m nca_jax train --config=experiments/gsm8k.py:size=1b6,path=DIR,parent=runs/owm --workdir=runs/gsm8k
    python -m nca_jax train --config=experiments/gsm8k.py:size=1b6,path=DIR,parent=runs/owm,evaluate --workdir=runs/is
    python -m nca_jax train --config=experiments/gsm8k.py:smoke,tokenizer=FILE --workdir=runs/try   # seconds on a CPU

DIR has the published train.jsonl and test.jsonl; without it reasoning-gym's gsm_symbolic stands in, which needs no
download. 140 updates of 512 sequences (10 epochs), loss on the target alone (recipe=release: on all answers). Before
each problem stand five worked examples, or as many as fit. Asked with three (metrics count problems with fewer), 32
samples at temperature 0.6, 250 tokens; protocol=readme takes what the release's README says instead. At these sizes
nothing was run here; the paper has the expected numbers.
"""

from ml_collections import ConfigDict

from experiments import common, tasks


def get_config(arg: str = '') -> ConfigDict:
    """Words: path (GSM8K's folder, '' for gsm_symbolic), size, parent (the folder of a run that has read text),
    parent_stage (nca, dyck, copy or noise where the parent is of that stage, which leaves its tables behind), tokenizer
    (where no parent has one), recipe, protocol (script or readme), arm, evaluate (no tuning), seed, smoke. Without arm,
    the name that reports group seeds under, it is the parent's folder."""
    words = common.words(arg, path='', **tasks.WORDS)
    if words.path:
        problems = tasks.problems('gsm8k', words.path, valid_rows=256)
    else:
        problems = tasks.problems('gsm_symbolic', size=(7473, 1319), valid_rows=256)
    asked = tasks.benchmark('gsm8k', problems, words.protocol)
    return tasks.tuning(words, asked, lr=1e-5, batch=512, stop='140 steps', shots=(5, 5))
