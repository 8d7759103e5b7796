"""A look at the data: what is shown is what is trained on."""

import dataclasses
import io
import json
import textwrap

import jax
import numpy as np
import pytest
from PIL import Image

from nca_jax import experiment, show
from nca_jax import mesh as meshes
from nca_jax.errors import FieldError, UserError
from nca_jax.nca import bank, complexity, patches, sample, stream
from nca_jax.progress import silent
from nca_jax.report import animation, look, style
from tests.test_nca_bank import CONFIG

LENGTH = 43  # 11 tokens a grid: four grids with the last target
PICTURES = ['trajectories.gif', 'trajectories.png', 'rank_frequency.png', 'information.png', 'statistics.json']


@pytest.fixture(scope='module')
def sharding():
    return meshes.batch_sharding(meshes.make_mesh(meshes.MeshConfig(1, 1, 1), jax.devices()[:1]))


@pytest.fixture(scope='module')
def drawn(sharding):
    return sample.draw(CONFIG, 0, 8, 12, LENGTH, sharding, silent)


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    """An experiment on the automata of test_nca_bank."""
    path = tmp_path_factory.mktemp('experiments') / 'tiny.py'
    path.write_text(
        textwrap.dedent(f"""
        from experiments import nca_pretrain

        def get_config(arg=''):
            config = nca_pretrain.get_config('smoke')
            with config.unlocked():
                config.data = {dataclasses.asdict(CONFIG)!r}
                config.model.length = {LENGTH}
                if arg:
                    raise ValueError(f'unknown word {{arg!r}}')
            return config
        """)
    )
    return path


@pytest.fixture(scope='module')
def shown(file, tmp_path_factory):
    out = tmp_path_factory.mktemp('shown')
    assert show.main([f'--config={file}', '--sequences=12', '--rules=8', f'--out={out}']) == 0
    return out


def test_the_sequences_are_those_of_the_training_stream(drawn, sharding):
    config = dataclasses.replace(CONFIG, rules_per_epoch=8, fresh_rules=False)
    rules = stream.make_rules(config, 0, 'train', None, 1)
    batch = stream.make_stream(config, 0, 'train', 12, LENGTH, sharding, rules)(0)
    tokens_SxTxP = np.asarray(batch.inputs_BxL).reshape(12, -1)[:, :33].reshape(12, 3, 11)[:, :, 1:-1]
    np.testing.assert_array_equal(drawn.tokens_SxTxP[:, :3], tokens_SxTxP)
    assert drawn.frames_SxTxYxX.shape == (12, 4, 6, 6)
    for frames_TxYxX, tokens_TxP, found in zip(drawn.frames_SxTxYxX, drawn.tokens_SxTxP, drawn.scores_S, strict=True):
        encoded = np.asarray(patches.encode(config.vocab, frames_TxYxX)).reshape(4, 11)[:, 1:-1]
        np.testing.assert_array_equal(encoded, tokens_TxP)
        assert found == complexity.ratio(config.complexity, tokens_TxP.ravel())
    np.testing.assert_array_equal(drawn.bank.index_R, bank.search(config, 0, 'train', 0).index_R)


def test_what_is_chosen_runs_from_the_simplest_to_the_most_complex(drawn):
    frames, scores = sample.chosen(drawn, 5)
    assert scores.tolist() == sorted(scores)
    assert [scores[0], scores[-1]] == [drawn.scores_S.min(), drawn.scores_S.max()]
    for one, found in zip(frames, scores, strict=True):
        [number] = [s for s in range(12) if (drawn.frames_SxTxYxX[s] == one).all()][:1]
        assert drawn.scores_S[number] == found


def test_two_grids_must_fit(sharding):
    with pytest.raises(FieldError, match=r'config.model.length = 20: must hold two grids of 11 tokens'):
        sample.draw(CONFIG, 0, 8, 12, 20, sharding, silent)


def test_the_entropy_given_the_token_before():
    steps = np.random.default_rng(0).integers(0, 2, (50, 20, 9))
    tokens = np.cumsum(steps, 2) % 4  # a walk on a ring: one bit a step
    assert sample.next_token_entropy(tokens) == pytest.approx(1, abs=0.01)
    assert sample.next_token_entropy(np.arange(900).reshape(10, 10, 9)) is None


def test_the_animation_has_every_frame_and_every_cell_in_its_colour():
    frames = np.random.default_rng(0).integers(0, 5, (3, 7, 4, 6)).astype(np.uint8)
    frames[:, 3] = frames[:, 2]  # equal frames aren't merged
    content = animation.gif({'a': (frames, np.arange(3.0)), 'b': (frames[:1], np.ones(1))}, 5, 'x', 2, style.LIGHT)
    image = Image.open(io.BytesIO(content))
    assert image.n_frames == 7
    x, y = animation.MARGIN, animation.TITLE + animation.LABEL
    pitch = animation.SIDE + animation.GAP
    for t in range(7):
        image.seek(t)
        pixels = np.asarray(image.convert('RGB'))
        second = pixels[y : y + animation.SIDE, x + pitch : x + pitch + animation.SIDE]
        np.testing.assert_array_equal(second[12::24, 8::16], style.cell_colours(5)[frames[1, t]])


def test_the_files_open_and_the_animation_has_all_grids(shown):
    assert sorted(path.name for path in shown.iterdir()) == sorted(PICTURES)
    assert Image.open(shown / 'trajectories.gif').n_frames == 4
    assert all(Image.open(shown / name).width > 400 for name in PICTURES[:4])


def test_the_numbers_are_the_samples(shown, drawn):
    record = json.loads((shown / 'statistics.json').read_text())
    found, unfiltered = record['sets'][show.IN_BAND], record['sets'][show.UNFILTERED]
    tokens = drawn.tokens_SxTxP
    assert found['sequences'] == 12
    assert found['tokens'] == tokens.size == 12 * 36
    assert found['distinct_tokens'] == len(np.unique(tokens)) == len(found['pooled']['counts'])
    assert found['accepted_share'] == 8 / drawn.bank.candidates < unfiltered['accepted_share'] == 1
    assert 0.8 < found['rule_score_quantiles'][0] <= found['rule_score_quantiles'][2] < 1.3
    assert unfiltered['rule_score_quantiles'][0] < 0.8
    assert found['change_rate'] == pytest.approx((np.diff(drawn.frames_SxTxYxX.astype(int), axis=1) != 0).mean())
    assert found['next_cell_information'] == found['information_by_place'][1][0]
    assert len(found['information_by_tokens']) == len(found['distances']) == 33
    assert record['files'] == [str(shown / name) for name in PICTURES]


def test_one_json_object_and_nothing_else(file, tmp_path, capsys):
    whole = ['--config.data.band=(0.0, 9.0)', '--config.data.rule.temperature=0', '--seed=3']
    assert show.main([f'--config={file}', *whole, '--sequences=4', f'--out={tmp_path}', '--json']) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((tmp_path / 'statistics.json').read_text())
    assert list(record['sets']) == [show.IN_BAND]  # a band that takes all needs no second set
    assert (record['seed'], record['rules'], record['spec']['rule']['temperature']) == (3, 4, 0)


def test_the_table_tells_both_sets(shown):
    sets = json.loads((shown / 'statistics.json').read_text())['sets']
    text = show.table(sets)
    assert len({len(line) for line in text.splitlines()}) == 1
    assert f'{sets[show.IN_BAND]["token_entropy"]:.3f}' in text
    assert f'{100 * sets[show.UNFILTERED]["dead_share"]:.1f} %' in text


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--config=experiments/language.py:smoke'], "must be an experiment of stage 'nca', not 'text'"),
        (['--config={file}:word'], "unknown word 'word'"),
        (['--config=nowhere.py'], 'nowhere.py: no such experiment file'),
        (['--config={file}', '--config.data.bond=3'], 'config.data.bond = 3: unknown field'),
        (['--config={file}', '--config.date.band=3'], 'config has no block date'),
        (['--config={file}', '--config.data.band=(0.5, 0.4)'], 'config.data.band'),
        (['--config={file}', '--colour'], "unexpected argument '--colour'"),
        (['--config={file}', '--sequences=1'], '--sequences = 1: must be at least 2'),
        (
            ['--config={file}', '--rules=600'],
            '--rules = 600: must be 1 to 10: at most a set',
        ),
        (['--config={file}', '--seed=-1'], 'config.seed = -1'),
        (['--config={file}', '--out={file}'], 'File exists'),
        (['--config={file}', '--config.data.band=(1.9, 2.0)', '--sequences=4'], '0 of 4 train rules found'),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2(file, tmp_path, capsys, arguments, message):
    words = [f'--out={tmp_path}', *(word.format(file=file) for word in arguments)]
    assert show.main(words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count('\n') == 1


def test_changes_are_read_as_python_writes_values():
    assert [experiment.literal(text) for text in ('3', '1e-3', '(0.5, 2)', 'None', 'life:B3/S23')] == [
        3,
        1e-3,
        (0.5, 2),
        None,
        'life:B3/S23',
    ]
    with pytest.raises(UserError, match=r'no block data\.band'):
        experiment.load_values('experiments/nca_pretrain.py:smoke', ['--config.data.band.low=3'])


def test_bits_are_told_in_two_digits():
    found = [look.short(bits) for bits in (2.31, 0.43, 0.0996, 0.0213, 0.0004, -0.2)]
    assert found == ['2.3', '.43', '.10', '.021', '0', '0']
