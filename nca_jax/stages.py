"""The stages: one table, with the data of each. A new stage is an entry of STAGES and the functions that it names."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from tokenizers import Tokenizer

from nca_jax import distributed, files
from nca_jax import mesh as meshes
from nca_jax.batch import MAX_VOCAB, Batch, Vocab
from nca_jax.checkpoint.store import read_manifest
from nca_jax.config import Config
from nca_jax.data import controls, corpora, dyck, streams, text, tokenizer
from nca_jax.data.preparation import prepare_text
from nca_jax.errors import UserError, check
from nca_jax.evals import held_out, nca_grid, perplexity
from nca_jax.folders import RECORD, checkpoints
from nca_jax.nca import stream as nca_stream
from nca_jax.nca.config import NCAConfig
from nca_jax.nca.examples import write_examples
from nca_jax.problems import benchmark, instruct
from nca_jax.problems.sets import CODE, ProblemsConfig, load_problems
from nca_jax.problems.shots import PreparedProblems
from nca_jax.progress import Progress


@dataclasses.dataclass(frozen=True)
class Data:
    """What a stage brings to a run. `hashes` go into the manifest; the first evaluator decides the run's result."""

    vocab: Vocab
    stream: Callable[[int], Batch]
    evaluators: dict[str, Callable[[Any, int], dict]]
    hashes: dict[str, Any]


def prepare_data(config: Config, mesh: jax.sharding.Mesh, folder: pathlib.Path, progress: Progress) -> Data:
    """The data of the config's stage, prepared under `folder` or where the config says."""
    return STAGES[config.stage].prepare(config, mesh, folder, progress)


def vocabulary(config: Config) -> Vocab:
    """The vocabulary that `prepare_data` brings, without any data: a text's from its tokenizer's file or size."""
    return STAGES[config.stage].vocabulary(config)


# Automata.


def _check_nca(config: Config) -> None:
    data, length = config.data, config.model.length
    _check_table('config.data.rule.colours', data.rule.colours, data.vocab.size)
    learns = data.first_loss_at < length
    check(learns, 'config.data.mask_grids', data.mask_grids, f'leaves no target of length {length} to learn')
    two_grids = 2 * data.tokens_per_grid <= length + 1
    check(two_grids, 'config.model.length', length, f'must hold two grids of {data.tokens_per_grid} tokens')


def _nca(config: Config, mesh: jax.sharding.Mesh, folder: pathlib.Path, progress: Progress) -> Data:
    data, sharding, length = config.data, meshes.batch_sharding(mesh), config.model.length
    epochs = nca_stream.epochs(data, config.train.batch, config.timetable.stop)

    def show(done: int, total: int) -> None:
        progress('rules', done, total)

    rules = nca_stream.Banks(data, config.seed, 'train', folder, epochs, show)
    stream = nca_stream.make_stream(data, config.seed, 'train', config.train.batch, length, sharding, rules)
    valid_data, valid_rules = data, rules
    if data.held_out == 'rules':
        count = config.eval.batch * config.eval.batches
        valid_data = dataclasses.replace(data, rules_per_epoch=count, trajectories_per_rule=1, fresh_rules=False)
        valid_rules = nca_stream.Banks(valid_data, config.seed, 'valid', folder, 1, show)
    valid = nca_stream.make_stream(valid_data, config.seed, 'valid', config.eval.batch, length, sharding, valid_rules)
    evaluator = nca_grid.make_evaluator(
        config.model, data.vocab, data.tokens_per_grid, mesh, valid, config.eval.batches
    )
    hashes = {'rules': rules(0).hash, 'valid_rules': valid_rules(0).hash}
    return Data(data.vocab, stream, {'nca_grid': evaluator}, hashes)


# Text.


def _check_text(config: Config) -> None:
    _check_table('config.data.vocab_size', config.data.vocab_size, config.data.vocab_size)


def _text(config: Config, mesh: jax.sharding.Mesh, folder: pathlib.Path, progress: Progress) -> Data:
    sharding, length, evaluation = meshes.batch_sharding(mesh), config.model.length, config.eval
    cache, own = pathlib.Path(config.data.cache).expanduser().absolute(), folder.absolute()
    check(not config.data.cache or cache != own, 'config.data.cache', config.data.cache, 'must not be the --workdir')
    prepared = distributed.first(lambda: prepare_text(config.data, folder / 'text', progress))
    _check_table('config.data.tokenizer', config.data.tokenizer, prepared.vocab.size)
    stream = text.make_stream(prepared, config.seed, 'train', config.train.batch, length, sharding)
    windows = evaluation.batch * evaluation.batches
    valid = text.make_eval_range(prepared, 'valid', evaluation.batch, length, windows, sharding)
    evaluator = perplexity.make_evaluator(config.model, prepared.vocab, mesh, valid.stream, valid.steps, valid.bytes)
    hashes = {'text': prepared.identity, 'tokenizer': prepared.tokenizer_identity}
    questions = _benchmark(config, prepared.tokenizer, mesh, folder, {})
    return Data(prepared.vocab, stream, {'perplexity': evaluator} | questions.evaluators, hashes | questions.hashes)


def _text_vocabulary(config: Config) -> Vocab:
    data = config.data
    if data.tokenizer:
        return Vocab(tokenizer.load(data.tokenizer).get_vocab_size())
    published = corpora.RECIPES.get(data.corpus)
    return Vocab(published.vocab_size if published else data.vocab_size)


# Problems with known answers.


def _check_instruct(config: Config) -> None:
    trains = config.timetable.stop > 0 and config.data.problems.task == CODE
    check(not trains, 'config.train.stop', config.train.stop, f"must be '0 steps': {CODE} trains nothing")


def _instruct(config: Config, mesh: jax.sharding.Mesh, folder: pathlib.Path, progress: Progress) -> Data:
    sharding, length, data = meshes.batch_sharding(mesh), config.model.length, config.data
    bpe = _tokenizer(config, folder)
    distributed.first(lambda: distributed.is_first() and _keep(bpe, folder))
    prepared = PreparedProblems(distributed.first(lambda: load_problems(data.problems)), bpe)
    _check_table('config.data.tokenizer', data.tokenizer, prepared.vocab.size)
    hashes = {'problems': prepared.identity, 'tokenizer': prepared.tokenizer_identity}
    questions = _benchmark(config, bpe, mesh, folder, {data.problems: prepared})
    hashes |= questions.hashes
    if data.problems.task == CODE:
        return Data(prepared.vocab, _nothing, questions.evaluators, hashes)
    if distributed.is_first():
        print(instruct.describe(data, prepared, config.seed, length), flush=True)

    def stream(split: str, batch: int) -> Callable[[int], Batch]:
        return instruct.make_stream(data, prepared, config.seed, split, batch, length, sharding)

    valid = stream('valid', config.eval.batch)
    loss = held_out.make_evaluator(config.model, prepared.vocab, mesh, valid, config.eval.batches, {})
    evaluators = {'held_out': loss} | questions.evaluators
    return Data(prepared.vocab, stream('train', config.train.batch), evaluators, hashes)


def _instruct_vocabulary(config: Config) -> Vocab:
    return Vocab(_tokenizer(config, None).get_vocab_size())


def _nothing(step: int) -> Batch:
    raise UserError('there is nothing to train on')


def _tokenizer(config: Config, folder: pathlib.Path | None) -> Tokenizer:
    """The config's tokenizer, else the parent's, copied into this run's folder at its beginning."""
    if config.data.tokenizer:
        return tokenizer.load(config.data.tokenizer)
    # Before the record exists, the file may be of another beginning.
    if folder is not None and (folder / RECORD).exists():
        return tokenizer.load(str(folder / tokenizer.FILE))
    allowed = 'must be a tokenizer.json, since no parent (config.init_from) has one'
    check(config.init_from is not None, 'config.data.tokenizer', '', allowed)
    parent = pathlib.Path(config.init_from.run)
    bpe = tokenizer.load_of_run(parent, read_manifest(checkpoints(parent), config.init_from.step), None)
    check(bpe is not None, 'config.data.tokenizer', '', allowed)
    return bpe


def _keep(bpe: Tokenizer, folder: pathlib.Path) -> None:
    """Copies the tokenizer into the run, where a later stage looks for it."""
    if not (folder / RECORD).exists():
        files.write(folder / tokenizer.FILE, bpe.to_str())


class Questions(NamedTuple):
    """What the config's benchmark adds to a stage's data; empty where it has none."""

    evaluators: dict[str, Callable[[Any, int], dict]]
    hashes: dict[str, str]


def _benchmark(
    config: Config,
    bpe: Tokenizer,
    mesh: jax.sharding.Mesh,
    folder: pathlib.Path,
    loaded: Mapping[ProblemsConfig, PreparedProblems],
) -> Questions:
    """`loaded` holds the problems that the stage itself has read."""
    asked = config.benchmark
    if asked is None:
        return Questions({}, {})
    prepared = loaded.get(asked.problems) or PreparedProblems(
        distributed.first(lambda: load_problems(asked.problems)), bpe
    )
    evaluator = benchmark.make_evaluator(asked, prepared, config.model, mesh, config.seed, folder / 'answers')
    return Questions({'benchmark': evaluator}, {'benchmark': prepared.problems.identity})


# Sequences computed from their numbers.


def _check_dyck(config: Config) -> None:
    _check_table('config.data.kinds', config.data.kinds, config.data.vocab.size)


def _dyck(config: Config, mesh: jax.sharding.Mesh, folder: pathlib.Path, progress: Progress) -> Data:
    closing = {'close': lambda targets_BxL: targets_BxL >= config.data.kinds}
    return _computed(config, mesh, dyck.sequences, closing)


def _check_copy(config: Config) -> None:
    length, period = config.model.length, config.data.period
    _check_table('config.data.size', config.data.size, config.data.vocab.size)
    check(period[1] < length, 'config.data.period', period, f'must end below config.model.length = {length}')


def _copy(config: Config, mesh: jax.sharding.Mesh, folder: pathlib.Path, progress: Progress) -> Data:
    return _computed(config, mesh, controls.copy_sequences, {})


def _check_noise(config: Config) -> None:
    _check_table('config.data.size', config.data.size, config.data.vocab.size)


def _noise(config: Config, mesh: jax.sharding.Mesh, folder: pathlib.Path, progress: Progress) -> Data:
    return _computed(config, mesh, controls.noise_sequences, {})


def _computed(config: Config, mesh: jax.sharding.Mesh, sequences: Callable, subsets: dict[str, Callable]) -> Data:
    """Data that the config alone determines, so it needs no hashes."""
    data, length, sharding = config.data, config.model.length, meshes.batch_sharding(mesh)
    train, valid = (
        streams.make_computed_stream(
            functools.partial(sequences, data, length + 1), config.stage, config.seed, split, batch, length, sharding
        )
        for split, batch in (('train', config.train.batch), ('valid', config.eval.batch))
    )
    evaluator = held_out.make_evaluator(config.model, data.vocab, mesh, valid, config.eval.batches, subsets)
    return Data(data.vocab, train, {'held_out': evaluator}, {})


def _check_table(field: str, value: object, tokens: int) -> None:
    allowed = f'must make at most {MAX_VOCAB:,} tokens, the rows of a table, and makes {tokens:,}'
    check(tokens <= MAX_VOCAB, field, value, allowed)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One kind of data that a run can train on."""

    # The type of the config block `data`.
    data: type
    prepare: Callable[[Config, jax.sharding.Mesh, pathlib.Path, Progress], Data]
    # Raises FieldError where the data's fields don't fit the rest of the config. It touches no file.
    check_config: Callable[[Config], None]
    vocabulary: Callable[[Config], Vocab] = lambda config: config.data.vocab
    # Whether its models read text, so that a benchmark can ask them.
    has_tokenizer: bool = False
    # Files for the report about the data, written at a run's beginning.
    write_examples: Callable[[Config, pathlib.Path], None] = lambda config, folder: None


STAGES = {
    'nca': Stage(
        NCAConfig,
        _nca,
        _check_nca,
        write_examples=lambda config, folder: write_examples(config.data, config.seed, folder),
    ),
    'text': Stage(text.TextConfig, _text, _check_text, _text_vocabulary, has_tokenizer=True),
    'dyck': Stage(dyck.DyckConfig, _dyck, _check_dyck),
    'copy': Stage(controls.CopyConfig, _copy, _check_copy),
    'noise': Stage(controls.NoiseConfig, _noise, _check_noise),
    'instruct': Stage(instruct.InstructConfig, _instruct, _check_instruct, _instruct_vocabulary, has_tokenizer=True),
}
