"""Texts on the automata's scale: ratios, normalized ratios, bands and proposals."""

import argparse
import collections
import dataclasses
import errno
import gzip
import itertools
import json
import os
import pathlib
import shlex

import numpy as np
import pytest

from nca_jax import cli, experiment
from nca_jax.data import documents
from nca_jax.look import calibrate, calibration, pictures
from nca_jax.nca import bank, score
from nca_jax.progress import silent

EXPERIMENT = f'{pathlib.Path(__file__).parents[1]}/experiments/nca_pretrain.py'
PAPER = experiment.load(EXPERIMENT).data
# 6 x 6 grids of 10 colours: 9 tokens a grid, 90 a score.
TINY = [('data.rule.height', '6'), ('data.rule.width', '6'), ('data.burn_in', '2')]
DATA = experiment.load(EXPERIMENT, TINY).data
TOKENS = 90


def packed(tokens, width: str) -> float:
    """The ratio by Python's own gzip module."""
    content = np.asarray(tokens).astype(width).tobytes()
    return len(gzip.compress(content, 9, mtime=0)) / len(content)


def write(path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def run(tmp_path, *arguments) -> int:
    changes = [f'--config.{field}={text}' for field, text in TINY]
    common_arguments = [f'--config={EXPERIMENT}', *changes, '--rules=64', '--windows=50', f'--out={tmp_path / "out"}']
    return cli.main(['calibrate', *common_arguments, *arguments])


def test_ratios_are_those_of_gzip_files(tmp_path):
    content = bytes(np.random.default_rng(0).integers(97, 123, 20_000, np.uint8))
    corpus = write(tmp_path / 'letters.txt', content)
    found = calibration.measure_text(DATA, corpus, 10_000, 0)
    assert list(found) == ['bytes', 'raw', 'long']
    for name, length, width in (('bytes', TOKENS, '<i4'), ('raw', 4 * TOKENS, 'u1'), ('long', 20_000, 'u1')):
        cuts = np.frombuffer(content, np.uint8)[: len(content) // length * length].reshape(-1, length)
        expected = [packed(window, width) for window in cuts]
        np.testing.assert_array_equal(np.sort(found[name].ratios_W), np.sort(expected))
        assert found[name].scale.vocabulary == 26
        assert found[name].scale.constant == pytest.approx(packed(np.full(length, 97), width), abs=2 / length)


def test_constant_bytes_have_normalized_ratio_0_and_uniform_ones_1(tmp_path):
    generator = np.random.default_rng(1)
    constant = write(tmp_path / 'constant', b'a' * 50_000)
    uniform = {
        'two': bytes(generator.integers(0, 2, 50_000, np.uint8)),
        'four': bytes(generator.choice(np.frombuffer(b'ACGT', np.uint8), 50_000)),
        'all': generator.bytes(50_000),
    }
    for found in calibration.measure_text(DATA, constant, 200, 0).values():
        np.testing.assert_allclose(found.scale.normalize(found.ratios_W), 0, atol=1e-9)
    for name, content in uniform.items():
        for found in calibration.measure_text(DATA, write(tmp_path / name, content), 500, 0).values():
            assert abs(np.mean(found.scale.normalize(found.ratios_W)) - 1) < 0.02, name
            assert abs(found.scale.normalize(found.shuffled) - 1) < 0.02, name


def test_frequencies_alone_give_what_a_shuffled_text_does(tmp_path):
    generator = np.random.default_rng(6)
    content = np.repeat(generator.choice(np.array([97, 98, 99], np.uint8), 4000, p=[0.7, 0.2, 0.1]), 10)
    found = calibration.measure_text(DATA, write(tmp_path / 'runs', content.tobytes()), 500, 0)['bytes']
    cuts = generator.permutation(content)[: len(content) // TOKENS * TOKENS].reshape(-1, TOKENS)
    shuffled = np.mean([packed(window, '<i4') for window in cuts])
    assert found.shuffled == pytest.approx(shuffled, abs=0.005)
    assert shuffled > 1.3 * np.median(found.ratios_W)


def test_the_automatas_scale_runs_from_constant_to_uniform_tokens():
    scale = calibration.make_scale(DATA.complexity, DATA.scored_tokens, np.arange(DATA.vocab.start), 0)
    drawn = np.random.default_rng(2).integers(0, 10**4, (50, TOKENS))
    assert scale.vocabulary == 10**4
    uniform = np.mean([packed(tokens, '<i4') for tokens in drawn])
    assert abs(scale.normalize(uniform) - 1) < 0.02
    assert abs(scale.normalize(packed(np.full(TOKENS, 1234), '<i4'))) < 0.01
    np.testing.assert_allclose(scale.ratio(scale.normalize(np.array([0.1, 0.5]))), [0.1, 0.5])


def test_rare_tokens_are_no_part_of_the_vocabulary():
    for counts, covering in (([499, 500, 1], [1, 0]), ([10, 500, 490], [1, 2, 0]), ([3], [0])):
        counter = collections.Counter(dict(enumerate(counts)))
        assert calibration.covering(counter).tolist() == covering


def test_the_numbers_of_a_vocabulary_matter():
    config = DATA.complexity  # a compressor sees bytes: 256 tokens that differ in two of them take more
    narrow, wide = (calibration.make_scale(config, 1000, np.arange(256) * step, 0).uniform for step in (1, 37))
    assert wide > 1.2 * narrow


def test_a_folder_is_its_files_in_order(tmp_path):
    contents = {'a.bin': bytes(range(256)), 'b/empty': b'', 'b/two.fasta': b'ACGT' * 100, 'c': b'xyz'}
    for name, content in (contents | {'.hidden': b'no', '.git/c': b'no'}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    corpus = calibration.read_corpus(str(tmp_path))
    assert corpus.tobytes() == b''.join(contents.values())
    window_starts = calibration.window_starts
    starts = window_starts(corpus.size, 50, 5, 0)
    assert len(set(starts)) == 5
    assert starts == window_starts(corpus.size, 50, 5, 0) != window_starts(corpus.size, 50, 5, 1)
    assert sorted(window_starts(corpus.size, 50, 1000, 0)) == list(range(0, corpus.size - 49, 50))


def test_corpora_that_need_no_file(monkeypatch):
    made = [documents.Document('ü', 'a'), documents.Document('b', 'b')]
    monkeypatch.setitem(calibration.BUILT_IN, 'python_docs', lambda: made)
    assert calibration.read_corpus('python_docs').tobytes() == 'üb'.encode()
    assert calibration.BUILT_IN.keys() == {'python_stdlib', 'python_docs'}


def test_the_papers_thresholds_apply_where_experiments_take_them():
    grid = {
        'family': ('random', 'life'),
        'colours': (2, 10, 15),
        'patch': (1, 2, 3),
        'height': (6, 12),
        'width': (12, 24),
        'measure': ('gzip', 'zstd'),
    }
    applied = []
    for values in itertools.product(*grid.values()):
        words = dict(zip(grid, values, strict=True))
        # Life has two colours, and three cells of 10 colours on a side make more tokens than a table may have.
        if (words['family'] == 'life' and words['colours'] != 2) or words['colours'] ** words['patch'] ** 2 > 2**20:
            continue
        arg = ','.join(f'{name}={value}' for name, value in words.items())
        data = experiment.load(f'{EXPERIMENT}:{arg}').data
        assert calibration.has_paper_bands(data) == (data.band == (0.5, 2.0)) == (data.band_by == 'score'), arg
        applied += [arg] * calibration.has_paper_bands(data)
    assert len(applied) == 2  # 12 x 12 and 6 x 24
    for change in (('level', 6), ('bytes_per_token', 2), ('frames', 9)):
        other = dataclasses.replace(PAPER, complexity=dataclasses.replace(PAPER.complexity, **dict([change])))
        assert not calibration.has_paper_bands(other)


def test_shares_sum_to_all_and_an_edge_counts_above():
    found = calibration.paper_shares(np.array([0.022, 0.1, 0.2, 0.29, 0.3, 0.35, 0.5, 0.9, 2.5, 0.499]))
    assert list(found) == [f'share_{name}' for name in calibration.PAPER_BANDS]
    assert list(found.values()) == [0.1, 0.1, 0.2, 0.2, 0.1, 0.3]


def test_bands_of_the_paper_and_the_nearest():
    found = calibration.make_bands(PAPER, np.array([0.05, 0.15, 0.3, 0.35, 0.55, 0.6]), silent)
    # As training has them, 0.3 is in none.
    assert [band.share for band in found] == pytest.approx([1 / 6, 1 / 6, 0, 1 / 6, 0, 1 / 3])
    for place, name in ((0.05, '<10'), (0.3, '30-40'), (0.33, '30-40'), (0.44, '30-40'), (0.47, '50+'), (3, '50+')):
        assert calibration.nearest(found, place).name == name


def test_fifths_are_those_of_training(tmp_path):
    other_rules = score.survey(DATA, 3, 64)  # of which nothing may depend
    data = dataclasses.replace(DATA, band_sample=256)
    told = []
    found = calibration.make_bands(data, other_rules, lambda *now: told.append(now))
    assert told[-1] == ('fifths', 256, 256)
    assert [band.name for band in found] == ['q0-20', 'q20-40', 'q40-60', 'q60-80', 'q80-100']
    for number, band in enumerate(found):
        chosen = dataclasses.replace(data, band=(number / 5, (number + 1) / 5), band_by='quantile')
        assert (band.band, band.band_by) == (chosen.band, chosen.band_by)
        assert (band.low, band.high) == bank.thresholds(chosen)
        assert band.share == pytest.approx(0.2, abs=0.02)
    assert sum(band.share for band in found) == pytest.approx(1)


def test_equal_scores_leave_out_fifths(monkeypatch):
    monkeypatch.setattr(score, 'survey', lambda *_: np.array([0.1] * 50 + [0.2] * 50))
    found = calibration.make_bands(DATA, np.zeros(1), silent)
    assert [(band.name, band.share) for band in found] == [('q0-20', 0.5), ('q40-60', 0.5)]


@pytest.mark.parametrize(
    ('chosen', 'changes', 'band', 'band_by'),
    [
        ('', [], (0.5, 2.0), 'score'),
        (
            ':colours=15,band=50+,size=10m',
            [('data.burn_in', '2'), ('data.band', '(0.1, 0.2)')],
            (0.2, 0.4),
            'quantile',
        ),
    ],
)
def test_what_to_type_trains_on_the_band(chosen, changes, band, band_by):
    data = experiment.load(EXPERIMENT + chosen, changes).data
    args = argparse.Namespace(config=EXPERIMENT + chosen, changes=changes)
    typed = calibration.training_arguments(args, calibration.Band('', band, band_by, 0, 1, 1))
    [named], changes = cli.split_changes(shlex.split(typed))
    assert experiment.load(named.removeprefix('--config='), changes).data == dataclasses.replace(
        data, band=band, band_by=band_by
    )


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
    """The whole command over a text of letters in runs and one of zeros; what it drew, printed and wrote."""
    tmp_path = tmp_path_factory.mktemp('whole')
    letters = np.random.default_rng(3).choice(np.frombuffer(b'ACGT', np.uint8), 10_000)
    contents = {'genome $_{$.fasta': np.repeat(letters, 2).tobytes(), 'simple.bin': bytes(20_000)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    drawn = []
    texts = [f'--text={tmp_path / name}' for name in contents]
    with pytest.MonkeyPatch.context() as patch:
        draw = pictures.score_histograms
        patch.setattr(pictures, 'score_histograms', lambda *args: drawn.append(draw(*args)) or drawn[0])
        assert run(tmp_path, *texts, '--windows=300', '--config.seed=1', '--config.data.band_sample=128') == 0
    record = json.loads((tmp_path / 'out' / 'calibration.json').read_text())
    return record, drawn[0], [str(tmp_path / name) for name in contents], list(contents.values())


def test_the_record_is_what_was_measured(measured):
    record, _, names, contents = measured
    scores_R, rules = score.survey(DATA, 1, 64), record['rules']
    assert (record['seed'], rules['count'], rules['tokens']) == (1, 64, TOKENS)
    assert [rules[of] for of in ('min', 'median', 'max')] == [scores_R.min(), np.median(scores_R), scores_R.max()]
    assert rules['share_10-20'] == np.mean((scores_R >= 0.1) & (scores_R < 0.2))
    sampled = score.survey(DATA, 0, 128)
    first, *_, last = record['bands'].values()
    # The 26th of 128 is the last of the first fifth.
    assert [first['low'], first['high']] == [None, np.nextafter(np.sort(sampled)[25], 1)]
    assert [last['low'], last['high']] == [np.sort(sampled)[102], None]
    for name, content in zip(names, contents, strict=True):
        text = record['texts'][name]
        found = text['settings']['bytes']
        windows = np.frombuffer(content, np.uint8)[: len(content) // TOKENS * TOKENS].reshape(-1, TOKENS)
        ratios = [packed(window, '<i4') for window in windows]
        assert found['count'] == len(ratios) == 222
        assert found['ratio_quartiles'] == np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
        relative = (np.median(ratios) - found['constant']) / (found['uniform'] - found['constant'])
        as_score = rules['constant'] + relative * (rules['uniform'] - rules['constant'])
        assert (found['normalized_ratio'], found['score']) == pytest.approx((relative, as_score))
        assert text['rules_below'] == sum(scores < as_score for scores in scores_R) / 64
        band = record['bands'][text['band']]
        assert (band['low'] or 0) < as_score < (band['high'] or 9)
        assert np.median(found['scores']) == pytest.approx(as_score)
    random, simple = (record['texts'][name] for name in names)
    assert simple['settings']['bytes']['score'] == pytest.approx(rules['constant'])
    values = random['settings']['bytes']
    assert 0.4 < values['normalized_ratio'] < 0.9 < values['shuffled_normalized_ratio'] < 1.1
    assert 0 < random['rules_below'] < 1
    assert random['settings'].keys() == {'bytes', 'raw', 'long'}
    assert 'score' not in random['settings']['raw']


def test_the_figure_draws_the_record(measured):
    record, figure, names, contents = measured
    top, *panels = figure.axes
    scores_R, chosen = score.survey(DATA, 1, 64), record['bands']
    assert top.get_title('left') == 'Rules of family random, 10 colours'
    spans = [patch for patch in top.patches if patch.get_alpha()]
    assert len(spans) == len({text['band'] for text in record['texts'].values()})
    heights(top, scores_R)
    for axes, name, content in zip(panels, names, contents, strict=True):
        text = record['texts'][name]
        found = text['settings']['bytes']
        windows = np.frombuffer(content, np.uint8)[: len(content) // TOKENS * TOKENS].reshape(-1, TOKENS)
        rules_scale, scale = (calibration.Scale(0, of['constant'], of['uniform']) for of in (record['rules'], found))
        ratios_W = np.array([packed(window, '<i4') for window in windows])
        heights(axes, rules_scale.ratio(scale.normalize(ratios_W)))
        assert axes.get_title('left').endswith(name[-20:])
        [line] = axes.get_lines()
        assert line.get_xdata()[0] == found['score']
        [span] = [patch for patch in axes.patches if patch.get_alpha()]
        low, high = (chosen[text['band']][end] for end in ('low', 'high'))
        right = axes.get_xlim()[1]
        assert (span.get_x(), span.get_x() + span.get_width()) == pytest.approx((low or 0, high or right))


def heights(axes, scores):
    """The bars are the shares of the scores, in percent."""
    for bar in (patch for patch in axes.patches if not patch.get_alpha()):
        low, high = bar.get_x(), bar.get_x() + bar.get_width()
        expected = 100 * np.mean((scores >= low - 1e-12) & (scores < high - 1e-12))
        assert bar.get_height() == pytest.approx(expected), (low, high)


def test_the_table_tells_the_record(measured):
    record, _, names, _ = measured
    text = calibrate.report(record)
    for name, table in zip(names, text.split('\n\n|')[:2], strict=True):
        found = record['texts'][name]
        lines = [line for line in table.splitlines() if line.startswith('|') or line.startswith(' ')]
        rows = {row[0]: row[1:] for row in ([cell.strip() for cell in line.strip('|').split('|')] for line in lines)}
        columns = [record['rules'], *(found['settings'][setting] for setting in ('bytes', 'raw', 'long'))]
        for field in ('normalized_ratio', 'score', 'shuffled_normalized_ratio', 'shuffled_score', 'uniform', 'median'):
            shown = ['-' if column.get(field) is None else f'{column[field]:.3f}' for column in columns]
            assert rows[field.replace('_', ' ')] == shown
        assert rows['share 10-20'] == [f'{record["rules"]["share_10-20"]:.3f}', '-', '-', '-']
        assert rows['count'] == [f'{column["count"]:,}' for column in columns]
        band = record['bands'][found['band']]
        low, high = ('-' if band[end] is None else f'{band[end]:.3f}' for end in ('low', 'high'))
        assert f'{name}: band {found["band"]}, scores {low} to {high}\n  {found["arguments"]}\n' in text
        said = ' '.join(text[text.index(f'{name}: band') :].split())
        place = f'above {100 * found["rules_below"]:.0f} % of rules.'
        assert f'has the score {found["settings"]["bytes"]["score"]:.3f}, {place}' in said


def test_a_text_beyond_all_rules_is_said_to_be(tmp_path, capsys):
    text = tmp_path / 'noise'
    text.write_bytes(np.random.default_rng(5).bytes(20_000))
    # One rule under which nothing ever changes, from a random start: every score is well below noise.
    assert run(tmp_path, f'--text={text}', '--config.data.rule.identity_bias=100.0') == 0
    said = ' '.join(capsys.readouterr().out.split())
    assert 'above 100 % of rules' in said
    assert f'{text}: band q' in said


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (
            ['--text=nowhere'],
            "--text = 'nowhere': must be a file or folder that holds at least one byte, or one of python_stdlib",
        ),
        (['--text={tmp}/empty'], "empty': must be a file or folder that holds at least one byte"),
        (['--text={tmp}/folder'], "folder': must be a file or folder that holds at least one byte"),
        (['--text={tmp}/small'], 'small: too small, 100 bytes where 10 windows take 3,600'),
        (['--text={tmp}/enough', '--config.seed=-1'], 'config.seed = -1: must be in'),
        ([f'--text={"x" * 300}'], 'File name too long'),
        (['--text={tmp}/enough', '--out={tmp}/small'], 'small: File exists'),
        (['--text={tmp}/enough', '--config=nowhere.py'], 'nowhere.py: no such experiment file'),
        (['--text={tmp}/enough', '--rules=3'], '--rules = 3: must be at least 50'),
        (['--text={tmp}/enough', '--windows=0'], '--windows = 0: must be at least 50'),
        (['--text={tmp}/enough', '--config.data.rules=3'], 'config.data.rules = 3: unknown field'),
        (['--text={tmp}/enough', '--loud'], 'unrecognized arguments: --loud; see'),
        (['--text={tmp}/enough', '--config.data.complexity.level=0'], 'complexity.level = 0: must compress'),
        (
            [
                '--text={tmp}/enough',
                '--config.data.complexity.measure=change_rate',
                '--config.data.complexity.level=0',
            ],
            "config.data.complexity.measure = 'change_rate': must be one of gzip, zstd, lzma: text has no cells",
        ),
        (
            ['--text={tmp}/enough', f'--config={EXPERIMENT.replace("nca_pretrain", "language")}:smoke'],
            "must be an experiment of stage 'nca', not 'text'",
        ),
    ],
)
def test_bad_input_is_one_line(arguments, said, tmp_path, capsys):
    (tmp_path / 'folder').mkdir()
    for name, content in {'empty': b'', 'small': b'x' * 100, 'enough': b'text ' * 2000}.items():
        (tmp_path / name).write_bytes(content)
    language = any('language' in argument for argument in arguments)
    filled = [argument.replace('{tmp}', str(tmp_path)) for argument in arguments]
    assert (cli.main(['calibrate', *filled]) if language else run(tmp_path, *filled)) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count('\n') == 1


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise PermissionError(errno.EACCES, 'Permission denied', 'secret')

    (tmp_path / 'secret').write_bytes(b'x' * 10_000)
    monkeypatch.setattr(calibration.np, 'memmap', refuse)
    assert run(tmp_path, f'--text={tmp_path / "secret"}') == 2
    assert capsys.readouterr().err.endswith('secret: Permission denied\n')


def test_a_folder_below_that_may_not_be_read_is_named(tmp_path, monkeypatch, capsys):
    def refuse(path):
        if str(path).endswith('closed'):
            raise PermissionError(errno.EACCES, 'Permission denied', str(path))
        return scandir(path)

    scandir = os.scandir
    (tmp_path / 'texts' / 'closed').mkdir(parents=True)
    (tmp_path / 'texts' / 'open').write_bytes(b'x' * 10_000)
    monkeypatch.setattr(os, 'scandir', refuse)
    assert run(tmp_path, f'--text={tmp_path / "texts"}') == 2
    assert capsys.readouterr().err.endswith('closed: Permission denied\n')
