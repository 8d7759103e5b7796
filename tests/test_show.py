"""A look at the data: what is shown is what is trained on."""

import dataclasses
import io
import json
import textwrap

import jax
import numpy as np
import pytest
from PIL import Image

from nca_jax import cli
from nca_jax import mesh as meshes
from nca_jax.errors import FieldError
from nca_jax.look import output, pictures, sequences
from nca_jax.nca import bank, patches, score, stream
from nca_jax.report import figures
from tests.test_nca_bank import CONFIG

LENGTH = 43  # 11 tokens a grid: four grids with the last target
EIGHT_RULES = dataclasses.replace(CONFIG, rules_per_epoch=8, fresh_rules=False)
PICTURES = ['trajectories.gif', 'trajectories.png', 'rank_frequency.png', 'information.png', 'statistics.json']


@pytest.fixture(scope='module')
def sharding():
    return meshes.batch_sharding(meshes.make_mesh(meshes.MeshConfig(1, 1, 1), jax.devices()[:1]))


@pytest.fixture(scope='module')
def drawn():
    return sequences.sample(EIGHT_RULES, 0, 12, LENGTH)


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
    eight_rules = '--config.data.rules_per_epoch=8'
    assert cli.main(['show', f'--config={file}', eight_rules, '--sequences=12', f'--out={out}']) == 0
    return out


def test_the_sequences_are_those_of_the_training_stream(drawn, sharding):
    config = EIGHT_RULES
    rules = stream.Banks(config, 0, 'train', None, 1)
    batch = stream.make_stream(config, 0, 'train', 12, LENGTH, sharding, rules)(0)
    tokens_SxTxP = np.asarray(batch.inputs_BxL).reshape(12, -1)[:, :33].reshape(12, 3, 11)[:, :, 1:-1]
    np.testing.assert_array_equal(drawn.tokens_SxTxP[:, :3], tokens_SxTxP)
    assert drawn.frames_SxTxYxX.shape == (12, 4, 6, 6)
    for frames_TxYxX, tokens_TxP, found in zip(drawn.frames_SxTxYxX, drawn.tokens_SxTxP, drawn.scores_S, strict=True):
        encoded = np.asarray(patches.encode(config.vocab, frames_TxYxX)).reshape(4, 11)[:, 1:-1]
        np.testing.assert_array_equal(encoded, tokens_TxP)
        assert found == score.ratio(config.complexity, tokens_TxP.ravel())
    np.testing.assert_array_equal(drawn.bank.index_R, bank.search(score.Candidates(config, 0, 'train', 0)).index_R)


def test_what_is_chosen_runs_from_the_simplest_to_the_most_complex(drawn):
    frames, scores = drawn.spaced(5)
    assert scores.tolist() == sorted(scores)
    assert [scores[0], scores[-1]] == [drawn.scores_S.min(), drawn.scores_S.max()]
    for one, found in zip(frames, scores, strict=True):
        [number] = [s for s in range(12) if (drawn.frames_SxTxYxX[s] == one).all()][:1]
        assert drawn.scores_S[number] == found


def test_two_grids_must_fit():
    with pytest.raises(FieldError, match=r'config.model.length = 20: must hold two grids of 11 tokens'):
        sequences.sample(EIGHT_RULES, 0, 12, 20)


GRIDS = dataclasses.replace(CONFIG, rule=dataclasses.replace(CONFIG.rule, height=12, width=12))  # of 38 tokens


@pytest.fixture(scope='module')
def known():
    """40 sequences of six grids: a quarter is of colour 0 for ever, the others have cells of three colours, drawn alike
    and independently. A quarter stands still, the rest go on to the next colour in each frame."""
    first_SxYxX = np.random.default_rng(0).integers(0, 3, (40, 12, 12))
    frames = (first_SxYxX[:, None] + np.arange(6)[:, None, None]).astype(np.uint8) % 3
    frames[::4], frames[2::4] = 0, frames[2::4, :1]
    tokens = np.asarray(patches.encode(GRIDS.vocab, frames.reshape(-1, 12, 12))).reshape(40, 6, 38)[:, :, 1:-1]
    rules = bank.Bank(np.arange(10), np.linspace(0, 0.9, 10), (0.0, 1.0), np.zeros(1), 25, '')
    return sequences.measure(GRIDS, sequences.SequenceSet(rules, np.arange(40) / 39, tokens, frames))


def test_simple_numbers_of_known_sequences(known):
    found = known
    assert [found[name] for name in ('sequences', 'frames', 'tokens', 'distinct_tokens')] == [40, 6, 8640, 81]
    assert (found['candidates'], found['accepted'], found['accepted_share']) == (25, 10, 0.4)
    assert found['rule_score_quantiles'] == pytest.approx([0.045, 0.45, 0.855])
    assert found['sequence_score_quantiles'] == pytest.approx([0.05, 0.5, 0.95])
    assert (found['change_rate'], found['static_share']) == (0.5, 0.5)
    assert found['cell_entropy'] == pytest.approx(np.log2(3) * 0.75, abs=5e-3)
    shares = np.append(np.full(80, 0.75 / 81), 0.25 + 0.75 / 81)
    assert found['token_entropy'] == pytest.approx(-(shares * np.log2(shares)).sum(), abs=0.05)


def test_information_of_known_sequences(known):
    found = known
    place = found['information_by_offset']
    assert place.shape == (6, 6)
    assert np.isnan(place[0, 0])
    # What a cell tells of its own future: all, but for chance and the bias of 144 cells' entropy, 0.02 in all.
    whole = np.log2(3) * 0.75 - 0.02
    assert place[1:, 0] == pytest.approx(np.full(5, whole), abs=0.01)
    assert found['next_frame_information'] == place[1, 0]
    assert abs(place[:, 1:].mean()) < 3e-3  # with chance it would be 0.010, without that of shuffled cells 0.008
    assert abs(place[:, 1:]).max() < 0.02
    tokens = found['information_by_distance']
    at = dict(enumerate(tokens, 1))
    assert [at[38], at[76]] == pytest.approx(np.full(2, whole), abs=0.01)
    assert abs(np.mean([at[1], at[5], at[37], at[39]])) < 5e-3


def test_zipf_exponents_of_known_sequences(known):
    laws = known
    assert laws['counts'].sum() == laws['counts_shuffled'].sum() == 8640
    assert laws['counts'][0] > 2160 > 10 * laws['counts'][1]
    assert laws['counts'].tolist() != laws['counts_shuffled'].tolist()
    assert laws['zipf_exponent'] == pytest.approx(likeliest(laws['counts']), abs=2e-3)
    assert laws['zipf_exponent_shuffled'] == pytest.approx(likeliest(laws['counts_shuffled']), abs=2e-3)
    assert laws['fitted_sequences'] == 30  # one token has no law
    assert all(0.1 < laws[f'sequence_zipf_exponent{kind}_quartiles'][1] < 0.5 for kind in ('', '_shuffled'))


def likeliest(counts):
    """The exponent of the Zipf law that makes the counts likeliest, by trial."""
    tried, log_rank = np.linspace(-1, 3, 4001), np.log(np.arange(1, len(counts) + 1))
    likelihood = [-a * (counts @ log_rank) - counts.sum() * np.log(np.exp(-a * log_rank).sum()) for a in tried]
    return tried[np.argmax(likelihood)]


def test_a_law_of_each_sequence_is_told_from_that_of_other_tokens():
    draw = np.random.default_rng(0)
    zipf = np.repeat(np.arange(40), np.round(200 / np.arange(1, 41)).astype(int))
    tokens = np.stack([draw.permutation(9999)[:40][draw.permutation(zipf)] for _ in range(9)])  # of kinds of its own
    laws = sequences.zipf_laws(tokens, draw.integers(0, 50, tokens.shape))
    assert laws['sequence_zipf_exponent_quartiles'] == pytest.approx(np.ones(3), abs=0.02)
    assert laws['sequence_zipf_exponent_shuffled_quartiles'][1] < 0.3
    assert laws['zipf_exponent_shuffled'] < 0.1 < 0.4 < laws['zipf_exponent']


def test_the_rank_figure_draws_the_counts(known):
    other = known | {'counts': np.array([6, 2]), 'counts_shuffled': np.array([5, 3])}
    [axes] = pictures.rank_frequency({'a': known, 'b': other}, 4).axes
    lines = axes.get_lines()
    for line, found, colour in zip(lines[::2], (known, other), pictures.SET_COLOURS, strict=False):
        counts = found['counts']
        np.testing.assert_allclose(line.get_xydata().T, [np.arange(len(counts)) + 1, counts / counts.sum()])
        assert line.get_color() == colour
    np.testing.assert_allclose(lines[3].get_ydata(), [5 / 8, 3 / 8])
    np.testing.assert_allclose(lines[4].get_ydata(), np.array([12, 6, 4, 3]) / 25)  # 1 / rank


def test_the_information_figure_draws_the_bits(known):
    nothing = known | {'information_by_distance': np.zeros(120), 'information_by_offset': np.zeros((6, 6))}
    axes, first, second = pictures.information({'a': known, 'b': nothing}, 38).axes
    drawn = [line.get_ydata() for line in axes.get_lines()]
    np.testing.assert_allclose(drawn[0], np.maximum(known['information_by_distance'], pictures.MIN_BITS))
    np.testing.assert_allclose(drawn[1], np.full(120, pictures.MIN_BITS))
    assert axes.get_lines()[0].get_xdata().tolist() == list(range(1, 121))
    assert [line.get_color() for line in axes.get_lines()] == list(pictures.SET_COLOURS)
    names = {text.get_text(): text.get_color() for text in axes.get_legend().texts}
    assert names == dict(zip('ab', pictures.SET_COLOURS, strict=True))
    image = first.images[0].get_array()
    assert image.mask.sum() == 1
    assert 10 ** image[1, 0] == pytest.approx(known['information_by_offset'][1, 0])
    assert (second.images[0].get_array() == np.log10(pictures.MIN_BITS)).all()
    assert [first.texts[place].get_text() for place in (0, 6)] == ['itself', '1.2']


def test_the_animation_has_every_frame_and_every_cell_in_its_colour():
    frames = np.random.default_rng(0).integers(0, 5, (3, 7, 4, 6)).astype(np.uint8)
    frames[:, 3] = frames[:, 2]  # equal frames aren't merged
    content = pictures.animation({'a': (frames, np.arange(3.0)), 'b': (frames[:1], np.ones(1))}, 5)
    image = Image.open(io.BytesIO(content))
    assert image.n_frames == 7
    x = y = pictures.GAP
    pitch = pictures.SIDE + pictures.GAP
    for t in range(7):
        image.seek(t)
        pixels = np.asarray(image.convert('RGB'))
        second = pixels[y : y + pictures.SIDE, x + pitch : x + pitch + pictures.SIDE]
        np.testing.assert_array_equal(second[12::24, 8::16], figures.cell_colours(5)[frames[1, t]])


def test_the_files_open_and_the_animation_has_all_grids(shown):
    assert sorted(path.name for path in shown.iterdir()) == sorted(PICTURES)
    assert Image.open(shown / 'trajectories.gif').n_frames == 4
    assert all(Image.open(shown / name).width > 400 for name in PICTURES[:4])


def test_the_numbers_are_the_samples(shown, drawn):
    record = json.loads((shown / 'statistics.json').read_text())
    found, unfiltered = record['sets'][sequences.IN_BAND], record['sets'][sequences.UNFILTERED]
    tokens = drawn.tokens_SxTxP
    assert found['sequences'] == 12
    assert found['tokens'] == tokens.size == 12 * 36
    assert found['distinct_tokens'] == len(np.unique(tokens)) == len(found['counts'])
    assert found['accepted_share'] == 8 / drawn.bank.candidates < unfiltered['accepted_share'] == 1
    assert 0.8 < found['rule_score_quantiles'][0] <= found['rule_score_quantiles'][2] < 1.3
    assert unfiltered['rule_score_quantiles'][0] < 0.8
    assert found['change_rate'] == pytest.approx((np.diff(drawn.frames_SxTxYxX.astype(int), axis=1) != 0).mean())
    assert found['information_by_offset'][0][0] is None
    assert len(found['information_by_distance']) == 33


def test_one_json_object_and_nothing_else(file, tmp_path, capsys):
    whole = ['--config.data.band=(0.0, 9.0)', '--config.data.rule.temperature=0', '--config.seed=3']
    assert cli.main(['show', f'--config={file}', *whole, '--sequences=4', f'--out={tmp_path}', '--json']) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((tmp_path / 'statistics.json').read_text())
    assert list(record['sets']) == [sequences.IN_BAND]  # a band that takes all needs no second set
    assert (record['seed'], record['sets'][sequences.IN_BAND]['accepted'], record['spec']['rule']['temperature']) == (
        3,
        4,
        0,
    )


def test_the_table_tells_both_sets(shown):
    sets = json.loads((shown / 'statistics.json').read_text())['sets']
    lines = output.table(sets).splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = {row[0]: row[1:] for row in ([cell.strip() for cell in line.split('|')[1:-1]] for line in lines)}
    assert cells[''] == list(sets) == [sequences.IN_BAND, sequences.UNFILTERED]
    values = list(sets.values())
    assert cells['tokens'] == ['432', '432']
    for name in ('token_entropy', 'static_share', 'next_frame_information', 'zipf_exponent', 'zipf_exponent_shuffled'):
        assert cells[name.replace('_', ' ')] == [f'{v[name]:.3f}' for v in values]
    assert cells['sequence score quantiles'] == [
        ' / '.join(f'{q:.3f}' for q in v['sequence_score_quantiles']) for v in values
    ]
    assert 'information by offset' not in cells


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('number', [0, 204])
def test_automata_that_stand_still_are_drawn(tmp_path, capsys, number):
    """Of one colour for ever after the first step, or each cell as it was."""
    words = f'experiments/nca_pretrain.py:family=elementary:{number},smoke'
    assert cli.main(['show', f'--config={words}', '--sequences=4', f'--out={tmp_path}', '--json']) == 0
    found = json.loads(capsys.readouterr().out)['sets'][sequences.IN_BAND]
    assert found['static_share'] == 1
    assert found['cell_entropy'] == pytest.approx(0 if number == 0 else 1, abs=0.1)
    assert found['next_frame_information'] == pytest.approx(0 if number == 0 else 1, abs=0.1)
    assert all(abs(bits) < 0.1 for row in found['information_by_offset'] for bits in row[1:])


def test_the_strips_say_what_their_numbers_are(drawn):
    figure = figures.film_strips({'rules': drawn.spaced(2)}, 3, 'gzip ratio, first 4 frames')
    words = [text.get_text() for text in figure.axes[0].texts]
    scores = [f'{score:.2f}' for score in (drawn.scores_S.min(), drawn.scores_S.max())]
    assert words == ['rules', *scores, 'gzip ratio, first 4 frames', 'successive frames →']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--config=experiments/language.py:smoke'], "must be an experiment of stage 'nca', not 'text'"),
        (['--config={file}:word'], "unknown word 'word'"),
        (['--config=nowhere.py'], 'nowhere.py: no such experiment file'),
        (['--config={file}', '--config.data.bond=3'], 'config.data.bond = 3: unknown field'),
        (['--config={file}', '--config.date.band=3'], 'config has no block date'),
        (['--config={file}', '--config.data.band=(0.5, 0.4)'], 'config.data.band'),
        (['--config={file}', '--colour'], 'unrecognized arguments: --colour; see'),
        (['--config={file}', '--sequences=1'], '--sequences = 1: must be at least 2'),
        (['--config={file}', '--config.seed=-1'], 'config.seed = -1'),
        (['--config={file}', '--out={file}'], 'File exists'),
        (['--config={file}', '--config.data.band=(1.9, 2.0)', '--sequences=4'], '0 of 4 train rules found'),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2(file, tmp_path, capsys, arguments, message):
    words = [f'--out={tmp_path}', *(word.format(file=file) for word in arguments)]
    assert cli.main(['show', *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count('\n') == 1
