"""The data of each stage: its vocabulary, its stream of Batches, its evaluators, and the hashes of what they read."""

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
from nca_jax.errors import FieldError, UserError, check
from nca_jax.evals import held_out, nca_grid, perplexity
from nca_jax.nca import stream as nca_stream
from nca_jax.problems import benchmark, instruct
from nca_jax.problems.sets import CODE, Problems, ProblemsConfig, load_problems
from nca_jax.progress import Progress
from nca_jax.train.duration import to_steps


@dataclasses.dataclass(frozen=True)
class Data:
    """What a stage brings to a run. `hashes` go into the manifest."""

    vocab: Vocab
    stream: Callable[[int], Batch]
    evaluators: dict[str, Callable[[Any, int], dict]]
    hashes: dict[str, Any]


def prepare_data(config: Config, mesh: jax.sharding.Mesh, folder: pathlib.Path, progress: Progress) -> Data:
    """The data of the config's stage, prepared under `folder` or where the config says."""
    stages = {'nca': _nca, 'text': _text, 'dyck': _dyck, 'copy': _copy, 'noise': _noise, 'instruct': _instruct}
    return stages[config.stage](config, mesh, folder, progress)


def vocabulary(config: Config) -> Vocab:
    """The vocabulary that `prepare_data` brings, without any data: a text's from its tokenizer's file or size."""
    data = config.data
    if config.stage == 'instruct':
        return Vocab(_tokenizer(config, None).get_vocab_size())
    if config.stage != 'text':
        return data.vocab
    if data.tokenizer:
        return Vocab(tokenizer.load(data.tokenizer).get_vocab_size())
    published = corpora.RECIPES.get(data.corpus)  # which name the tokenizer that they must be given
    return Vocab(published.vocab_size if published else data.vocab_size)


def _nca(config: Config, mesh: jax.sharding.Mesh, folder: pathlib.Path, progress: Progress) -> Data:
    data, sharding, length = config.data, meshes.batch_sharding(mesh), config.model.length
    _check_table('config.data.rule.colours', data.rule.colours, data.vocab.size)
    if data.first_loss_at >= length:
        raise FieldError(
            'config.data.mask_grids', data.mask_grids, f'leaves no target of length {length} to learn from'
        )
    if length + 1 < 2 * data.tokens_per_grid:
        raise FieldError('config.model.length', length, f'must hold two grids of {data.tokens_per_grid} tokens')
    steps = to_steps(config.train.stop, config.train.batch * length, 'config.train.stop')
    epochs = nca_stream.epochs(data, config.train.batch, steps)

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
    return Data(
        data.vocab, stream, {'nca_grid': evaluator}, {'rules': rules(0).hash, 'valid_rules': valid_rules(0).hash}
    )


def _text(config: Config, mesh: jax.sharding.Mesh, folder: pathlib.Path, progress: Progress) -> Data:
    sharding, length, evaluation = meshes.batch_sharding(mesh), config.model.length, config.eval
    _check_table('config.data.vocab_size', config.data.vocab_size, config.data.vocab_size)
    cache, own = pathlib.Path(config.data.cache).expanduser().absolute(), folder.absolute()
    check(not config.data.cache or cache != own, 'config.data.cache', config.data.cache, 'must not be the --workdir')
    prepared = distributed.first(lambda: prepare_text(config.data, folder / 'text', progress))
    _check_table('config.data.tokenizer', config.data.tokenizer, prepared.vocab.size)
    stream = text.make_stream(prepared, config.seed, 'train', config.train.batch, length, sharding)
    windows = evaluation.batch * evaluation.batches
    valid = text.make_eval_range(prepared, 'valid', evaluation.batch, length, windows, sharding)
    evaluator = perplexity.make_evaluator(config.model, prepared.vocab, mesh, valid.stream, valid.steps, valid.bytes)
    hashes = {'text': prepared.identity, 'tokenizer': prepared.tokenizer_identity}
    asked = _benchmark(config, prepared.vocab, prepared.tokenizer, mesh, folder, {})
    return Data(prepared.vocab, stream, {'perplexity': evaluator} | asked.evaluators, hashes | asked.hashes)


def _instruct(config: Config, mesh: jax.sharding.Mesh, folder: pathlib.Path, progress: Progress) -> Data:
    sharding, length, data = meshes.batch_sharding(mesh), config.model.length, config.data
    found = _tokenizer(config, folder)
    distributed.first(lambda: distributed.is_first() and _keep(found, folder))
    prepared = distributed.first(lambda: instruct.prepare_instruct(data, found, folder / 'problems', progress))
    _check_table('config.data.tokenizer', data.tokenizer, prepared.vocab.size)
    hashes = {'problems': prepared.identity, 'tokenizer': prepared.tokenizer_identity}
    asked = _benchmark(config, prepared.vocab, found, mesh, folder, {data.problems: prepared.problems})
    hashes |= asked.hashes
    if data.problems.task == CODE:  # there is nothing to train on, so it's evaluated alone
        return Data(prepared.vocab, _nothing, asked.evaluators, hashes)
    if distributed.is_first():
        print(instruct.describe(data, prepared, config.seed, length), flush=True)

    def stream(split: str, batch: int) -> Callable[[int], Batch]:
        return instruct.make_stream(data, prepared, config.seed, split, batch, length, sharding)

    valid = stream('valid', config.eval.batch)
    loss = held_out.make_evaluator(config.model, prepared.vocab, mesh, valid, config.eval.batches, {})
    return Data(prepared.vocab, stream('train', config.train.batch), {'held_out': loss} | asked.evaluators, hashes)


def _nothing(step: int) -> Batch:
    raise UserError('there is nothing to train on')


def _tokenizer(config: Config, folder: pathlib.Path | None) -> Tokenizer:
    """That of the data's file, or else of the run whose weights are carried, of which the run keeps a copy."""
    if config.data.tokenizer:
        return tokenizer.load(config.data.tokenizer)
    if folder is not None and (folder / 'run.json').exists():  # before that the file may be of another beginning
        return tokenizer.load(str(folder / tokenizer.FILE))
    allowed = 'must be a tokenizer.json, since no parent (config.init_from) has one'
    check(config.init_from is not None, 'config.data.tokenizer', '', allowed)
    parent = pathlib.Path(config.init_from.run)
    manifest = read_manifest(parent.absolute() / 'checkpoints', config.init_from.step)
    found = tokenizer.load_of_run(parent, manifest, None)
    check(found is not None, 'config.data.tokenizer', '', allowed)
    return found


def _keep(found: Tokenizer, folder: pathlib.Path) -> None:
    """A later stage asks this run for its tokenizer, wherever that came from."""
    if not (folder / 'run.json').exists():
        files.write(folder / tokenizer.FILE, found.to_str())


class Asked(NamedTuple):
    """What a benchmark adds to a stage's data: nothing, where the config has none."""

    evaluators: dict[str, Callable[[Any, int], dict]]
    hashes: dict[str, str]


def _benchmark(
    config: Config,
    vocab: Vocab,
    found: Tokenizer,
    mesh: jax.sharding.Mesh,
    folder: pathlib.Path,
    loaded: Mapping[ProblemsConfig, Problems],
) -> Asked:
    """`loaded`: problems that the stage has read for its own ends."""
    asked = config.benchmark
    if asked is None:
        return Asked({}, {})
    problems = loaded.get(asked.problems) or distributed.first(
        lambda: load_problems(asked.problems, folder / 'problems')
    )
    evaluator = benchmark.make_evaluator(
        asked, problems, config.model, vocab, found, mesh, config.seed, folder / 'answers'
    )
    return Asked({'benchmark': evaluator}, {'benchmark': problems.identity})


def _dyck(config: Config, mesh: jax.sharding.Mesh, folder: pathlib.Path, progress: Progress) -> Data:
    closing = {'close': lambda targets_BxL: targets_BxL >= config.data.kinds}
    _check_table('config.data.kinds', config.data.kinds, config.data.vocab.size)
    return _generated(config, mesh, dyck.sequences, closing)


def _copy(config: Config, mesh: jax.sharding.Mesh, folder: pathlib.Path, progress: Progress) -> Data:
    _check_table('config.data.size', config.data.size, config.data.vocab.size)
    length, period = config.model.length, config.data.period
    check(period[1] < length, 'config.data.period', period, f'must end below config.model.length = {length}')
    return _generated(config, mesh, controls.copy_sequences, {})


def _noise(config: Config, mesh: jax.sharding.Mesh, folder: pathlib.Path, progress: Progress) -> Data:
    _check_table('config.data.size', config.data.size, config.data.vocab.size)
    return _generated(config, mesh, controls.noise_sequences, {})


def _generated(config: Config, mesh: jax.sharding.Mesh, sequences: Callable, subsets: dict[str, Callable]) -> Data:
    """A stage whose rows are computed from their numbers: the config says all, so there is nothing to hash."""
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
