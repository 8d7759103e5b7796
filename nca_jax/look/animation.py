"""Automata that move: many trajectories side by side as one GIF."""

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from nca_jax.report import style

DPI = 100
GREYS = 64  # entries of the GIF's 256 for text and paper; the rest are for cells
SIDE, GAP, LABEL, TITLE, BETWEEN, MARGIN, FOOT = 96, 12, 18, 34, 36, 14, 26  # pixels
FRAME_MS, LAST_FRAME_MS = 160, 1200


def gif(
    blocks: Mapping[str, tuple[np.ndarray, np.ndarray]], colours: int, note: str, columns: int, theme: style.Theme
) -> bytes:
    """Blocks of trajectories side by side, each with its score above: frames (R, T, Y, X) and scores (R), row by row.

    All have the same T, the number of the GIF's frames; a counter at the bottom keeps two of them from being equal.
    """
    count = min(frames.shape[1] for frames, _ in blocks.values())
    rows = max(-(-len(scores) // columns) for _, scores in blocks.values())
    block_width = columns * (SIDE + GAP) - GAP
    width = 2 * MARGIN + len(blocks) * (block_width + BETWEEN) - BETWEEN
    height = TITLE + rows * (SIDE + LABEL + GAP) + FOOT
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    places = []
    for number, (title, (frames_RxTxYxX, scores_R)) in enumerate(blocks.items()):
        left = MARGIN + number * (block_width + BETWEEN)
        figure.text(left / width, 1 - 14 / height, title, fontsize=10, fontweight='bold', va='center')
        for index, (frames_TxYxX, found) in enumerate(zip(frames_RxTxYxX, scores_R, strict=True)):
            x = left + index % columns * (SIDE + GAP)
            y = TITLE + index // columns * (SIDE + LABEL + GAP) + LABEL
            figure.text(x / width, 1 - (y - 4) / height, f'{found:.2f}', fontsize=8, color=theme.muted)
            places.append((x, y, frames_TxYxX))
    figure.text(MARGIN / width, 9 / height, f'above each: {note}', fontsize=8, color=theme.muted)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    paper = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(GREYS, dither=Image.Dither.NONE)
    shown = min(colours, 256 - GREYS)
    palette = np.zeros((256, 3), np.uint8)
    greys = np.array(paper.getpalette(), np.uint8).reshape(-1, 3)[:GREYS]
    palette[: len(greys)] = greys
    palette[GREYS : GREYS + shown] = style.cell_colours(shown)
    images = []
    for t in range(count):
        pixels = np.array(paper)
        for x, y, frames_TxYxX in places:
            cells = GREYS + frames_TxYxX[t].astype(int) * shown // colours
            pixels[y : y + SIDE, x : x + SIDE] = enlarged(cells)
        pixels[-6:-3, MARGIN : MARGIN + (t + 1) * (width - 2 * MARGIN) // count] = GREYS
        image = Image.fromarray(pixels.astype(np.uint8))
        image.putpalette(palette.tobytes())
        images.append(image)
    buffer = io.BytesIO()
    pauses = [FRAME_MS] * (count - 1) + [LAST_FRAME_MS]
    images[0].save(buffer, 'gif', save_all=True, append_images=images[1:], duration=pauses, loop=0, optimize=False)
    return buffer.getvalue()


def enlarged(cells_YxX: np.ndarray) -> np.ndarray:
    """The grid as SIDE x SIDE pixels, each the cell it lies in."""
    y, x = (np.arange(SIDE) * size // SIDE for size in cells_YxX.shape)
    return cells_YxX[np.ix_(y, x)]
