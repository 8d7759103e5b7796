"""Texts on the automata's scale: ratios, ends, bands and what is proposed."""

import collections
import gzip
import json
import pathlib

import numpy as np
import pytest
from tokenizers import Tokenizer

from experiments import common
from nca_jax import calibrate, config, experiment
from nca_jax.data import footing, raw, tokenizer
from nca_jax.errors import FieldError, UserError
from nca_jax.nca import bands, bank, complexity, score

EXPERIMENT = f'{pathlib.Path(__file__).parents[1]}/experiments/nca_pretrain.py'
# 6 x 6 grids of 10 colours: 9 tokens a grid, 90 a score.
TINY = ['--config.data.rule.height=6', '--config.data.rule.width=6', '--config.data.burn_in=2']
DATA = config.from_dict(experiment.load_values(EXPERIMENT, TINY)).data
TOKENS = 90


def silent(*_):
    """Progress that nobody watches."""


def packed(tokens, width: str) -> float:
    """The ratio by Python's own gzip module."""
    content = np.asarray(tokens).astype(width).tobytes()
    return len(gzip.compress(content, 9, mtime=0)) / len(content)


def write(path, content: bytes) -> raw.RawCorpus:
    path.write_bytes(content)
    return raw.open_raw(str(path), silent)


def run(tmp_path, *arguments) -> int:
    common_arguments = [f'--config={EXPERIMENT}', *TINY, '--rules=64', '--windows=50', f'--out={tmp_path / "out"}']
    return calibrate.main([*common_arguments, *arguments])


@pytest.fixture(scope='module')
def bpe() -> Tokenizer:
    words = [' '.join(f'word{i * j % 97}' for j in range(40)) for i in range(40)]
    return tokenizer.train(words, 300)


def test_ratios_are_those_of_gzip_files(tmp_path):
    content = bytes(np.random.default_rng(0).integers(97, 123, 20_000, np.uint8))
    corpus = write(tmp_path / 'letters.txt', content)
    found = footing.measure(DATA, corpus, 10_000, 0, None, silent)
    assert list(found) == ['bytes', 'raw', 'long']
    for name, length, width in (('bytes', TOKENS, '<i4'), ('raw', 4 * TOKENS, 'u1'), ('long', 20_000, 'u1')):
        cuts = np.frombuffer(content, np.uint8)[: len(content) // length * length].reshape(-1, length)
        expected = [packed(window, width) for window in cuts]
        np.testing.assert_array_equal(np.sort(found[name].ratios_W), np.sort(expected))
        assert found[name].ends.alphabet == 26
        assert found[name].ends.floor == pytest.approx(packed(np.full(length, 97), width), abs=2 / length)


def test_constant_bytes_lie_at_the_floor_and_random_ones_at_the_ceiling(tmp_path, bpe):
    generator = np.random.default_rng(1)
    constant = write(tmp_path / 'constant', b'a' * 50_000)
    positions = {
        'two': bytes(generator.integers(0, 2, 50_000, np.uint8)),
        'four': bytes(generator.choice(np.frombuffer(b'ACGT', np.uint8), 50_000)),
        'all': generator.bytes(50_000),
    }
    for found in footing.measure(DATA, constant, 200, 0, bpe, silent).values():
        np.testing.assert_allclose(found.ends.position(found.ratios_W), 0, atol=1e-9)
    for name, content in positions.items():
        for found in footing.measure(DATA, write(tmp_path / name, content), 500, 0, None, silent).values():
            assert abs(np.mean(found.ends.position(found.ratios_W)) - 1) < 0.02, name


def test_a_position_is_the_same_for_automata_and_text():
    ends = footing.automata_ends(DATA, 0)
    drawn = np.random.default_rng(2).integers(0, 10**4, (50, TOKENS))
    assert ends.alphabet == 10**4
    uniform = np.mean([packed(tokens, '<i4') for tokens in drawn])
    assert abs(ends.position(uniform) - 1) < 0.02
    assert abs(ends.position(packed(np.full(TOKENS, 1234), '<i4'))) < 0.01
    np.testing.assert_allclose(ends.ratio(ends.position(np.array([0.1, 0.5]))), [0.1, 0.5])


def test_strays_are_no_part_of_the_alphabet():
    for counts, covering in (([499, 500, 1], [1, 0]), ([10, 500, 490], [1, 2, 0]), ([3], [0])):
        counter = collections.Counter(dict(enumerate(counts)))
        assert footing.covering(counter).tolist() == covering


def test_the_numbers_of_an_alphabet_matter():
    config = DATA.complexity  # a compressor sees bytes: 256 tokens that differ in two of them take more
    narrow, wide = (footing.measure_ends(config, 1000, np.arange(256) * step, 0).ceiling for step in (1, 37))
    assert wide > 1.2 * narrow


def test_windows_of_a_tokenizer_are_its_tokens(tmp_path, bpe):
    text = ' '.join(f'word{i * 31 % 97}' for i in range(20_000))
    corpus = write(tmp_path / 'words.txt', text.encode())
    found = footing.measure(DATA, corpus, 30, 0, bpe, silent)
    assert next(iter(found)) == 'tokens' == footing.main_footing(bpe)
    whole = ' '.join(map(str, bpe.encode(text).ids))
    for tokens in footing.token_windows(corpus, bpe, TOKENS, 30, 0):
        # Cut anywhere, text is tokenized as a whole but for a few tokens at its beginning.
        assert ' '.join(map(str, tokens[5:])) in whole
    expected = [packed(tokens, '<i4') for tokens in footing.token_windows(corpus, bpe, TOKENS, 30, 0)]
    np.testing.assert_array_equal(found['tokens'].ratios_W, expected)


def test_a_folder_is_its_files_in_order(tmp_path):
    contents = {'a.bin': bytes(range(256)), 'b/empty': b'', 'b/two.fasta': b'ACGT' * 100, 'c': b'xyz'}
    for name, content in (contents | {'.hidden': b'no', '.git/c': b'no'}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    corpus = raw.open_raw(str(tmp_path), silent)
    whole = b''.join(contents.values())
    assert corpus.size == len(whole)
    for start, stop in ((0, 10), (250, 260), (255, 256), (256, 257), (200, len(whole)), (600, 9999), (9999, 10_000)):
        assert corpus.read(start, stop) == whole[start:stop]
    starts = list(raw.starts(corpus, 50, 5, 0))
    assert len(set(starts)) == 5
    assert starts == list(raw.starts(corpus, 50, 5, 0)) != list(raw.starts(corpus, 50, 5, 1))
    assert sorted(raw.starts(corpus, 50, 1000, 0)) == list(range(0, len(whole) - 49, 50))


def test_a_file_that_shrinks_is_named(tmp_path):
    corpus = write(tmp_path / 'log', b'x' * 1000)
    (tmp_path / 'log').write_bytes(b'x')
    with pytest.raises(UserError, match='log: became shorter'):
        corpus.read(500, 600)


def test_corpora_that_need_no_file(monkeypatch):
    monkeypatch.setitem(
        raw.BUILT_IN, 'python_docs', lambda: [raw.python.Document('ü', 'a'), raw.python.Document('b', 'b')]
    )
    corpus = raw.open_raw('python_docs', silent)
    assert corpus.read(0, 9) == 'üb'.encode()
    assert raw.BUILT_IN.keys() == {'python_stdlib', 'python_docs'}


def test_bands_of_the_paper_are_those_that_experiments_know():
    scores_R = np.array([0.05, 0.15, 0.3, 0.35, 0.55, 0.6])
    found = bands.make_bands(DATA, scores_R)
    assert [band.share for band in found] == pytest.approx([1 / 6, 1 / 6, 0, 1 / 6, 0, 1 / 3])  # 0.3 is in no band
    for band in found:
        if band.word:
            assert common.BANDS[band.word.removeprefix('band=')] == (band.low, band.high)
        flags = experiment.load_values(EXPERIMENT, band.flags.replace("'", '').replace(' --', '|--').split('|'))['data']
        assert (flags['band'], flags['band_by']) == ((band.low, band.high), 'score')
    assert [band.name for band in found if not band.word] == ['<10', '10-20']
    assert set(common.BANDS) == set(bands.WORDS)
    for place, name in ((0.05, '<10'), (0.3, '30-40'), (0.33, '30-40'), (0.44, '30-40'), (0.47, '50+'), (3, '50+')):
        assert bands.nearest(found, place).name == name


def test_fifths_are_those_of_the_bank():
    words = 'colours=2'
    data = config.from_dict(
        experiment.load_values(f'{EXPERIMENT}:{words}', [*TINY, '--config.data.band_sample=256'])
    ).data
    scores_R = score.survey(data, 0, 256)
    found = bands.make_bands(data, scores_R)
    assert len(found) == 5
    assert sum(band.share for band in found) == pytest.approx(1)
    for band in found:
        values = experiment.load_values(f'{EXPERIMENT}:{words},{band.word}', [*TINY, '--config.data.band_sample=256'])
        chosen = config.from_dict(values).data
        accepted = complexity.in_band(scores_R, bank.thresholds(chosen))
        np.testing.assert_array_equal(accepted, complexity.in_band(scores_R, (band.low, band.high)))
    tied = bands.make_bands(data, np.array([0.1] * 50 + [0.2] * 50))
    assert [(band.name, band.share) for band in tied] == [('q0-20', 0.5), ('q40-60', 0.5)]


def test_the_whole_command_in_json(tmp_path, capsys):
    sequence = np.random.default_rng(3).choice(np.frombuffer(b'ACGT', np.uint8), 20_000).tobytes()
    (tmp_path / 'genome.fasta').write_bytes(b'>random\n' + sequence)
    (tmp_path / 'simple.bin').write_bytes(bytes(20_000))
    names = [str(tmp_path / name) for name in ('genome.fasta', 'simple.bin')]
    assert run(tmp_path, *(f'--text={name}' for name in names), '--json') == 0
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert printed.out.count('\n') == 1
    assert record == json.loads((tmp_path / 'out' / 'calibration.json').read_text())
    assert (tmp_path / 'out' / 'calibration.png').read_bytes().startswith(b'\x89PNG')
    assert record.keys() == {
        *('config', 'spec', 'seed', 'rests_on', 'rules', 'bands', 'texts', 'seconds', 'files'),
    }
    scores_R = score.survey(DATA, 0, 64)
    assert record['rules']['quartiles'][1] == np.median(scores_R)
    assert [band['share'] for band in record['bands']][-1] == np.mean((scores_R > 0.5) & (scores_R < 2))
    random, simple = (record['texts'][name] for name in names)
    assert (random['band'], random['word']) == ('50+', 'band=50+')
    assert (simple['band'], simple['word']) == ('<10', None)
    assert simple['footings']['bytes']['position'] == pytest.approx(0)
    assert sum(simple['windows_in_bands'].values()) == pytest.approx(1)
    assert random['footings'].keys() == {'bytes', 'raw', 'long'}
    assert random['footings']['bytes'].keys() == {
        *('windows', 'tokens', 'bytes_per_token', 'ratio_quartiles', 'alphabet', 'floor', 'ceiling'),
        *('position', 'as_score', 'band', 'band_of_plain_ratio'),
    }


def test_the_table_says_what_to_type_and_what_is_out_of_reach(tmp_path, capsys):
    text = tmp_path / 'dna.txt.gz'
    text.write_bytes(np.random.default_rng(4).bytes(20_000))
    assert run(tmp_path, f'--text={text}', '--config.data.rule.colours=2') == 0
    printed = capsys.readouterr().out
    assert f"{text}: band=q80-100, or --config.data.band='(0.8, 1.0)' --config.data.band_by=quantile" in printed
    assert '1 of its files look compressed' in ' '.join(printed.split())
    scores_R = score.survey(config.from_dict(experiment.load_values(f'{EXPERIMENT}:colours=2', TINY)).data, 0, 64)
    assert scores_R.max() < 0.5  # the paper's 50+ would be a band that no rule reaches


def test_a_text_beyond_all_rules_is_said_to_be(tmp_path, capsys):
    text = tmp_path / 'noise'
    text.write_bytes(np.random.default_rng(5).bytes(20_000))
    # One rule under which nothing ever changes, from a random start: every score is well below noise.
    assert run(tmp_path, f'--text={text}', '--config.data.rule.identity_bias=100.0') == 0
    assert 'OUTSIDE OF WHAT RULES SCORE' in ' '.join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--text=nowhere'], "--text 'nowhere': no such file or folder, and no corpus of python_stdlib"),
        (['--text='], "--text '': no such file"),
        (['--text={tmp}/empty'], 'empty: empty, there is not a byte in it'),
        (['--text={tmp}/folder'], 'folder: empty, there is not a byte in it'),
        (['--text={tmp}/small'], 'small: too small, 100 bytes where it takes 3,600 for 10 windows'),
        (['--text={tmp}/enough', '--rules=3'], '--rules = 3: must be at least 50'),
        (['--text={tmp}/enough', '--windows=0'], '--windows = 0: must be at least 50'),
        (['--text={tmp}/enough', '--seed=-1'], '--seed = -1: must be in'),
        (['--text={tmp}/enough', '--out={tmp}/small'], 'small: File exists'),
        (['--text={tmp}/enough', '--tokenizer={tmp}/small'], 'no readable tokenizer.json'),
        (['--text={tmp}/enough', '--config=nowhere.py'], 'nowhere.py: no such experiment file'),
        (['--text={tmp}/enough', '--config.data.rules=3'], 'config.data.rules = 3: unknown field'),
        (['--text={tmp}/enough', '--loud'], "unexpected argument '--loud'"),
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
            "must be of stage 'nca', not 'text'",
        ),
    ],
)
def test_bad_input_is_one_line(arguments, said, tmp_path, capsys):
    (tmp_path / 'folder').mkdir()
    for name, content in {'empty': b'', 'small': b'x' * 100, 'enough': b'text ' * 2000}.items():
        (tmp_path / name).write_bytes(content)
    language = any('language' in argument for argument in arguments)
    filled = [argument.replace('{tmp}', str(tmp_path)) for argument in arguments]
    assert (calibrate.main(filled) if language else run(tmp_path, *filled)) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count('\n') == 1


def test_tokens_must_fit_their_width(tmp_path, bpe):
    bpe.save(str(tmp_path / 'tokenizer.json'))
    arguments = calibrate.make_parser().parse_args(['--text=x', f'--tokenizer={tmp_path / "tokenizer.json"}'])
    one_byte = ['--config.data.complexity.bytes_per_token=1']
    data = config.from_dict(experiment.load_values(f'{EXPERIMENT}:colours=2', one_byte)).data
    with pytest.raises(FieldError, match='bytes_per_token = 1: enough for 300 tokens'):
        calibrate.calibrate(data, arguments)
