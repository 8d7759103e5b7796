"""Likelihoods and answers for lm-evaluation-harness, against whole sequences that are read one by one.

The tests marked full run the package itself, of launch/oracle.lock.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Sequence

import jax
import numpy as np
import pytest

from experiments import quickstart
from nca_jax import cli, run
from nca_jax import mesh as meshes
from nca_jax.batch import Vocab
from nca_jax.data import tokenizer as bpe
from nca_jax.decode import decoder
from nca_jax.decode.sampling import Sampling
from nca_jax.errors import FieldError, UserError
from nca_jax.evals import harness, requests
from nca_jax.evals.requests import Model
from nca_jax.model import transformer
from tests.runs import load_program
from tests.test_export import write_corpus
from tests.test_hf import GOLDEN
from tests.test_model import CONFIG
from tests.test_run import adjusted, train

TEXT = '\n'.join(f'def f{i}(x):\n    return x * {i} + {i}' for i in range(60))
GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0)


@functools.cache
def model(devices: int = 8) -> Model:
    """Of 40 tokens' length and 300 kinds of them, with weights that make some tokens far likelier than others."""
    config, vocab = dataclasses.replace(CONFIG, layers=2, length=40, unroll=1), Vocab(300)
    params = transformer.init_params(config, vocab, jax.random.key(0))
    mesh = meshes.make_mesh(meshes.MeshConfig(-1, 1, 1), jax.devices()[:devices])
    return Model(config, vocab, params, bpe.train([TEXT], 300), mesh, rows=8, seed=0)


@functools.cache
def reader(config, vocab):
    return jax.jit(lambda params, tokens_BxL: transformer.apply(config, params, tokens_BxL, vocab))


def whole_logits(found: Model, tokens: Sequence[int]) -> np.ndarray:
    """Logits (L, V) after each of at most `length` tokens, in float64."""
    padded_1xL = np.zeros((1, found.config.length), np.int32)
    padded_1xL[0, : len(tokens)] = tokens
    logits_1xLxV = jax.device_get(reader(found.config, found.vocab)(found.params, padded_1xL))
    return logits_1xLxV[0, : len(tokens), : found.vocab.size].astype(np.float64)


def naive(found: Model, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
    """Of a continuation that fits the model, after what fits of the context."""
    tokens = [*context, *continuation][-(found.config.length + 1) :]
    logits_LxV = whole_logits(found, tokens[:-1])[-len(continuation) :]
    chosen_L = logits_LxV[np.arange(len(continuation)), list(continuation)]
    nats_L = chosen_L - np.log(np.sum(np.exp(logits_LxV), axis=-1))
    return float(nats_L.sum()), bool((logits_LxV.argmax(-1) == continuation).all())


def likeliest(found: Model, context: Sequence[int], count: int) -> list[int]:
    tokens = list(context)
    for _ in range(count):
        tokens.append(int(whole_logits(found, tokens)[-1].argmax()))
    return tokens[len(context) :]


def pairs() -> list[tuple[list[int], list[int]]]:
    """Contexts of 1 to 60 tokens and continuations of 1 to 12, of which every fourth is the likeliest."""
    draw = np.random.default_rng(0)
    found = []
    for number in range(30):
        context = draw.integers(0, 300, draw.integers(1, 61)).tolist()
        continuation = draw.integers(0, 300, draw.integers(1, 13)).tolist()
        if number % 4 == 0:
            context = context[:20]
            continuation = likeliest(model(), context, 5)
        found.append((context, continuation))
    return found


def test_likelihoods_are_sums_over_the_whole_sequence():
    """In the order of the requests, though the longest are read first; some contexts are cut."""
    assert any(len(context) + len(continuation) > 41 for context, continuation in pairs())
    expected = [naive(model(), *pair) for pair in pairs()]
    for (found, is_greedy), (nats, greedy) in zip(requests.likelihoods(model(), pairs()), expected, strict=True):
        assert found == pytest.approx(nats, rel=1e-4)
        assert is_greedy is greedy
    assert 0 < sum(greedy for _, greedy in expected) < 30


def test_a_likelihood_depends_on_no_other_request():
    together = requests.likelihoods(model(), pairs())
    for number in (0, 7):
        (alone,) = requests.likelihoods(model(), [pairs()[number]])
        assert alone[0] == pytest.approx(together[number][0], rel=1e-5)


def test_long_continuations_are_read_in_windows():
    """100 tokens of which 40 fit: each is predicted once, from as many as fit before it."""
    tokens = np.random.default_rng(1).integers(0, 300, 100).tolist()
    (nats, is_greedy), empty = requests.likelihoods(model(), [([0], tokens), ([0, 1], [])])
    parts = naive(model(), [0], tokens[:40])[0], naive(model(), tokens[:40], tokens[40:80])[0]
    last = naive(model(), tokens[:80], tokens[80:])[0]
    assert nats == pytest.approx(sum(parts) + last, rel=1e-4)
    assert is_greedy is False
    assert empty == (0.0, True)
    greedy = likeliest(model(), [5], 40)
    assert requests.likelihoods(model(), [([5], greedy)])[0][1] is True
    wrong = [(greedy[0] + 1) % 300, *greedy[1:]]
    wrong += likeliest(model(), wrong, 1)  # so that it is the first window alone that is wrong
    assert requests.likelihoods(model(), [([5], wrong)])[0][1] is False


def test_windows_by_hand():
    assert requests.windows([9], range(5), 5) == [([9, 0, 1, 2, 3, 4], 5)]
    assert requests.windows([7, 8, 9], range(3), 4) == [([8, 9, 0, 1, 2], 3)]
    three = [([9, 0, 1, 2, 3], 4), ([3, 4, 5, 6, 7], 4), ([5, 6, 7, 8, 9], 2)]
    assert requests.windows([7, 9], range(10), 4) == three
    assert requests.windows([9], [], 4) == []


@pytest.mark.parametrize('length', [1, 31, 32, 33, 64, 65, 99, 100])
def test_windows_are_padded_to_few_lengths(length):
    assert decoder.bucket(length) == (32 if length <= 32 else 64 if length <= 64 else 128)


def test_answers_are_the_likeliest_tokens(capsys):
    """In order, after what fits of the context, and with less room where that would be more than half."""
    contexts = ['def f1(x):', '', TEXT[:300], 'def f2(', 'def f1(x):', 'é']
    found = requests.continuations(model(1), [(context, {'max_gen_toks': 25}) for context in contexts])
    for text, context in zip(found, contexts, strict=True):
        tokens = (model().encode(context) or [0])[-20:]
        following = likeliest(model(), tokens, 20 if context == TEXT[:300] else 25)
        ends = following.index(0) if 0 in following else None
        assert text == model().tokenizer.decode(following[:ends])
    assert '1 of 6 answers have room for fewer than 25 tokens in length 40' in capsys.readouterr().err


def test_requests_of_different_kinds():
    """Each stops where its own kind does. Samples depend on the seed and their request alone."""
    sampled = {'do_sample': True, 'temperature': 1.0, 'max_gen_toks': 8}
    asked = [('def f1', sampled), ('def f2', {'max_gen_toks': 8}), ('def f2', sampled), ('def f1', sampled)]
    found = requests.continuations(model(1), asked)
    assert len(set(found)) == 4
    stop = found[1][2:4]
    assert len(stop) == 2
    again = [('def f2', {'max_gen_toks': 8, 'until': [stop, '']}), ('def f2', sampled), ('def f1', sampled)]
    assert requests.continuations(model(1), again) == [found[1][: found[1].index(stop)], found[2], found[0]]
    other = requests.continuations(dataclasses.replace(model(1), seed=1), [asked[0], asked[2], asked[3]])
    assert not set(found) & set(other)


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        ({}, (GREEDY, (), 256)),
        ({'until': '\n', 'max_gen_toks': 5}, (GREEDY, ('\n',), 5)),
        ({'until': ['a', '', 'b'], 'max_new_tokens': 7, 'num_beams': 1}, (GREEDY, ('a', 'b'), 7)),
        ({'do_sample': False, 'temperature': 0.7, 'max_new_tokens': None}, (GREEDY, (), 256)),
        ({'temperature': 0.5, 'top_p': 0.9}, (Sampling(0.5, 0.9, 0), (), 256)),
        ({'do_sample': True, 'top_k': -1}, (Sampling(1.0, 1.0, 0), (), 256)),
        ({'do_sample': True, 'temperature': 0.0}, (GREEDY, (), 256)),
    ],
)
def test_what_tasks_ask_for(options, expected):
    assert requests.parse_options(options) == expected


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'num_beams': 10}, 'num_beams = 10: must be 1'),
        ({'repetition_penalty': 1.2}, 'repetition_penalty = 1.2: must be one of do_sample, max_'),
        ({'max_gen_toks': 0}, 'max_gen_toks = 0: must be positive'),
        ({'temperature': 1, 'top_p': 0}, 'top_p = 0'),
    ],
)
def test_what_cannot_be_done(options, said):
    with pytest.raises(FieldError, match=said):
        requests.parse_options(options)


def refused(capsys, *arguments: str) -> str:
    assert cli.main(['harness', *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ''
    assert printed.err.count('\n') == 1
    return printed.err


def test_bad_input_is_told_in_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'lm_eval', None)
    assert refused(capsys, tmp_path, '--tasks=a') == ("error: lm_eval isn't installed: pip install nca_jax[harness]\n")
    assert '--limit = 0: must be' in refused(capsys, tmp_path, '--tasks=a', '--limit=0')
    assert '--num-fewshot = -1' in refused(capsys, tmp_path, '--tasks=a', '--num-fewshot=-1')
    assert 'must name a file' in refused(capsys, tmp_path, '--tasks=a', f'--out={tmp_path}')
    assert 'must name a file' in refused(capsys, tmp_path, '--tasks=a', f'--out={tmp_path}/none/file.json')


def test_adopted_weights(tmp_path):
    """They are read as they were, and refused here, since no tokenizer came with them."""
    assert cli.main(['adopt', str(GOLDEN / 'hf_llama'), f'--out={tmp_path / "in"}']) == 0
    config, vocab, params, _ = run.load_model(tmp_path / 'in', meshes.make_mesh(meshes.MeshConfig(-1, 1, 1)))
    golden = np.load(GOLDEN / 'llama.npz')
    found = reader(config, vocab)(params, golden['tokens'])[..., : vocab.size]
    np.testing.assert_allclose(found, golden['logits'], rtol=1e-4, atol=1e-4)
    for folder, weights, said in (
        (tmp_path, 'params', 'no such folder of checkpoints'),
        (tmp_path / 'in', 'ema', 'kept no average'),
        (tmp_path / 'in', 'params', 'was trained on no text'),
    ):
        with pytest.raises(UserError, match=said):
            harness.load(folder, weights, None, 0)
    for batch in (0, 12):
        with pytest.raises(FieldError, match=f'--batch = {batch}: must be a multiple of 8 devices'):
            harness.load(tmp_path / 'in', 'params', batch, 0)


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> pathlib.Path:
    """A run on text that kept an average of its weights."""
    folder = write_corpus(tmp_path_factory.mktemp('harness'))
    wanted = adjusted(quickstart.get_config('smoke'), folder, optimizer__ema=0.5, optimizer__lr=0.03)
    return train(wanted, folder / 'trained')


@pytest.mark.full
@pytest.mark.parametrize('weights', ['params', 'ema'])
def test_a_run_without_its_data_is_the_run(trained, weights):
    mesh = meshes.make_mesh(meshes.MeshConfig(-1, 1, 1))
    config_of_run, program, expected, manifest = load_program(trained, mesh, weights)
    config, vocab, params, same = run.load_model(trained, mesh, weights)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), jax.device_get(expected))
    assert (vocab, same) == (program.data.vocab, manifest)
    tokens_BxL = np.random.default_rng(0).integers(0, vocab.size, (2, 64))
    found, logits = (transformer.apply(c, params, tokens_BxL, vocab) for c in (config, config_of_run.model))
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)


TASKS = {
    'choices': """
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_target: answer
doc_to_choice: "{{choices}}"
target_delimiter: ""
metric_list: [{metric: acc}]
""",
    'texts': """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}, {metric: byte_perplexity}]
""",
    'answers': """
output_type: generate_until
doc_to_text: "{{context}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 6}
metric_list: [{metric: exact_match}]
""",
}


def write_tasks(folder: pathlib.Path, documents: dict[str, list[dict]]) -> None:
    for name, rows in documents.items():
        (folder / f'{name}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
        data = json.dumps({'data_files': {'test': str(folder / f'{name}.jsonl')}})
        about = f'task: nca_{name}\ndataset_path: json\ndataset_kwargs: {data}\ntest_split: test\n'
        (folder / f'{name}.yaml').write_text(about + TASKS[name])


def harness_command(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
    """In a process of its own, where nothing can be downloaded."""
    offline = {'HF_HOME': str(folder / 'hf'), 'HF_DATASETS_OFFLINE': '1', 'HF_HUB_OFFLINE': '1'}
    command = [sys.executable, '-m', 'nca_jax', 'harness', *map(str, arguments)]
    root = pathlib.Path(__file__).parents[1]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, env={**os.environ, **offline})


def right(found: Model, row: dict) -> float:
    """1 where the answer is the likeliest of the choices."""
    lm = requests.make_lm(found)
    nats = [naive(found, *lm._encode_pair(row['context'], choice))[0] for choice in row['choices']]
    return float(np.argmax(nats) == row['answer'])


def rolled(found: Model, text: str) -> float:
    """Nats of a text, by the harness's own windows."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    tokens, length = found.encode(text), found.config.length
    rolling = get_rolling_token_windows(tokens, prefix_token=found.end, max_seq_len=length, context_len=1)
    return sum(naive(found, *make_disjoint_window(window))[0] for window in rolling)


@pytest.mark.full
def test_tasks_of_each_kind_from_end_to_end(trained, tmp_path):
    """The command's numbers are those of whole sequences read one by one."""
    found, about = harness.load(trained, 'ema', None, 0)
    draw = np.random.default_rng(0)
    choices = [' return', ' x', ' * 17', ' def f3(x):', '\n    return x']
    texts = [TEXT[:20], TEXT[100:400], TEXT[500:1500]]
    prompts = [TEXT[start : start + size] for start, size in ((0, 9), (40, 30), (90, 200), (300, 11))]
    answers = [
        found.tokenizer.decode(likeliest(found, found.encode(prompt)[-58:], 6)).partition('\n\n')[0]
        for prompt in prompts
    ]
    documents = {
        'choices': [
            {'context': TEXT[: draw.integers(1, 300)], 'choices': choices, 'answer': int(draw.integers(5))}
            for _ in range(25)
        ],
        'texts': [{'text': text} for text in texts],
        'answers': [
            {'context': prompt, 'answer': answer if number % 2 else 'nothing of that kind'}
            for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        ],
    }
    write_tasks(tmp_path, documents)
    arguments = trained, '--tasks=nca_*', f'--include-path={tmp_path}', '--weights=ema', f'--out={tmp_path}/out.json'
    done = harness_command(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / 'out.json').read_text())
    assert {name: record[name] for name in about} == about
    results = record['results']
    accuracy = np.mean([right(found, row) for row in documents['choices']])
    assert 0 < accuracy < 1
    assert results['nca_choices']['acc,none'] == pytest.approx(accuracy)
    size = sum(len(text.encode()) for text in texts)
    nats = -sum(rolled(found, text) for text in texts) / size
    assert results['nca_texts']['bits_per_byte,none'] == pytest.approx(nats / math.log(2), rel=1e-4)
    assert results['nca_texts']['byte_perplexity,none'] == pytest.approx(math.exp(nats), rel=1e-4)
    assert results['nca_answers']['exact_match,none'] == 0.5
    for name in results:
        assert f'|{name}' in done.stdout
    printed = map(float, re.findall(r'\d\.\d+', done.stdout))
    assert any(number == pytest.approx(accuracy, abs=5e-5) for number in printed)


@pytest.mark.full
def test_what_the_harness_cannot_run(trained, tmp_path, capsys):
    write_tasks(tmp_path, {'texts': [{'text': 'x'}], 'choices': [{'context': 'x', 'choices': ['x'], 'answer': 0}]})
    (tmp_path / 'texts.jsonl').unlink()
    (tmp_path / 'unsafe.yaml').write_text('include: choices.yaml\ntask: nca_unsafe\nunsafe_code: true\n')
    assert "--tasks = 'no_such_task': is no task" in refused(capsys, trained, '--tasks=no_such_task')
    nowhere = f'--include-path={tmp_path}/none'
    assert f"--include-path = '{tmp_path}/none'" in refused(capsys, trained, '--tasks=nca_texts', nowhere)
    for task, said in (('nca_texts', 'texts.jsonl'), ('nca_unsafe', 'marked as unsafe')):
        done = harness_command(tmp_path, trained, f'--tasks={task}', f'--include-path={tmp_path}')
        assert done.returncode == 2, done.stderr
        assert done.stdout == ''
        assert done.stderr.splitlines()[-1].startswith('error: ')
        assert said in done.stderr.splitlines()[-1]


@pytest.mark.full
def test_windows_are_the_harnesses():
    from lm_eval.utils import get_rolling_token_windows

    for size in range(1, 30):
        for length in (1, 2, 5, 10):
            rolling = get_rolling_token_windows(list(range(size)), prefix_token=99, max_seq_len=length, context_len=1)
            expected = [([*inputs, targets[-1]], len(targets)) for inputs, targets in rolling]
            assert requests.windows([99], range(size), length) == expected


@pytest.mark.full
def test_a_pair_has_the_tokens_of_the_whole():
    """White space goes with the continuation, which is encoded apart where one token spans both."""
    from lm_eval.api.instance import Instance

    encode, end = model().encode, model().end
    spanning = next(
        text
        for text in (model().tokenizer.decode([token]) for token in range(257, 300))
        if text.isalpha() and len(text) == 2
    )
    assert len(encode(spanning)) == 1
    expected = {
        ('def f1(x):\n    return  ', 'x * 17'): (encode('def f1(x):\n    return'), encode('  x * 17')),
        ('', 'x'): ([end], encode('x')),
        ('  ', 'x'): ([end], encode('  x')),
        tuple(spanning): (encode(spanning[0]), encode(spanning[1])),
    }
    instances = [Instance('loglikelihood', {}, texts, 0) for texts in [*expected, ('x', '')]]
    *found, empty = requests.make_lm(model()).loglikelihood(instances)
    assert empty == (0.0, True)
    for (nats, greedy), (before, after) in zip(found, expected.values(), strict=True):
        assert (pytest.approx(nats, rel=1e-4), greedy) == naive(model(), before, after)
    assert encode('<|endoftext|>') != [end]
