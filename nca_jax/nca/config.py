"""The configuration of a source of automata."""

import dataclasses

from nca_jax.batch import check_vocab
from nca_jax.errors import check
from nca_jax.nca.automaton import RolloutSpec, RuleSpec
from nca_jax.nca.patches import PatchVocab, tokens_per_grid

COUNTS = (
    *('band_sample', 'rules_per_epoch', 'trajectories_per_rule', 'candidates_per_rule'),
    *('search_block', 'stream_block'),
)
CHOICES = {
    'band_by': ('score', 'quantile'),
    'held_out': ('rules', 'trajectories'),
    'shuffle': ('none', 'tokens', 'frames'),
}
# Compressors with their efforts, and the change rate, which has none.
LEVELS = {'gzip': (0, 9), 'zstd': (1, 22), 'lzma': (0, 9), 'change_rate': (0, 0)}


@dataclasses.dataclass(frozen=True)
class ComplexityConfig:
    """How a trajectory is scored; the paper's values in brackets."""

    # 'gzip' (paper), 'zstd' or 'lzma': compressed over raw size of the patch tokens. 'change_rate': the share of cells
    # that change in an update.
    measure: str
    # Length of what is scored, from the first frame on (10). The change rate takes a frame after each update.
    frames: int
    # Width of the little-endian integers that are compressed (4); scores depend on it.
    bytes_per_token: int
    # The compressor's effort (9); 0 for the change rate.
    level: int

    def __post_init__(self):
        check(self.measure in LEVELS, 'measure', self.measure, f'one of {", ".join(LEVELS)}')
        least = 2 if self.measure == 'change_rate' else 1
        check(self.frames >= least, 'frames', self.frames, f'at least {least}')
        check(self.bytes_per_token in (1, 2, 4, 8), 'bytes_per_token', self.bytes_per_token, '1, 2, 4 or 8')
        low, high = LEVELS[self.measure]
        check(low <= self.level <= high, 'level', self.level, f'{low} to {high} for {self.measure}')


@dataclasses.dataclass(frozen=True)
class NCAConfig:
    """Sequences of automata. Numbers in brackets are the paper's; the release of its code is named where it differs."""

    rule: RuleSpec
    # Updates before the first frame (10), and from one frame to the next (1).
    burn_in: int
    stride: int
    # Side of the square of cells that makes one token (2).
    patch: int
    # How a rule's first trajectory is scored.
    complexity: ComplexityConfig
    # Rules with low < score < high are accepted, such as gzip ratios in (0.5, 2.0) for the paper's 50+ %.
    band: tuple[float, float]
    # 'score' takes the band as it is. 'quantile' takes it as shares of unfiltered rules: (0.5, 1.0) is the more complex
    # half for every alphabet and measure.
    band_by: str
    # Number of unfiltered rules whose scores give the quantiles.
    band_sample: int
    # Size of a bank of accepted rules (16,000), and sequences drawn from each rule in an epoch (1).
    rules_per_epoch: int
    trajectories_per_rule: int
    # True: another bank each epoch (paper). False: one bank for all epochs, with new trajectories (release).
    fresh_rules: bool
    # Validation has new 'rules' (in a small family, such as the 256 elementary ones, partly the same), or new
    # 'trajectories' of the training rules (needed where one rule is all).
    held_out: str
    # Controls without dynamics: 'tokens' permutes a sequence's patch tokens, 'frames' its grids; 'none'.
    shuffle: str
    # The targets in the first so many grids carry no loss (1), since the rule can't be known yet.
    mask_grids: int
    # A search gives up after so many candidates for each accepted rule.
    candidates_per_rule: int
    # Trajectories that are computed at a time, in a search and for a batch. Other values may round differently. A
    # device pads its rows of a batch to whole blocks.
    search_block: int
    stream_block: int

    def __post_init__(self):
        for field in COUNTS:
            check(getattr(self, field) >= 1, field, getattr(self, field), 'at least 1')
        for field, choices in CHOICES.items():
            check(getattr(self, field) in choices, field, getattr(self, field), f'one of {", ".join(choices)}')
        check(self.mask_grids >= 0, 'mask_grids', self.mask_grids, 'not negative')
        low, high = self.band
        check(0 <= low < high, 'band', self.band, 'two scores (low, high), 0 <= low < high: this one is empty')
        check(high <= 1 or self.band_by == 'score', 'band', self.band, 'quantiles are at most 1')
        # These two raise errors of their own fields: the patch must tile the grid, the updates must be positive.
        tokens_per_grid(self.vocab, self.rule.height, self.rule.width)
        self.rollout(1)
        check_vocab(self.vocab.size, 'rule.colours', self.rule.colours)
        count, width = self.vocab.start, self.complexity.bytes_per_token
        check(count <= 256**width, 'complexity.bytes_per_token', width, f'enough for {count} tokens')

    @property
    def vocab(self) -> PatchVocab:
        return PatchVocab(self.rule.colours, self.patch)

    @property
    def tokens_per_grid(self) -> int:
        return tokens_per_grid(self.vocab, self.rule.height, self.rule.width)

    @property
    def scored_tokens(self) -> int:
        """Number of tokens that a score compresses: whole grids without their two delimiters (360)."""
        return self.complexity.frames * (self.tokens_per_grid - 2)

    @property
    def first_loss_at(self) -> int:
        """The first target position with a loss, 37 for one grid of 38 tokens: targets are shifted by one."""
        return max(0, self.mask_grids * self.tokens_per_grid - 1)

    def rollout(self, frames: int) -> RolloutSpec:
        return RolloutSpec(self.rule, self.burn_in, self.stride, frames)
