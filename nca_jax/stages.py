"""The stages: one table, with the data of each. A new stage is an entry of STAGES and the functions that it names."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from tokenizers import Tokenizer

from nca_jax import distributed, files
from nca_jax import mesh as meshes
from nca_jax.batch import Batch, Vocab, check_vocab
from nca_jax.checkpoint.store import read_manifest
from nca_jax.config import Config
from nca_jax.data import controls, corpora, streams, text, tokenizer
from nca_jax.errors import check
from nca_jax.evals.held_out import accuracy_scores, grid_scores, make_evaluator, text_scores
from nca_jax.folders import checkpoints
from nca_jax.nca import stream as nca_stream
from nca_jax.nca.bank import write_examples
from nca_jax.nca.config import NCAConfig
from nca_jax.problems import benchmark, sets
from nca_jax.problems.problem import Problems
from nca_jax.problems.sets import CODE, ProblemsConfig, load_problems
from nca_jax.progress import Progress
from nca_jax.train.loop import Data


def _check_nca(config: Config) -> None:
    data, length = config.data, config.model.length
    learns = data.first_loss_at < length
    check(learns, 'config.data.mask_grids', data.mask_grids, f'masks all {length} targets of a sequence')
    # With fewer than two grids nothing shows what the rule did.
    two_grids = 2 * data.tokens_per_grid <= length + 1
    check(two_grids, 'config.model.length', length, f'must hold two grids of {data.tokens_per_grid} tokens')


def _nca(config: Config, mesh: jax.sharding.Mesh, folder: pathlib.Path, progress: Progress) -> Data:
    data, sharding, length = config.data, meshes.batch_sharding(mesh), config.model.length
    epochs = nca_stream.epochs(data, config.train.batch, config.timetable.stop)
    rules = nca_stream.Banks(data, config.seed, 'train', folder, epochs, progress)
    stream = nca_stream.make_stream(data, config.seed, 'train', config.train.batch, length, sharding, rules)
    # 'trajectories' validates on new trajectories of the training rules, 'rules' on a bank of its own.
    valid_data, valid_rules = data, rules
    if data.held_out == 'rules':
        count = config.eval.batch * config.eval.batches
        valid_data = dataclasses.replace(data, rules_per_epoch=count, trajectories_per_rule=1, fresh_rules=False)
        valid_rules = nca_stream.Banks(valid_data, config.seed, 'valid', folder, 1, progress)
    valid = nca_stream.make_stream(valid_data, config.seed, 'valid', config.eval.batch, length, sharding, valid_rules)
    scores = grid_scores(data.vocab, data.tokens_per_grid, config.eval.batches)
    evaluator = make_evaluator(config.model, data.vocab, mesh, valid, config.eval.batches, scores)
    hashes = {'rules': rules(0).hash, 'valid_rules': valid_rules(0).hash}
    examples = functools.partial(write_examples, data, config.seed)
    return Data(data.vocab, stream, {'nca_grid': evaluator}, hashes, examples)


def _text(config: Config, mesh: jax.sharding.Mesh, folder: pathlib.Path, progress: Progress) -> Data:
    sharding, length, evaluation = meshes.batch_sharding(mesh), config.model.length, config.eval
    # The cache is shared by runs, and a run's folder must hold nothing that isn't the run's.
    cache, own = pathlib.Path(config.data.cache).expanduser().absolute(), folder.absolute()
    check(not config.data.cache or cache != own, 'config.data.cache', config.data.cache, 'must not be the --workdir')
    # Process 0 prepares, the others then read what it made.
    prepared = distributed.first(lambda: text.prepare_text(config.data, folder / 'text', progress))
    check_vocab(prepared.vocab.size, 'config.data.tokenizer', config.data.tokenizer)
    stream = text.make_stream(prepared, config.seed, config.train.batch, length, sharding)
    valid, size = text.make_eval_stream(prepared, evaluation.batch, length, evaluation.batches, sharding)
    evaluator = make_evaluator(config.model, prepared.vocab, mesh, valid, evaluation.batches, text_scores(size))
    hashes = {'text': prepared.identity, 'tokenizer': prepared.tokenizer_identity}
    answers, answer_hashes = _benchmark(config, prepared.tokenizer, mesh, folder, progress, {})
    keep = functools.partial(_keep_tokenizer, prepared.tokenizer)
    return Data(prepared.vocab, stream, {'perplexity': evaluator} | answers, hashes | answer_hashes, keep)


def _text_vocabulary(config: Config) -> Vocab:
    data = config.data
    if data.tokenizer:
        return Vocab(tokenizer.load(data.tokenizer).get_vocab_size())
    # Published corpora use GPT-2's tokenizer. For any other corpus one of data.vocab_size tokens is trained.
    return Vocab(corpora.GPT2_VOCAB if data.corpus in corpora.RECIPES else data.vocab_size)


def _keep_tokenizer(bpe: Tokenizer, folder: pathlib.Path) -> None:
    """Writes the tokenizer to where later stages and commands look for it."""
    files.write(folder / tokenizer.FILE, bpe.to_str())


def _check_instruct(config: Config) -> None:
    check(config.benchmark is not None, 'config.benchmark', None, 'must be set: it tells what these runs solve')
    trains = config.timetable.stop > 0 and config.data.problems.task == CODE
    check(not trains, 'config.train.stop', config.train.stop, f"must be '0 steps': {CODE} trains nothing")


def _instruct(config: Config, mesh: jax.sharding.Mesh, folder: pathlib.Path, progress: Progress) -> Data:
    sharding, length, data = meshes.batch_sharding(mesh), config.model.length, config.data
    bpe = _tokenizer(config)
    prepared = distributed.first(lambda: load_problems(data.problems, bpe))
    check_vocab(prepared.vocab.size, 'config.data.tokenizer', data.tokenizer)
    answers, answer_hashes = _benchmark(config, bpe, mesh, folder, progress, {data.problems: prepared})
    hashes = {'problems': prepared.identity, 'tokenizer': tokenizer.identity(bpe)} | answer_hashes
    keep = functools.partial(_keep_tokenizer, bpe)
    if data.problems.task == CODE:
        return Data(prepared.vocab, None, answers, hashes, keep)
    if distributed.is_first():
        print(sets.describe(prepared, length), flush=True)

    def stream(split: str, batch: int) -> Callable[[int], Batch]:
        return sets.make_stream(data, prepared, config.seed, split, batch, length, sharding)

    valid = stream('valid', config.eval.batch)
    loss = make_evaluator(config.model, prepared.vocab, mesh, valid, config.eval.batches, accuracy_scores({}))
    # The first evaluator's result stands for the run, and these runs are compared by the problems that they solve.
    return Data(prepared.vocab, stream('train', config.train.batch), answers | {'held_out': loss}, hashes, keep)


def _tokenizer(config: Config) -> Tokenizer:
    """The config's tokenizer, else the parent's."""
    if config.data.tokenizer:
        return tokenizer.load(config.data.tokenizer)
    bpe = None
    if config.init_from is not None:
        parent = pathlib.Path(config.init_from.run)
        bpe = tokenizer.load_of_run(parent, read_manifest(checkpoints(parent), config.init_from.step))
    allowed = 'must be a tokenizer.json, since no parent (config.init_from) has one'
    check(bpe is not None, 'config.data.tokenizer', '', allowed)
    return bpe


def _benchmark(
    config: Config,
    bpe: Tokenizer,
    mesh: jax.sharding.Mesh,
    folder: pathlib.Path,
    progress: Progress,
    loaded: dict[ProblemsConfig, Problems],
) -> tuple[dict[str, Callable[[Any, int], dict]], dict[str, str]]:
    """(evaluators, hashes) of the config's benchmark, if it has one; `loaded` are the stage's own problems."""
    chosen = config.benchmark
    if chosen is None:
        return {}, {}
    prepared = loaded.get(chosen.problems) or distributed.first(lambda: load_problems(chosen.problems, bpe))
    answers = folder / 'answers'
    evaluator = benchmark.make_evaluator(chosen, prepared, config.model, mesh, config.seed, answers, progress)
    return {'benchmark': evaluator}, {'benchmark': prepared.identity}


def _check_copy(config: Config) -> None:
    length, period = config.model.length, config.data.period
    check(period[1] < length, 'config.data.period', period, f'must end below config.model.length = {length}')


def _computed(
    sequences: Callable,
    config: Config,
    mesh: jax.sharding.Mesh,
    folder: pathlib.Path,
    progress: Progress,
    subsets: Callable[[Any], dict] = lambda data: {},
) -> Data:
    """Rows that the config alone determines, so they need no hashes. `subsets(data)` are targets to score apart."""
    data, length, sharding = config.data, config.model.length, meshes.batch_sharding(mesh)
    train, valid = (
        streams.make_computed_stream(
            functools.partial(sequences, data, length + 1), config.stage, config.seed, split, batch, length, sharding
        )
        for split, batch in (('train', config.train.batch), ('valid', config.eval.batch))
    )
    scores = accuracy_scores(subsets(data))
    evaluator = make_evaluator(config.model, data.vocab, mesh, valid, config.eval.batches, scores)
    return Data(data.vocab, train, {'held_out': evaluator}, {})


@dataclasses.dataclass(frozen=True)
class Stage:
    """One kind of data that a run can train on."""

    # The type of the config block `data`.
    data: type
    prepare: Callable[[Config, jax.sharding.Mesh, pathlib.Path, Progress], Data]
    # Raises FieldError where the data's fields don't fit the rest of the config. It touches no file.
    check_config: Callable[[Config], None] = lambda config: None
    # The vocabulary that `prepare` brings, without any data: a text's from its tokenizer's file or size.
    vocabulary: Callable[[Config], Vocab] = lambda config: config.data.vocab
    # Whether its models read text, so that a benchmark can ask them.
    has_tokenizer: bool = False


STAGES = {
    'nca': Stage(NCAConfig, _nca, _check_nca),
    'text': Stage(corpora.TextConfig, _text, vocabulary=_text_vocabulary, has_tokenizer=True),
    'dyck': Stage(
        controls.DyckConfig,
        # Closing brackets are the tokens that a model can know.
        functools.partial(
            _computed, controls.dyck_sequences, subsets=lambda data: {'close': lambda t: t >= data.kinds}
        ),
    ),
    'copy': Stage(controls.CopyConfig, functools.partial(_computed, controls.copy_sequences), _check_copy),
    'noise': Stage(controls.NoiseConfig, functools.partial(_computed, controls.noise_sequences)),
    'instruct': Stage(
        sets.InstructConfig,
        _instruct,
        _check_instruct,
        vocabulary=lambda config: Vocab(_tokenizer(config).get_vocab_size()),
        has_tokenizer=True,
    ),
}
