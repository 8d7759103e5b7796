"""What a model says of texts: how likely they are, and how they go on. For requests of any length and number."""

import dataclasses
import functools
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from nca_jax import keys
from nca_jax import mesh as meshes
from nca_jax.batch import Vocab
from nca_jax.data import tokenizer as bpe
from nca_jax.decode.decoder import DecodeConfig, bucket, make_decoder
from nca_jax.decode.sampling import Sampling, cut, make_stops
from nca_jax.decode.schedule import Prompt
from nca_jax.errors import check
from nca_jax.model import transformer
from nca_jax.model.config import ModelConfig
from nca_jax.model.loss import cross_entropy
from nca_jax.progress import Progress, silent

CHUNK = 32  # tokens that are written before the host looks
MAX_TOKENS = 256  # of an answer whose task doesn't say, as the harness has it
LIMITS = ('max_gen_toks', 'max_new_tokens', 'max_tokens', 'max_completion_tokens')  # names of one thing; the first wins
KNOWN = {*LIMITS, 'until', 'do_sample', 'temperature', 'top_p', 'top_k', 'num_beams'}


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that reads text. rows: sequences of a batch over all devices of the mesh. seed: of sampled answers."""

    config: ModelConfig
    vocab: Vocab
    params: dict
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh
    rows: int
    seed: int

    @property
    def end(self) -> int:
        """The end of a text, after which the next one begins: what stands before a text without context."""
        return bpe.end_of_text(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids


class Window(NamedTuple):
    """A piece that the model reads at once: tokens, of which the last `scored` are predicted from those before."""

    tokens: list[int]
    scored: int


class Likelihood(NamedTuple):
    """The log-probability of a continuation in nats, and whether it is what greedy decoding would write."""

    nats: float
    greedy: bool


@dataclasses.dataclass(frozen=True)
class Answering:
    """How requests are answered: `most` tokens, up to the first of the strings `until`."""

    sampling: Sampling
    until: tuple[str, ...]
    most: int


def encode_pair(model: Model, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of both as they are in the whole, where white space goes with what follows it.

    Without context the continuation follows the end of a text. Where a token would span both, so that the
    continuation has none of its own, it is encoded apart.
    """
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    if not kept:
        return [model.end], model.encode(continuation)
    before = model.encode(kept)
    return before, model.encode(kept + continuation)[len(before) :] or model.encode(continuation)


def windows(context: Sequence[int], continuation: Sequence[int], length: int) -> list[Window]:
    """What a model of `length` reads to predict each token of the continuation once, after the context.

    One window with what fits of the context; for a longer continuation several, of which the first holds the last
    token of the context alone and the others are full, as in lm_eval.utils.get_rolling_token_windows.
    """
    if not continuation:
        return []
    if len(continuation) <= length:
        return [Window([*context, *continuation][-(length + 1) :], len(continuation))]
    tokens, found = [context[-1], *continuation], []
    for start in range(0, len(continuation), length):
        end = min(start + length, len(continuation))
        found.append(Window(tokens[end - length : end + 1], end - start))
    return found


def likelihoods(
    model: Model, pairs: Sequence[tuple[list[int], list[int]]], progress: Progress = silent
) -> list[Likelihood]:
    """Of each continuation after its context, both as tokens; (0, True) for an empty one."""
    pieces = [windows(*pair, model.config.length) for pair in pairs]
    whose = [number for number, found in enumerate(pieces) for _ in found]
    nats, greedy = [0.0] * len(pairs), [True] * len(pairs)
    scores = score(model, [window for found in pieces for window in found], progress)
    for number, found in zip(whose, scores, strict=True):
        nats[number] += found.nats
        greedy[number] &= found.greedy
    return [Likelihood(*both) for both in zip(nats, greedy, strict=True)]


def score(model: Model, asked: Sequence[Window], progress: Progress = silent) -> list[Likelihood]:
    """Of the scored tokens of each window. The longest come first, so that a batch holds windows of like length."""
    order = sorted(range(len(asked)), key=lambda number: -len(asked[number].tokens))
    found: list[Likelihood | None] = [None] * len(asked)
    sharding = meshes.batch_sharding(model.mesh)
    for start in range(0, len(order), model.rows):
        numbers = order[start : start + model.rows]
        length = min(model.config.length, bucket(len(asked[numbers[0]].tokens) - 1))
        tokens_BxL1 = np.zeros((model.rows, length + 1), np.int32)
        for row, number in enumerate(numbers):
            tokens_BxL1[row, : len(asked[number].tokens)] = asked[number].tokens
        with meshes.use(model.mesh):
            batch = jax.device_put(tokens_BxL1, sharding)
            nll_BxL, likeliest_BxL = jax.device_get(measure(model.config, model.vocab, model.params, batch))
        for row, number in enumerate(numbers):
            last = len(asked[number].tokens) - 1
            scored = slice(last - asked[number].scored, last)
            nats = -float(np.sum(nll_BxL[row, scored], dtype=np.float64))
            found[number] = Likelihood(nats, bool(likeliest_BxL[row, scored].all()))
        progress('scored', start + len(numbers), len(order))
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def measure(config: ModelConfig, vocab: Vocab, params: dict, tokens_BxL1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of each token but the first (B, L): its negative log-likelihood in nats, and whether it is the likeliest."""
    logits_BxLxV = transformer.apply(config, params, tokens_BxL1[:, :-1], vocab)
    targets_BxL = tokens_BxL1[:, 1:]
    return cross_entropy(logits_BxLxV, targets_BxL), jnp.argmax(logits_BxLxV, axis=-1) == targets_BxL


def answering(options: Mapping[str, Any]) -> Answering:
    """From the generation_kwargs of a task: greedy unless it asks for samples. UserError for what we can't do."""
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        check(name in KNOWN, f'generation_kwargs.{name}', given[name], f'must be one of {", ".join(sorted(KNOWN))}')
    beams, until = given.get('num_beams', 1), given.get('until', [])
    check(beams == 1, 'generation_kwargs.num_beams', beams, 'must be 1: there is no beam search')
    sampled = given.get('do_sample', given.get('temperature', 0) > 0)
    temperature = float(given.get('temperature', 1.0)) if sampled else 0.0
    sampling = Sampling(temperature, float(given.get('top_p', 1.0)), max(0, given.get('top_k', 0)))
    most = int(next((given[name] for name in LIMITS if name in given), MAX_TOKENS))
    check(most > 0, f'generation_kwargs.{LIMITS[0]}', most, 'must be positive')
    return Answering(sampling, tuple(filter(None, [until] if isinstance(until, str) else until)), most)


def answers(model: Model, asked: Sequence[tuple[str, Mapping]], progress: Progress = silent) -> list[str]:
    """The text that follows each context, under its generation_kwargs; equal requests are sampled independently."""
    places = defaultdict(list)
    for place, (_, options) in enumerate(asked):
        places[answering(options)].append(place)
    found: dict[int, str] = {}
    for how, numbers in places.items():
        for number, text in _answers(model, how, [asked[place][0] for place in numbers]):
            found[numbers[number]] = text
            progress('answers', len(found), len(asked))
    return [found[place] for place in range(len(asked))]


def _answers(model: Model, how: Answering, contexts: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Number and answer of each context, as soon as it has ended."""
    places = defaultdict(list)
    for place, context in enumerate(contexts):
        places[context].append(place)
    prompts, length, short = [], model.config.length, 0
    for context, numbers in places.items():
        tokens = fitting(model.encode(context) or [model.end], how.most, length)
        limit = min(how.most, length - len(tokens))
        short += (limit < how.most) * len(numbers)
        prompts.append(Prompt(np.array(tokens), int(keys.crc32(context)), range(len(numbers)), [limit] * len(numbers)))
    if short:
        what = f'of {len(contexts)} answers have room for fewer than {how.most} tokens in length {length}'
        print(f'warning: {short} {what}', file=sys.stderr)
    pieces = bpe.pieces(model.tokenizer)
    pieces += [b''] * (model.vocab.size - len(pieces))  # rows of adopted tables that are no tokens
    stops = make_stops([model.end], how.until, pieces)
    layout = DecodeConfig(model.rows, 1, CHUNK)
    decode = make_decoder(model.config, model.vocab, model.mesh, layout, how.sampling, stops)
    asked = list(places.values())
    for answer in decode(model.params, prompts, model.seed):
        yield asked[answer.prompt][answer.sample], cut(model.tokenizer.decode(answer.tokens.tolist()), how.until)


def fitting(context: list[int], most: int, length: int) -> list[int]:
    """The end of the context that leaves room for `most` tokens, or for half of the length where that is less."""
    return context[-(length - min(most, length // 2)) :]
