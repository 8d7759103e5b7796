"""What sequences of automata are like, in numbers. NumPy alone; all information is in bits.

Letters beside the README's: S sequences, N samples of a sequence, K cells of a patch.
"""

import numpy as np


def rank_counts(tokens: np.ndarray) -> np.ndarray:
    """How often each token that occurs does so, the most frequent first."""
    return np.sort(np.unique(tokens, return_counts=True)[1])[::-1]


def plugin_entropy(counts: np.ndarray) -> np.ndarray:
    """Entropy of the observed frequencies along the last axis: biased downwards by about (kinds - 1) / 2N nats."""
    counts = np.asarray(counts, float)
    shares = counts / counts.sum(-1, keepdims=True)
    return -np.sum(shares * np.log2(shares, out=np.zeros_like(shares), where=shares > 0), -1)


def entropy(counts: np.ndarray) -> np.ndarray:
    """Entropy along the last axis with Miller and Madow's correction for that bias (kinds: those that occur)."""
    counts = np.asarray(counts)
    kinds = (counts > 0).sum(-1)
    return plugin_entropy(counts) + (kinds - 1) / (2 * np.log(2) * counts.sum(-1))


def zipf_exponent(counts: np.ndarray, least: float, ranks: int = 2) -> float:
    """Maximum-likelihood a of frequency ~ rank^-a over ranks that occur at least `least` times: beyond, noise sorts.

    The likelihood of a truncated Zipf law: its mean log rank is that of the samples. `counts` are as of rank_counts.
    It is a description: a finite sample of any law has some slope. NaN with fewer than so many `ranks` to fit.
    """
    chosen = np.asarray(counts, float)
    chosen = chosen[chosen >= least]
    if len(chosen) < ranks:
        return float('nan')
    log_rank = np.log(np.arange(1, len(chosen) + 1))
    wanted = chosen @ log_rank / chosen.sum()
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        weights = np.exp(-middle * (log_rank - log_rank[0 if middle > 0 else -1]))
        low, high = (middle, high) if weights @ log_rank / weights.sum() > wanted else (low, middle)
    return (low + high) / 2


def mutual_information(x_SxN: np.ndarray, y_SxN: np.ndarray, size: int) -> np.ndarray:
    """Plug-in mutual information of x and y, both in 0..size-1, within each row, (S).

    Biased upwards by about (size - 1)^2 / 2N nats, N counting samples that don't depend on one another: subtract that
    of `displaced` samples.
    """
    rows = len(x_SxN)
    code_SxN = (np.arange(rows)[:, None] * size + x_SxN) * size + y_SxN
    joint = np.bincount(code_SxN.ravel(), minlength=rows * size * size).reshape(rows, size, size)
    either = plugin_entropy(joint.sum(2)) + plugin_entropy(joint.sum(1))
    return np.maximum(0.0, either - plugin_entropy(joint.reshape(rows, -1)))


def shuffled(samples: np.ndarray, seed: int) -> np.ndarray:
    """All values of each sequence (axis 0) in a random order of its own: the same counts, and no dependence."""
    rows_SxN = samples.reshape(len(samples), -1)
    return np.random.default_rng(seed).permuted(rows_SxN, axis=1).reshape(samples.shape)


def displaced(samples: np.ndarray, seed: int) -> np.ndarray:
    """The places of each sequence (S, T, ...) in a random order of its own, the same in all its frames.

    Each place keeps its values over time, so that slow cells are as alike by chance as before; where they are is lost.
    """
    places_SxTxN = samples.reshape(*samples.shape[:2], -1)
    order_SxN = np.tile(np.arange(places_SxTxN.shape[2]), (len(samples), 1))
    order_SxN = np.random.default_rng(seed).permuted(order_SxN, axis=1)
    return np.take_along_axis(places_SxTxN, order_SxN[:, None], 2).reshape(samples.shape)


def cells_of_tokens(tokens: np.ndarray, colours: int, count: int) -> np.ndarray:
    """The `count` cells of each patch token, along a new last axis."""
    return (np.asarray(tokens)[..., None] // colours ** np.arange(count) % colours).astype(np.uint8)


def tokens_of_cells(cells: np.ndarray, colours: int) -> np.ndarray:
    """The inverse of `cells_of_tokens`."""
    return cells.astype(int) @ colours ** np.arange(cells.shape[-1])


def information_by_tokens(
    now_SxTxPxK: np.ndarray, later_SxTxPxK: np.ndarray, colours: int, tokens_per_grid: int, distance: int
) -> float:
    """Mean over sequences of the information between a cell and its like in the patch so many tokens later.

    The second cell is taken from `later_SxTxPxK`: the same array again, or a `displaced` one for what chance alone
    gives. A frame takes `tokens_per_grid` = P + 2 tokens; its delimiters take part in the distance alone. NaN where two
    patches never are so far apart.
    """
    sequences, frames, patches, count = now_SxTxPxK.shape
    number_TxS = np.full((frames, tokens_per_grid), -1)
    number_TxS[:, 1:-1] = np.arange(frames * patches).reshape(frames, patches)
    number_L = number_TxS.ravel()
    x_L, y_L = number_L[:-distance], number_L[distance:]
    both = (x_L >= 0) & (y_L >= 0)
    if not both.any():
        return float('nan')
    now, later = (cells.reshape(sequences, -1, count) for cells in (now_SxTxPxK, later_SxTxPxK))
    x_SxN, y_SxN = now[:, x_L[both]].reshape(sequences, -1), later[:, y_L[both]].reshape(sequences, -1)
    return mutual_information(x_SxN, y_SxN, colours).mean()


def information_by_place(now_SxTxYxX: np.ndarray, later_SxTxYxX: np.ndarray, colours: int, dt: int, dx: int) -> float:
    """As `information_by_tokens`, of a cell and the one dt frames later and dx cells to its right on the torus."""
    sequences, frames = now_SxTxYxX.shape[:2]
    x, y = now_SxTxYxX[:, : frames - dt], np.roll(later_SxTxYxX[:, dt:], -dx, axis=3)
    return mutual_information(x.reshape(sequences, -1), y.reshape(sequences, -1), colours).mean()


def still_share(frames_SxTxYxX: np.ndarray) -> float:
    """Share of the trajectories in which nothing ever changes."""
    return float((frames_SxTxYxX == frames_SxTxYxX[:, :1]).all((1, 2, 3)).mean())
