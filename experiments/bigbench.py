"""BigBench-Lite: tune on eleven tasks of BIG-bench, then count how often samples are right (paper, section 3).

    python -m nca_jax train --config=experiments/bigbench.py:size=1b6,path=DIR,parent=runs/owt --workdir=runs/bbl
    python -m nca_jax train --config=experiments/bigbench.py:smoke,tokenizer=FILE --workdir=runs/try  # seconds on a CPU

DIR holds BIG-bench's task folders, each with a task.json; without it a generator makes six small tasks in that format,
five of them multiple choice. 54 updates of 64 sequences (an epoch of at most 350 rows a task), none to three worked
examples before each. Asked with two, 64 samples at temperature 0.4 and top_p 0.95, 35 tokens. Right is a row's option
of the highest score, or its target where it has no options. Scores are normalised by chance, with every row's own
number of choices, and chance pass@k stands beside them.
"""

from ml_collections import ConfigDict

from experiments import common, tasks


def get_config(arg: str = '') -> ConfigDict:
    """Words: path (the folder of the tasks, '' for made ones), size, parent (the folder of a run that has read text),
    parent_stage (nca, dyck, copy or noise where the parent is of that stage, which leaves its tables behind), tokenizer
    (where no parent has one), recipe, protocol (script or readme), arm, evaluate (no tuning), seed, smoke. Without arm,
    the name that reports group seeds under, it is the parent's folder."""
    words = common.words(arg, path='', **tasks.WORDS)
    if words.path:
        problems = tasks.problems('bigbench', words.path)
        problems.update({'train_rows': 350, 'least_rows': 100, 'valid_rows': 16})
    else:
        problems = tasks.problems('choices', size=(500, 0), valid_rows=16)
    asked = tasks.benchmark('bigbench', problems, words.protocol)
    asked.limit = 350
    return tasks.tuning(words, asked, lr=5e-6, batch=64, stop='54 steps', shots=(0, 3))
