"""Answers to the requests of lm-evaluation-harness, of any length: likelihoods and continuations of texts."""

import dataclasses
import functools
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from nca_jax import keys
from nca_jax import mesh as meshes
from nca_jax.batch import Vocab
from nca_jax.data import tokenizer as bpe
from nca_jax.decode.decoder import DecodeConfig, Prompt, bucket, make_decoder
from nca_jax.decode.sampling import Sampling, cut, make_stops
from nca_jax.errors import check
from nca_jax.model import transformer
from nca_jax.model.config import ModelConfig
from nca_jax.model.loss import cross_entropy
from nca_jax.progress import Progress, silent

# The host looks at what is written after as many tokens.
CHUNK = 32
# A continuation has at most so many tokens where its task doesn't say: the harness's own default.
MAX_TOKENS = 256
KNOWN = {'max_gen_toks', 'max_new_tokens', 'until', 'do_sample', 'temperature', 'top_p', 'top_k', 'num_beams'}


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that reads text."""

    config: ModelConfig
    vocab: Vocab
    params: dict
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh
    # Sequences of a batch, over all devices of the mesh.
    rows: int
    # Sampled continuations follow from it.
    seed: int

    @property
    def end(self) -> int:
        # It begins a text, as it does in training.
        return bpe.end_of_text(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids


def make_lm(model: Model, progress: Progress = silent) -> Any:
    """The model as an lm_eval.api.model.TemplateLM, which lm_eval.simple_evaluate takes."""
    from lm_eval.api.model import TemplateLM

    class NcaLM(TemplateLM):
        # It stands before a text without context.
        eot_token_id = model.end

        def tok_encode(self, string: str, **kwargs) -> list[int]:
            return model.encode(string)

        def _loglikelihood_tokens(self, requests, **kwargs) -> list[tuple[float, bool]]:
            # A context of white space has no tokens, since they go with the continuation. Where one token spans both,
            # the continuation has none of its own and is encoded apart.
            pairs = [(before or [model.end], after or model.encode(texts[1])) for texts, before, after in requests]
            return likelihoods(model, pairs, progress)

        def loglikelihood_rolling(self, requests, **kwargs) -> list[float]:
            pairs = [([model.end], model.encode(*request.args)) for request in requests]
            return [nats for nats, _ in likelihoods(model, pairs, progress)]

        def generate_until(self, requests, **kwargs) -> list[str]:
            return continuations(model, [request.args for request in requests], progress)

    return NcaLM()


def windows(context: Sequence[int], continuation: Sequence[int], length: int) -> list[tuple[list[int], int]]:
    """Windows for a model of `length`, which predict each token of the continuation once: (tokens, how many).

    - A continuation that fits has one window, with the end of the context that fits too.
    - A longer one has several: the first holds the last token of the context alone and the others are full, as in
      lm_eval.utils.get_rolling_token_windows.
    """
    if not continuation:
        return []
    if len(continuation) <= length:
        return [([*context, *continuation][-(length + 1) :], len(continuation))]
    tokens, result = [context[-1], *continuation], []
    for start in range(0, len(continuation), length):
        end = min(start + length, len(continuation))
        result.append((tokens[end - length : end + 1], end - start))
    return result


def likelihoods(
    model: Model, pairs: Sequence[tuple[list[int], list[int]]], progress: Progress = silent
) -> list[tuple[float, bool]]:
    """The log-probability in nats of each continuation after its context, and whether greedy decoding would write it.

    Both come as tokens; an empty continuation has (0, True).
    """
    parts = [(number, *window) for number, pair in enumerate(pairs) for window in windows(*pair, model.config.length)]
    # The longest come first, so that a batch holds windows of similar length.
    parts.sort(key=lambda part: -len(part[1]))
    nats, greedy = [0.0] * len(pairs), [True] * len(pairs)
    for start in range(0, len(parts), model.rows):
        batch = parts[start : start + model.rows]
        # Padded to few lengths, so that few programs are compiled.
        length = min(model.config.length, bucket(len(batch[0][1]) - 1))
        tokens_BxL1 = np.zeros((model.rows, length + 1), np.int32)
        for row, (_, tokens, _) in enumerate(batch):
            tokens_BxL1[row, : len(tokens)] = tokens
        with meshes.use(model.mesh):
            placed = jax.device_put(tokens_BxL1, meshes.batch_sharding(model.mesh))
            nll_BxL, likeliest_BxL = jax.device_get(_score(model.config, model.vocab, model.params, placed))
        for row, (number, tokens, predicted) in enumerate(batch):
            last = slice(len(tokens) - 1 - predicted, len(tokens) - 1)
            nats[number] -= float(np.sum(nll_BxL[row, last], dtype=np.float64))
            greedy[number] &= bool(likeliest_BxL[row, last].all())
        progress('scored', start + len(batch), len(parts))
    return list(zip(nats, greedy, strict=True))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(config: ModelConfig, vocab: Vocab, params: dict, tokens_BxL1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(B, L) of each token but the first: its negative log-likelihood in nats, and whether it is the likeliest."""
    logits_BxLxV = transformer.apply(config, params, tokens_BxL1[:, :-1], vocab)
    targets_BxL = tokens_BxL1[:, 1:]
    return cross_entropy(logits_BxLxV, targets_BxL), jnp.argmax(logits_BxLxV, axis=-1) == targets_BxL


def parse_options(options: Mapping[str, Any]) -> tuple[Sampling, tuple[str, ...], int]:
    """A task's generation_kwargs: how to sample, the strings before which an answer ends, and its most tokens.

    Greedy unless they ask for samples. Raises FieldError for what isn't supported.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        check(name in KNOWN, f'generation_kwargs.{name}', given[name], f'must be one of {", ".join(sorted(KNOWN))}')
    beams, until = given.get('num_beams', 1), given.get('until', [])
    check(beams == 1, 'generation_kwargs.num_beams', beams, 'must be 1: there is no beam search')
    # A task that names a temperature wants samples, unless it says otherwise.
    sampled = given.get('do_sample', given.get('temperature', 0) > 0)
    temperature = float(given.get('temperature', 1.0)) if sampled else 0.0
    # Some tasks write -1 for all.
    sampling = Sampling(temperature, float(given.get('top_p', 1.0)), max(0, given.get('top_k', 0)))
    max_tokens = int(given.get('max_gen_toks', given.get('max_new_tokens', MAX_TOKENS)))
    check(max_tokens > 0, 'generation_kwargs.max_gen_toks', max_tokens, 'must be positive')
    return sampling, tuple(filter(None, [until] if isinstance(until, str) else until)), max_tokens


def continuations(model: Model, requests: Sequence[tuple[str, Mapping]], progress: Progress = silent) -> list[str]:
    """The text after each context, from (context, generation_kwargs). Equal requests are sampled independently."""
    # One decoder for each way of writing; within it, equal contexts are read once.
    groups = defaultdict(lambda: defaultdict(list))
    for number, (context, options) in enumerate(requests):
        groups[parse_options(options)][context].append(number)
    length, pieces = model.config.length, bpe.pieces(model.tokenizer)
    # Adopted tables may have rows that are no tokens.
    pieces += [b''] * (model.vocab.size - len(pieces))
    # Prompts differ, so rows share none.
    layout = DecodeConfig(rows=model.rows, share=1, chunk=CHUNK)
    texts: dict[int, str] = {}
    for (sampling, until, max_tokens), numbers_of in groups.items():
        prompts = []
        for context, numbers in numbers_of.items():
            # The end of the context that leaves room for the answer, or for half of the length where that is less.
            tokens = (model.encode(context) or [model.end])[-(length - min(max_tokens, length // 2)) :]
            limits = [min(max_tokens, length - len(tokens))] * len(numbers)
            # Samples depend on the context itself, not on what else is asked.
            prompts.append(Prompt(np.array(tokens), int(keys.crc32(context)), range(len(numbers)), limits))
        limits = [limit for prompt in prompts for limit in prompt.limits]
        if short := sum(limit < max_tokens for limit in limits):
            room = f'room for fewer than {max_tokens} tokens in length {length}'
            print(f'warning: {short} of {len(limits)} answers have {room}', file=sys.stderr)
        stops = make_stops([model.end], until, pieces)
        decode = make_decoder(model.config, model.vocab, model.mesh, layout, sampling, stops)
        numbers_of_prompts = list(numbers_of.values())
        for answer in decode(model.params, prompts, model.seed):
            # The last token may hold more than the stop string.
            text = cut(model.tokenizer.decode(answer.tokens.tolist()), until)
            texts[numbers_of_prompts[answer.prompt][answer.sample]] = text
            progress('answers', len(texts), len(requests))
    return [texts[number] for number in range(len(requests))]
