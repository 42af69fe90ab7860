"""R-CNN's two linear fits: an SVM with hard negative mining, and ridge regression of boxes.

Girshick et al. 2014, section 2.3 and appendices B and C. The constants that the paper leaves out
are those of the code published with it.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from vidi.types import Array

C = 1e-3
"""What a positive or negative within the margin costs, for features of mean norm 20."""
POSITIVES = 2.0
"""A positive costs so many times more."""
BIAS = 10.0
"""The bias counts as the weight of a feature of this size, so that it is hardly shrunk."""
HARD, EASY = -1.0001, -1.2
"""A negative with a margin over the first is taken in; one under the second is dropped again."""
REFIT = 2000
"""After so many new negatives the SVM is fitted anew."""
ROUGHLY, WELL = 0.1, 0.01
"""The solver's tolerances, of fits on the way (liblinear's own) and of the last."""
ROUNDS = 1000
"""Of the solver, at most (liblinear's own)."""
LAMBDA = 1000.0
"""The ridge's weight, for features of mean norm 20."""
ROWS = 1024
"""So many examples are waited for: each time the whole sum is gone through once."""
STRIP = 1024
"""Columns of a product that are held at once beside the sum."""


class Line(NamedTuple):
    """x · ``weight`` + ``bias``; float64 [D], and a number."""

    weight: Array
    bias: float


class MinedSvm:
    """A linear SVM of one class, all of whose positives are there, float32 [P, D], while negatives
    come image by image, once each.

    The first lot of negatives is taken in whole; of later ones those that the SVM so far does not
    know for sure (the published code's order). Positives and the negatives taken in are in memory,
    and twice as much while it fits.
    """

    def __init__(self, positives: Array) -> None:
        assert len(positives)
        self._positives = positives
        self._negatives: list[Array] = []
        self._new = 0
        self._line: Line | None = None
        self.converged = True
        """Whether the solver came to its end, the last time."""

    def add(self, negatives: Array) -> None:
        """float32 [N, D]."""
        if self._line is not None:
            negatives = negatives[self._margins(negatives) > HARD]
        if not len(negatives):
            return
        self._negatives.append(negatives)
        self._new += len(negatives)
        if self._line is None or self._new > REFIT:
            self._fit(ROUGHLY)

    def finish(self) -> Line | None:
        """The SVM; ``None`` where there was no negative at all."""
        if self._line is not None:
            self._fit(WELL)
        return self._line

    def _margins(self, x: Array) -> Array:
        assert self._line is not None
        return np.asarray(x @ self._line.weight.astype(np.float32) + self._line.bias)

    def _fit(self, tolerance: float) -> None:
        negatives = np.concatenate(self._negatives)
        self._line, self.converged = svm(self._positives, negatives, tolerance)
        self._negatives = [negatives[self._margins(negatives) >= EASY]]
        self._new = 0


def svm(positives: Array, negatives: Array, tolerance: float) -> tuple[Line, bool]:
    """(the SVM between the two, float32 [P, D] and [N, D]; whether the solver came to its end)."""
    from sklearn.exceptions import ConvergenceWarning  # takes a second to import
    from sklearn.svm import LinearSVC

    x = np.concatenate([positives, negatives])
    y = np.zeros(len(x), np.int64)
    y[: len(positives)] = 1
    # The seed is the order in which its solver takes the examples.
    solver = LinearSVC(
        loss="hinge",
        C=C,
        class_weight={0: 1.0, 1: POSITIVES},
        intercept_scaling=BIAS,
        tol=tolerance,
        max_iter=ROUNDS,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the caller says it
        solver.fit(x, y)
    line = Line(solver.coef_[0].astype(np.float64), float(solver.intercept_[0]))
    return line, bool(np.max(solver.n_iter_) < ROUNDS)


class Ridge:
    """Ridge regression of ``outputs`` numbers from ``inputs`` features, whose examples come in any
    lots. The intercept is not penalised. In memory is one matrix of features by features, float64:
    0.7 GB for AlexNet's pool5, 5 GB for VGG's.

    The published code whitens the targets before and undoes it after, which changes nothing: what
    ridge regression predicts is linear in its targets.
    """

    def __init__(self, inputs: int, outputs: int = 4) -> None:
        self.examples = 0
        self._x, self._y = np.zeros(inputs), np.zeros(outputs)
        self._xx, self._xy = np.zeros((inputs, inputs)), np.zeros((inputs, outputs))
        self._waiting: list[tuple[Array, Array]] = []

    def add(self, x: Array, y: Array) -> None:
        """[N, inputs] and [N, outputs]."""
        self.examples += len(x)
        self._waiting.append((x, y))
        if sum(len(rows) for rows, _ in self._waiting) >= ROWS:
            self._take()

    def _take(self) -> None:
        """Adds what waits to the sums."""
        if not self._waiting:
            return
        x, y = (
            np.concatenate(part).astype(np.float64) for part in zip(*self._waiting, strict=True)
        )
        self._waiting.clear()
        self._x += x.sum(0)
        self._y += y.sum(0)
        self._xy += x.T @ y
        for start in range(0, x.shape[1], STRIP):
            strip = slice(start, start + STRIP)
            self._xx[strip] += x[:, strip].T @ x

    def merge(self, other: Ridge) -> None:
        """Takes in the examples that another was given."""
        self._take()
        other._take()
        self.examples += other.examples
        self._x += other._x
        self._y += other._y
        self._xx += other._xx
        self._xy += other._xy

    def centred(self) -> tuple[Array, Array, Array, Array]:
        """(products of features and features, of features and targets, both about their means; the
        features' means; the targets'). In place, for the matrix is large: can be called once."""
        self._take()
        n = max(1, self.examples)
        x, y = self._x / n, self._y / n
        for start in range(0, len(x), STRIP):
            strip = slice(start, start + STRIP)
            self._xx[strip] -= n * np.outer(x[strip], x)
        return self._xx, self._xy - n * np.outer(x, y), x, y

    def solve(self, weight: float = LAMBDA) -> tuple[Array, Array]:
        """(float64 [outputs, inputs], [outputs]): coefficients and intercepts, zero without any
        example. ``weight``: of the squared coefficients. Can be called once."""
        import scipy.linalg

        # About the means the intercept has no part in it.
        xx, right, x, y = self.centred()
        xx.ravel()[:: len(x) + 1] += weight
        # It is symmetric, and only in LAPACK's order of numbers is it overwritten, not copied.
        found = scipy.linalg.solve(xx.T, right, assume_a="pos", overwrite_a=True)
        return found.T, y - x @ found
