"""Following cells: from cell to cell in the latent, in steps of a number such as time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.neighbors import NearestNeighbors

FEWEST_CELLS = 50  # a step to fewer cells would force many ways through them
RIDGE = 1e-6  # for a time without others near it
MOST_KNOTS = 257  # of the mean latent as a function of time


@dataclass(frozen=True)
class Steps:
    """Ways from cells to reference cells of later times, step by step.

    Parameters
    ----------
    windows
        Rows of the reference cells of each step, from the last step back to the first.
    centres
        The time in the middle of each window.
    following
        Rows of the next cells of each reference cell, ``(reference cells, n_neighbors)``.
    first
        Rows of the first cells that each given cell goes to, ``(cells, n_neighbors)``.
    """

    windows: list[np.ndarray]
    centres: list[float]
    following: np.ndarray
    first: np.ndarray

    def fates(self, labels: np.ndarray) -> np.ndarray:
        """Return the probability of each label at the end, ``(cells, labels)``.

        ``labels (reference cells, labels)`` is 1 where a cell of the last window has the label.
        """
        fates = labels.astype(float)
        for rows in self.windows[1:]:
            fates[rows] = fates[self.following[rows]].mean(1)
        return fates[self.first].mean(1)

    def draw_paths(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a row of each step for every cell, ``(cells, steps)`` in the order of time; -1 before its first."""
        step_of = np.full(len(self.following), -1)
        for step, rows in enumerate(self.windows[::-1]):
            step_of[rows] = step
        cells, n_neighbors = self.first.shape
        at = self.first[np.arange(cells), rng.integers(n_neighbors, size=cells)]
        paths = np.full((cells, len(self.windows)), -1)
        for step in range(len(self.windows)):
            is_here = step_of[at] == step
            paths[is_here, step] = at[is_here]
            if step + 1 < len(self.windows):
                drawn = self.following[at, rng.integers(n_neighbors, size=cells)]
                at = np.where(is_here, drawn, at)
        return paths


def window_of(times: np.ndarray, until: float, step: float) -> np.ndarray:
    """Return the number of each time's window, counted back from 0 around ``until``; negative after it."""
    return np.floor((until + step / 2 - times) / step).astype(int)


def follow(
    latents: np.ndarray,
    times: np.ndarray,
    given: np.ndarray,
    given_times: np.ndarray,
    *,
    until: float,
    step: float,
    n_neighbors: int,
) -> Steps:
    """Lead given cells through windows of the reference cells' times, to the nearest cells of each next window.

    What all cells have in common changes from window to window, and would hide which cells belong together. So the mean
    latent of each time, smoothed over half a step, is subtracted first. Types that appear or vanish change this mean
    too. Therefore, all earlier cells are then shifted by their mean way to their nearest later cells, which a new type
    hardly changes. Once only: if this were repeated until nothing changes, all cells before a fork could go the same
    way.

    Parameters
    ----------
    latents, times
        Latents of the reference cells, ``(reference cells, size)``, and their times, ``(reference cells,)``.
    given, given_times
        Those of the given cells. Their times must be at least half a step before ``until``.
    until
        Middle of the last window.
    step
        Width of the windows. Those with fewer than 50 cells are left out, but not the last one. Fewer cells than this
        are not shifted.
    n_neighbors
        Number of next cells of each cell.
    """
    means = _Course(latents, times, step / 2)
    latents, given = latents - means(times), given - means(given_times)
    number, given_number = (window_of(of_cells, until, step) for of_cells in (times, given_times))
    oldest, fewest = given_number.max(), max(FEWEST_CELLS, n_neighbors)
    kept = [0, *(k for k in np.unique(number) if 0 < k < oldest and (number == k).sum() >= fewest)]
    windows = [np.flatnonzero(number == k) for k in kept]
    following = np.full((len(latents), n_neighbors), -1)
    first = np.full((len(given), n_neighbors), -1)
    for k, rows, start in zip(kept, windows, [*kept[1:], oldest], strict=True):
        nearest = NearestNeighbors(n_neighbors=n_neighbors).fit(latents[rows])
        earlier, joins = (np.flatnonzero((of_cells > k) & (of_cells <= start)) for of_cells in (number, given_number))
        shift = np.zeros(latents.shape[1])
        if len(earlier) >= FEWEST_CELLS:
            matched = latents[rows][nearest.kneighbors(latents[earlier], return_distance=False)].mean(1)
            shift = (matched - latents[earlier]).mean(0)
        if len(earlier):
            following[earlier] = rows[nearest.kneighbors(latents[earlier] + shift, return_distance=False)]
        if len(joins):
            first[joins] = rows[nearest.kneighbors(given[joins] + shift, return_distance=False)]
    return Steps(windows, [until - k * step for k in kept], following, first)


class _Course:
    """The mean latent at each time: a local line through the reference cells, with Gaussian weights."""

    def __init__(self, latents: np.ndarray, times: np.ndarray, width: float) -> None:
        self.knots = np.unique(np.quantile(times, np.linspace(0, 1, MOST_KNOTS), method="nearest"))
        distances = (times - self.knots[:, None]) / width
        weights = np.exp(-np.square(distances) / 2)
        weights /= weights.sum(1, keepdims=True)
        centres = (weights * distances).sum(1, keepdims=True)
        squares = (weights * np.square(distances)).sum(1, keepdims=True) + RIDGE
        means, products = weights @ latents, (weights * distances) @ latents
        self.means = (squares * means - centres * products) / (squares - np.square(centres))

    def __call__(self, times: np.ndarray) -> np.ndarray:
        """Return means at ``times (n,)``, ``(n, size)``."""
        return np.stack([np.interp(times, self.knots, column) for column in self.means.T], axis=1)
