"""Rows of problems: what is scored, which shots stand before, what is cut, and what can't change a batch."""

import collections
import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from nca_jax import experiment
from nca_jax.data import tokenizer
from nca_jax.decode.decoder import DecodeConfig
from nca_jax.decode.sampling import Sampling
from nca_jax.errors import UserError
from nca_jax.problems import benchmark, gsm8k, sets
from nca_jax.problems import problem as shots
from nca_jax.problems.benchmark import BenchmarkConfig
from nca_jax.problems.sets import ProblemsConfig, load_problems

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'gsm8k'
LENGTH, BATCH = 512, 8
PROBLEMS = ProblemsConfig('gsm8k', str(GOLDEN), train_rows=0, valid_rows=2, size=(0, 0))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('instruct')
    sides = gsm8k.read(str(GOLDEN))
    tokenizer.train((p.prompt + p.target for p in sides.train), 400).save(str(folder / 'tokenizer.json'))
    return folder


@pytest.fixture(scope='module')
def config(folder):
    return sets.InstructConfig(PROBLEMS, str(folder / 'tokenizer.json'), shots=(1, 3), loss_on='target')


def changed(config, **changes):
    """With fields of it, or of its problems, changed."""
    own = {name: changes.pop(name) for name in ('tokenizer', 'shots', 'loss_on') if name in changes}
    return dataclasses.replace(config, problems=dataclasses.replace(config.problems, **changes), **own)


def prepare(config):
    return load_problems(config.problems, tokenizer.load(config.tokenizer))


@pytest.fixture(scope='module')
def prepared(config):
    return prepare(config)


@pytest.fixture(scope='module')
def choices(config):
    """Six tasks of 60 rows each, of which 16 are kept for test."""
    several = changed(config, task='choices', path='', shots=(0, 3), size=(60, 0))
    return several, prepare(several)


def sharding(devices):
    kinds = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((devices,), ('data',), axis_types=kinds, devices=jax.devices()[:devices])
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))


def make(config, prepared, devices=1, seed=0, split='train', batch=BATCH, length=LENGTH):
    return sets.make_stream(config, prepared, seed, split, batch, length, sharding(devices))


def rows(batch):
    """(tokens of L + 1, scored as targets of L) of each row."""
    inputs, targets, weights = (np.asarray(part) for part in batch)
    assert (inputs.dtype, targets.dtype, weights.dtype) == (np.int32, np.int32, np.float32)
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    assert set(np.unique(weights)) <= {0, 1}
    parts = zip(inputs, targets, weights, strict=True)
    return [(np.append(row[0], target), target[weight == 1]) for row, target, weight in parts]


def text(prepared, tokens):
    return prepared.tokenizer.decode(list(tokens), skip_special_tokens=False)


def examples(prepared, tokens):
    """The examples of a row as (prompt, target), without padding."""
    whole = text(prepared, tokens)
    while whole.endswith(tokenizer.END_OF_TEXT * 2):
        whole = whole.removesuffix(tokenizer.END_OF_TEXT)
    known = {p.prompt + p.target: p for found in prepared.splits.values() for p in found}
    return [known[part] for part in whole.removesuffix(tokenizer.END_OF_TEXT).split(tokenizer.END_OF_TEXT)]


def test_exactly_the_target_and_its_end_is_scored(config, prepared):
    for step in range(4):
        for tokens, scored in rows(make(config, prepared)(step)):
            *shots, own = examples(prepared, tokens)
            assert 1 <= len(shots) <= 3
            assert text(prepared, scored) == own.target + tokenizer.END_OF_TEXT


def test_the_release_scores_the_shots_answers_too(config, prepared):
    both = changed(config, loss_on='all_answers')
    for (tokens, scored), (same, _) in zip(rows(make(both, prepared)(0)), rows(make(config, prepared)(0)), strict=True):
        np.testing.assert_array_equal(tokens, same)
        expected = ''.join(each.target + tokenizer.END_OF_TEXT for each in examples(prepared, tokens))
        assert text(prepared, scored) == expected


def test_what_is_scored_ends_the_row_and_the_rest_is_padding(config, prepared):
    end = tokenizer.end_of_text(prepared.tokenizer)
    batch = make(config, prepared)(0)
    for targets, weights in zip(np.asarray(batch.targets_BxL), np.asarray(batch.weights_BxL), strict=True):
        (scored,) = np.nonzero(weights)
        np.testing.assert_array_equal(np.diff(scored), 1)
        assert len(scored) < LENGTH - 1
        np.testing.assert_array_equal(targets[scored[-1] :], end)
        assert targets[scored[-2]] != end


def test_an_epoch_has_each_problem_once_in_an_order_of_its_own(config, prepared):
    stream, total = make(config, prepared, batch=5), len(prepared.splits['train'])
    assert total == 10
    owns = [examples(prepared, tokens)[-1].id for step in range(6) for tokens, _ in rows(stream(step))]
    epochs = [owns[start : start + total] for start in range(0, 30, total)]
    assert all(sorted(epoch) == sorted(p.id for p in prepared.splits['train']) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = [
        examples(prepared, tokens)[-1].id
        for step in range(2)
        for tokens, _ in rows(make(config, prepared, seed=1, batch=5)(step))
    ]
    assert other != epochs[0]


def test_shots_are_other_training_problems_of_the_same_task(choices):
    config, prepared = choices
    train = {problem.id for problem in prepared.splits['train']}
    counts = collections.Counter()
    for split in ('train', 'valid'):
        stream = make(config, prepared, split=split, batch=64)
        for tokens, _ in rows(stream(0)) + rows(stream(1)):
            *shots, own = examples(prepared, tokens)
            counts[len(shots)] += 1
            names = [shot.id for shot in shots]
            assert len(set(names)) == len(names)
            assert own.id not in names
            assert set(names) <= train
            assert {shot.task for shot in shots} <= {own.task}
    assert set(counts) == {0, 1, 2, 3}
    assert min(counts.values()) > 40  # of 256, a fourth each


def test_shots_are_drawn_anew_each_epoch(config, prepared):
    stream, total = make(config, prepared, batch=10), 10
    seen = collections.defaultdict(set)
    for epoch in range(4):
        for tokens, _ in rows(stream(epoch)):
            *shots, own = examples(prepared, tokens)
            seen[own.id].add(tuple(shot.id for shot in shots))
    assert len(seen) == total
    assert all(len(found) > 1 for found in seen.values())


def test_every_draw_is_as_likely_as_any_other():
    pairs = collections.Counter()
    for number in range(6000):
        drawn = shots.draw(f'{number}', (2, 2), 5, 3)
        pairs[tuple(drawn)] += 1
    assert len(pairs) == 12  # ordered pairs of the four places that aren't 3
    assert not [pair for pair in pairs if 3 in pair or pair[0] == pair[1]]
    assert sum((count - 500) ** 2 / 500 for count in pairs.values()) < 31.3  # chi square, 11 degrees: 1 in 1,000
    assert sorted(shots.draw('x', (4, 4), 5, 0)) == [1, 2, 3, 4]
    assert sorted(shots.draw('x', (5, 5), 5, None)) == [0, 1, 2, 3, 4]


def test_truncation_drops_the_earliest_shots_and_never_the_target(config, prepared):
    shortest = max(len(t.prompt) + len(t.target) for t in prepared.tokens['train']) - 1
    dropped = 0
    for length in (shortest, shortest + 60, shortest + 120):
        long, short = make(config, prepared), make(config, prepared, length=length)
        for (whole, _), (cut, scored) in zip(rows(long(0)), rows(short(0)), strict=True):
            left, right = examples(prepared, whole), examples(prepared, cut)
            assert left[len(left) - len(right) :] == right
            assert text(prepared, scored) == left[-1].target + tokenizer.END_OF_TEXT
            dropped += len(left) > len(right)
            if len(left) > len(right):
                more = left[len(left) - len(right) - 1 :]
                tokens = shots.tokenise(more, prepared.tokenizer)
                assert sum(len(part) for pair in tokens for part in pair) > length + 1
    assert dropped > 8


def test_problems_that_are_too_long_are_left_out_and_counted(config, prepared):
    sizes = sorted(len(t.prompt) + len(t.target) for t in prepared.tokens['train'])
    length = sizes[-3] - 1
    assert len(sets.fitting(prepared, 'train', length)) == 8
    valid = 2 - len(sets.fitting(prepared, 'valid', length))
    said = f'10 train, 2 valid, 8 test problems; left out: 2 train and {valid} valid'
    assert sets.describe(prepared, length) == f'{said} longer than {length}'
    owns = [examples(prepared, t)[-1].id for t, _ in rows(make(config, prepared, length=length)(0))]
    assert len(set(owns)) == 8
    with pytest.raises(UserError, match=r'^gsm8k: no train problem fits into 20 tokens'):
        make(config, prepared, length=20)


def test_devices_and_splits_of_the_batch_do_not_change_rows(config, prepared):
    one, eight, halves = make(config, prepared), make(config, prepared, devices=8), make(config, prepared, batch=4)
    mesh = jax.make_mesh((2, 2, 2), ('data', 'fsdp', 'tensor'), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(('data', 'fsdp')))
    other = sets.make_stream(config, prepared, 0, 'train', BATCH, LENGTH, place)
    for step in (3, 0):
        for part, left in enumerate(one(step)):
            np.testing.assert_array_equal(left, eight(step)[part])
            np.testing.assert_array_equal(left, other(step)[part])
            np.testing.assert_array_equal(left, np.concatenate([halves(2 * step)[part], halves(2 * step + 1)[part]]))
    assert {shard.data.shape for shard in eight(0).inputs_BxL.addressable_shards} == {(1, LENGTH)}
    with jax.transfer_guard('disallow'):
        eight(0)


def test_a_process_makes_its_own_rows_only(config, prepared, monkeypatch):
    made = []

    def one_device(shape, place, callback):
        return callback(place.addressable_devices_indices_map(shape)[jax.devices()[2]])

    def counting(*arguments):
        made.append(arguments)
        return assemble(*arguments)

    assemble = sets.assemble
    monkeypatch.setattr(sets, 'assemble', counting)
    monkeypatch.setattr(jax, 'make_array_from_callback', one_device)
    assert make(config, prepared, devices=8, batch=16)(0).inputs_BxL.shape == (2, LENGTH)
    assert len(made) == 2


def test_splits_share_no_problem(choices, prepared):
    for found in (choices[1], prepared):
        prompts = {split: {p.prompt for p in each} for split, each in found.splits.items()}
        assert {split: len(each) for split, each in prompts.items()} == {s: len(p) for s, p in found.splits.items()}
        assert len(set.union(*prompts.values())) == sum(map(len, prompts.values()))


def test_training_problems_that_test_has_are_left_out(config, tmp_path):
    lines = (GOLDEN / 'train.jsonl').read_text().splitlines()
    test = (GOLDEN / 'test.jsonl').read_text().splitlines()
    (tmp_path / 'train.jsonl').write_text('\n'.join([*lines, test[0], lines[3], test[5]]))
    (tmp_path / 'test.jsonl').write_text('\n'.join(test))
    found = prepare(changed(config, path=str(tmp_path)))
    assert {split: len(each) for split, each in found.splits.items()} == {'train': 10, 'valid': 2, 'test': 8}


def test_tasks_are_capped(choices):
    config, prepared = choices
    assert collections.Counter(p.task for p in prepared.splits['train']) == dict.fromkeys(
        ('largest', 'parity', 'next_number', 'category', 'first_letter', 'last_letter'), 60 - 16 - 2
    )
    capped = changed(config, train_rows=20)
    found = prepare(capped)
    counts = collections.Counter(p.task for p in found.splits['train'])
    assert list(counts.values()) == [20] * 6
    assert set(found.splits['train']) < set(prepared.splits['train'])
    said = r'^config.data.shots = 20: must leave shots for task category, which has 20 training problems'
    with pytest.raises(UserError, match=said):
        make(changed(capped, shots=(0, 20)), found)


def test_identity_is_of_contents_not_of_files(config, prepared, tmp_path):
    lines = (GOLDEN / 'train.jsonl').read_text().splitlines()
    shutil.copy(GOLDEN / 'test.jsonl', tmp_path)
    moved = changed(config, path=str(tmp_path))

    def identity(lines, config=moved):
        (tmp_path / 'train.jsonl').write_text('\n'.join(lines))
        return prepare(config).identity

    assert identity(lines) == identity(lines[::-1]) == prepared.identity
    row = json.loads(lines[4])
    another = json.dumps(row | {'answer': row['answer'] + '5'})
    tokenizer.train(lines, 401).save(str(tmp_path / 'other.json'))
    others = {
        identity([*lines[:4], another, *lines[5:]]),
        identity(lines[:-1]),
        identity(lines, changed(moved, tokenizer=str(tmp_path / 'other.json'))),
        identity(lines, changed(moved, valid_rows=3)),
    }
    assert len(others | {prepared.identity}) == 5
    assert prepared.vocab.size == 400


def asked(prepared, length, count=3, room=50, seed=0):
    """Problems with the tokens of their prompts, and the counts."""
    sampling, batch = Sampling(1.0, 1.0, 0), DecodeConfig(1, 1, 1)
    config = BenchmarkConfig(PROBLEMS, 0, count, 1, room, (), sampling, batch, False)
    return benchmark.ask(config, prepared, length, seed)


def test_evaluation_prompts_are_rows_of_training_without_the_answer(prepared):
    end = tokenizer.end_of_text(prepared.tokenizer)
    train = {(p.prompt + p.target): p for p in prepared.splits['train']}
    questions, _ = asked(prepared, LENGTH * 2)
    assert [problem for problem, _ in questions] == list(prepared.splits['test'])
    for problem, prompt in questions:
        *before, last = text(prepared, prompt).split(tokenizer.END_OF_TEXT)
        assert len(before) == 3
        assert last == problem.prompt
        *drawn, own = shots.tokenise([*(train[shot] for shot in before), problem], prepared.tokenizer)
        row, weights = sets.assemble(own, drawn, LENGTH * 2, end, 'target')
        np.testing.assert_array_equal(prompt, row[: len(prompt)])
        np.testing.assert_array_equal(np.nonzero(weights)[0], np.arange(len(prompt), len(prompt) + len(own.target)))


def test_evaluation_prompts_leave_room_and_drop_the_earliest_shots(prepared):
    whole = {problem: tokens.tolist() for problem, tokens in asked(prepared, 4096)[0]}
    problem, tokens = max(whole.items(), key=lambda item: len(item[1]))
    end = tokenizer.end_of_text(prepared.tokenizer)
    last = tokens[tokens.index(end) + 1 :]
    bare = tokens[len(tokens) - tokens[::-1].index(end) :]
    assert text(prepared, bare) == problem.prompt
    for length, expected in (
        (len(tokens) + 50, tokens),
        (len(tokens) + 49, last),
        (len(last) + 50, last),
        (len(bare) + 50, bare),
    ):
        questions, counts = asked(prepared, length)
        assert dict(questions)[problem].tolist() == expected
        kept = sum(len(found) < len(whole[other]) for other, found in questions)
        assert counts == {'left_out': 8 - len(questions), 'fewer_shots': kept}
    assert problem not in dict(asked(prepared, len(bare) + 49)[0])


def test_evaluation_shots_depend_on_the_seed_and_the_problem_alone(choices):
    _, prepared = choices
    train = {problem.prompt + problem.target: problem for problem in prepared.splits['train']}

    def drawn(prepared, seed=0):
        found = {}
        for problem, tokens in asked(prepared, 4096, count=2, seed=seed)[0]:
            *before, _ = text(prepared, tokens).split(tokenizer.END_OF_TEXT)
            found[problem.id] = tuple(train[shot] for shot in before)
            assert {shot.task for shot in found[problem.id]} == {problem.task}
        return found

    assert len(set(drawn(prepared).values())) > len(drawn(prepared)) / 2
    splits = prepared.splits
    turned = dataclasses.replace(prepared, splits=splits | {'test': splits['test'][::-1]})
    assert drawn(turned) == drawn(prepared) != drawn(prepared, seed=1)
    with pytest.raises(
        UserError, match=r'^config.benchmark.shots = 43: must leave shots for task category, which has 42 '
    ):
        asked(prepared, 4096, count=43)


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        *(
            ('task', 'math'),
            ('path', ''),
            ('shots', (2, 1)),
            ('shots', (-1, 1)),
        ),
        *(('loss_on', 'answer'), ('train_rows', -1)),
        *(('valid_rows', 0), ('size', (1, 0))),
    ],
)
def test_impossible_fields_are_named(config, field, value):
    with pytest.raises(UserError, match=f'^{field} = '):
        changed(config, **{field: value})


def test_made_problems_have_a_size_and_no_path(config):
    bare = {'path': '', 'size': (5, 5), 'task': 'arithmetic'}
    changed(config, **bare)
    for changes, field in (
        ({'path': 'x'}, 'path'),
        ({'size': (5, 0)}, 'size'),
        ({'task': 'choices'}, 'size'),
    ):
        with pytest.raises(UserError, match=f'^{field} = '):
            changed(config, **bare | changes)


def test_the_config_survives_an_experiment_file(config):
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    assert experiment._convert(sets.InstructConfig, values, 'config.data') == config
    with pytest.raises(UserError, match=r'^config.data.shots\[1\] = '):
        experiment._convert(sets.InstructConfig, values | {'shots': [0, 'x']}, 'config.data')
