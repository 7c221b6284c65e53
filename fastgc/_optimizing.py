"""Search for generators whose worst set of rows is well conditioned; `fastgc.codes.optimized` shows the results.

The condition number of k rows grows without bound where they become dependent, and descent cannot cross that wall: it
stays among the codes whose k x k minors have the signs of the start's. From a random start these signs are bad, and the
result is too. Symmetric starts are few enough to try many sign patterns, and the best codes found are symmetric: the
rows are orbits of a cyclic group, ``row (j, t) = R^t v_j`` with R an orthogonal k x k matrix of which ``R^g = ±1`` on
each irreducible part. One orbit gives the harmonic frames, g = 1 any code.

A search draws R and the v_j, keeps the best draws, descends by L-BFGS on a soft maximum of the smooth condition number
``|G_F| |G_F^-1|`` in the Frobenius norm, and ends with steps of linear programming on the condition number itself: the
changes of all nearly worst sets are linearised at once and their maximum is minimised in a box. Budgets are numbers of
steps, never of seconds. The same NumPy, SciPy and LAPACK give the same generator; others may round differently.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Patterns = npt.NDArray[np.intp]

_SHARPNESS = (3.0, 10.0, 30.0, 100.0)
"""Of the soft maximum, stage by stage; each is followed for `_STAGE_STEPS` steps of L-BFGS."""
_STAGE_STEPS = 40
_HOPELESS = 25.0  # log of a condition number: a draw whose symmetry makes some set dependent
_LARGEST_PROGRAM = 500  # sets in one linear program


@dataclass(frozen=True)
class Symmetry:
    """A cyclic group acting on the rows of a generator: orbits of length g, and perhaps one row that stays.

    Attributes
    ----------
    powers : ndarray, shape (g, k, k)
        R^0 … R^(g-1).
    orbits : int
    fixed : ndarray, shape (k, k), optional
        The projector on the vectors that R keeps or negates, in which the last row lies; None: there is no such row.
    """

    powers: Array
    orbits: int
    fixed: Array | None = None

    @property
    def rows(self) -> int:
        """Of the generator."""
        return self.orbits * len(self.powers) + (self.fixed is not None)

    @property
    def vectors(self) -> int:
        """Rows that determine all."""
        return self.orbits + (self.fixed is not None)

    def generator(self, vectors: Array) -> Array:
        """The generator, shape (rows, k), of vectors of shape (vectors, k)."""
        k = vectors.shape[1]
        rows = np.einsum("tab,jb->jta", self.powers, vectors[: self.orbits]).reshape(-1, k)
        return rows if self.fixed is None else np.vstack([rows, vectors[-1] @ self.fixed])

    def pull(self, gradient: Array) -> Array:
        """The gradient by the vectors, of one by the generator."""
        k = gradient.shape[1]
        length = self.orbits * len(self.powers)
        by_vectors = np.einsum("tab,jta->jb", self.powers, gradient[:length].reshape(self.orbits, -1, k))
        return by_vectors if self.fixed is None else np.vstack([by_vectors, gradient[-1] @ self.fixed])

    def representatives(self) -> Patterns:
        """One set of k rows for each class of sets that the group carries into each other."""
        g, k = len(self.powers), self.powers.shape[1]
        image = [first + (t + 1) % g for first in range(0, self.orbits * g, g) for t in range(g)]
        image += [self.rows - 1] * (self.fixed is not None)
        seen: set[tuple[int, ...]] = set()
        kept = []
        for rows in combinations(range(self.rows), k):
            if rows in seen:
                seen.remove(rows)
                continue
            kept.append(rows)
            other: tuple[int, ...] = rows
            for _ in range(g - 1):
                other = tuple(sorted(image[i] for i in other))
                if other == rows:
                    break
                seen.add(other)
        return np.array(kept, dtype=np.intp)


def no_symmetry(n: int, k: int) -> Symmetry:
    """Every row on its own."""
    return Symmetry(np.eye(k)[None], n)


def draw(n: int, k: int, order: int, random: np.random.Generator) -> tuple[Symmetry, Array]:
    """A random symmetry of a given order g, where n is a multiple of g or one more, and random vectors.

    R is a sum of rotations by multiples of 2 pi / g, or by odd multiples of pi / g.
    """
    orbits, fixed = divmod(n, order)
    while True:
        half_turn = int(random.integers(2))  # frequencies are counted in half turns of the circle over g
        turns: list[int] = []
        dimension = 0
        while dimension < k:
            turn = 2 * int(random.integers(order // 2 + 1)) + half_turn
            if turn <= order:
                turns.append(turn)
                dimension += 1 if turn in (0, order) else 2
        if dimension == k and (not fixed or 0 in turns or order in turns):
            break
    rotation = np.zeros((k, k))
    at = 0
    for turn in turns:
        if turn in (0, order):
            rotation[at, at] = 1.0 if turn == 0 else -1.0
            at += 1
        else:
            c, s = np.cos(np.pi * turn / order), np.sin(np.pi * turn / order)
            rotation[at : at + 2, at : at + 2] = [[c, -s], [s, c]]
            at += 2
    powers = [np.eye(k)]
    while len(powers) < order:
        powers.append(powers[-1] @ rotation)
    projector = None
    if fixed:
        diagonal = np.diag(rotation)
        signs = [sign for sign in (1.0, -1.0) if (diagonal == sign).any()]
        projector = np.diag((diagonal == signs[random.integers(len(signs))]).astype(np.float64))
    symmetry = Symmetry(np.array(powers), orbits, projector)
    return symmetry, random.standard_normal((symmetry.vectors, k))


# The figure and its gradients -----------------------------------------------------------------------------------------


def log_conditions(generator: Array, patterns: Patterns) -> Array:
    """Logarithms of the condition numbers of sets of k rows."""
    values = np.linalg.svd(generator[patterns], compute_uv=False)
    return np.asarray(np.log(values[:, 0] / np.maximum(values[:, -1], 1e-300)))


def _frobenius(generator: Array, patterns: Patterns) -> tuple[Array, Array]:
    """Logarithms of ``|G_F| |G_F^-1|`` in the Frobenius norm, and gradients by G_F."""
    rows = generator[patterns]
    inverses = np.linalg.inv(rows)
    size = np.einsum("fij,fij->f", rows, rows)
    inverse_size = np.einsum("fij,fij->f", inverses, inverses)
    transposed = inverses.transpose(0, 2, 1)
    gradients = rows / size[:, None, None]
    gradients -= transposed @ inverses @ transposed / inverse_size[:, None, None]
    return np.log(size * inverse_size) / 2, gradients


def _spectral(generator: Array, patterns: Patterns) -> tuple[Array, Array]:
    """Logarithms of the condition numbers and gradients by G_F: outer products of singular vectors."""
    left, values, right = np.linalg.svd(generator[patterns])
    large = left[:, :, 0, None] * right[:, None, 0, :] / values[:, 0, None, None]
    small = left[:, :, -1, None] * right[:, None, -1, :] / values[:, -1, None, None]
    return np.log(values[:, 0] / values[:, -1]), large - small


def _scaled(vectors: Array) -> Array:
    """Vectors of mean square length 1."""
    return np.asarray(vectors * np.sqrt(len(vectors)) / np.linalg.norm(vectors))


# Descent --------------------------------------------------------------------------------------------------------------


def soften(symmetry: Symmetry, vectors: Array, patterns: Patterns, sharpness: float) -> tuple[float, Array]:
    """Lower a soft maximum of the smooth condition number by `_STAGE_STEPS` steps of L-BFGS.

    Returns
    -------
    float, ndarray
        The logarithm of the worst smooth condition number, and the vectors.
    """
    from scipy.optimize import minimize

    shape = vectors.shape
    vectors = _scaled(vectors)
    numbers = _frobenius(symmetry.generator(vectors), patterns)[0]
    active = patterns[numbers > numbers.max() - 1.0 - 10 / sharpness]

    def soft_maximum(x: Array) -> tuple[float, Array]:
        try:
            numbers, gradients = _frobenius(symmetry.generator(x.reshape(shape)), active)
        except np.linalg.LinAlgError:  # a step onto the wall
            return _HOPELESS, np.zeros(x.size)
        weights = np.exp(sharpness * (numbers - numbers.max()))
        total = weights.sum()
        by_rows = np.zeros((symmetry.rows, shape[1]))
        np.add.at(by_rows, active, (weights / total)[:, None, None] * gradients)
        return float(numbers.max() + np.log(total) / sharpness), symmetry.pull(by_rows).ravel()

    result = minimize(soft_maximum, vectors.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": _STAGE_STEPS})
    vectors = _scaled(result.x.reshape(shape))
    return _worst_smooth(symmetry, vectors, patterns), vectors


def _worst_smooth(symmetry: Symmetry, vectors: Array, patterns: Patterns) -> float:
    try:
        return float(_frobenius(symmetry.generator(vectors), patterns)[0].max())
    except np.linalg.LinAlgError:
        return _HOPELESS


def level(symmetry: Symmetry, vectors: Array, patterns: Patterns, steps: int, radius: float = 0.02) -> Array:
    """Lower the worst condition number by linear programs in a box, whose size follows how well they foretell."""
    from scipy.optimize import linprog

    vectors = _scaled(vectors)
    numbers = log_conditions(symmetry.generator(vectors), patterns)
    for _ in range(steps):
        worst = numbers.max()
        near = np.flatnonzero(numbers > worst - 8 * radius)
        if len(near) > _LARGEST_PROGRAM:
            near = np.argsort(-numbers, kind="stable")[:_LARGEST_PROGRAM]
        values, gradients = _spectral(symmetry.generator(vectors), patterns[near])
        by_rows = np.zeros((len(near), symmetry.rows, vectors.shape[1]))
        by_rows[np.arange(len(near))[:, None], patterns[near]] = gradients
        slopes = np.array([symmetry.pull(g).ravel() for g in by_rows])
        program = linprog(
            np.append(np.zeros(vectors.size), 1.0),
            A_ub=np.hstack([slopes, -np.ones((len(near), 1))]),
            b_ub=worst - values,
            bounds=[(-radius, radius)] * vectors.size + [(None, None)],
            method="highs",
        )
        if program.status != 0:
            radius /= 4
            continue
        assert program.x is not None
        foretold = -program.x[-1]
        moved = vectors + program.x[:-1].reshape(vectors.shape)
        after = log_conditions(symmetry.generator(moved), patterns)
        gain = worst - after.max()
        if gain > 0:
            vectors, numbers = moved, after
        radius *= 2.0 if gain > 0.7 * foretold else 1.0 if gain > 0.2 * foretold else 0.25
        if foretold < 1e-8 or radius < 1e-9:
            break
    return _scaled(vectors)


def search(n: int, k: int, order: int, random: np.random.Generator, draws: int, kept: int) -> Array | None:
    """The best generator found with a symmetry of a given order; None where every draw has a dependent set.

    Of `draws` draws the best `kept` are followed, and after every stage of the descent the better half.
    """
    patterns: Patterns | None = None
    candidates: list[tuple[float, Symmetry, Array]] = []
    for _ in range(draws):
        symmetry, vectors = draw(n, k, order, random)
        if patterns is None:
            patterns = symmetry.representatives()
        worst = _worst_smooth(symmetry, vectors, patterns)
        if worst < _HOPELESS:
            candidates.append((worst, symmetry, vectors))
    if patterns is None or not candidates:
        return None
    for sharpness in _SHARPNESS:
        candidates = sorted(candidates, key=lambda c: c[0])[:kept]
        candidates = [(*soften(s, v, patterns, sharpness), s) for _, s, v in candidates]  # type: ignore[misc]
        candidates = [(worst, s, v) for worst, v, s in candidates]  # type: ignore[misc]
        kept = max(1, kept // 2)
    leveled = []
    for _, symmetry, vectors in sorted(candidates, key=lambda c: c[0])[:kept]:
        generator = symmetry.generator(level(symmetry, vectors, patterns, 25))
        leveled.append((float(log_conditions(generator, patterns).max()), generator))
    return min(leveled, key=lambda c: c[0])[1]


# Codes in closed form, and codes from codes ---------------------------------------------------------------------------


def harmonic(n: int, k: int) -> Array:
    """The first k harmonics at n equal angles, of unit rows: the one orbit of least frequencies.

    Frequencies 0, 1, … over the circle for odd k, and 1/2, 3/2, … for even k: a function that is such a sum has fewer
    than k zeros on the circle (half of it, as a line is counted once), so the code is MDS.
    """
    angles = 2 * np.pi * np.arange(n)[:, None] / n
    frequencies = np.arange(k // 2) + (1.0 if k % 2 else 0.5)
    waves = np.hstack([np.full((n, k % 2), np.sqrt(0.5)), np.cos(angles * frequencies), np.sin(angles * frequencies)])
    return np.asarray(waves * np.sqrt(2.0 / k))


def conference(q: int) -> Array:
    """The [q + 1, (q + 1) / 2] code of Paley's symmetric conference matrix C, for a prime q = 1 modulo 4.

    C has zeros on its diagonal, signs elsewhere, and C C = q I; the eigenvectors of its eigenvalue +sqrt(q) are the
    columns. The rows are equiangular, and PSL(2, q) permutes them (up to signs).
    """
    squares = {x * x % q for x in range(1, q)}
    characters = np.array([0.0] + [1.0 if x in squares else -1.0 for x in range(1, q)])
    matrix = np.ones((q + 1, q + 1))
    matrix[0, 0] = 0.0
    matrix[1:, 1:] = characters[(np.arange(q)[None, :] - np.arange(q)[:, None]) % q]
    values, vectors = np.linalg.eigh(matrix)
    return _scaled(vectors[:, values > 0])


def punctured(generator: Array, row: int) -> Array:
    """The [n - 1, k] code without a row; its sets are sets of the given code."""
    return _scaled(np.delete(generator, row, axis=0))


def shortened(generator: Array, row: int) -> Array:
    """The [n - 1, k - 1] code of the other rows, projected along a row; no worse than the given code.

    For G_F with that row r in it, the inverse's other columns are orthogonal to r, and are the inverse of the
    projected rows: these have neither a larger norm nor a larger inverse.
    """
    basis = np.linalg.svd(generator[row][None])[2][1:]
    return _scaled(np.delete(generator, row, axis=0) @ basis.T)


def dual(generator: Array) -> Array:
    """The [n, n - k] code orthogonal to the given one.

    Where both generators are orthonormal, the smallest singular values of complementary sets of rows are equal (the CS
    decomposition), and the largest are at most 1.
    """
    k = generator.shape[1]
    return _scaled(np.linalg.svd(generator, full_matrices=True)[0][:, k:])


# Codes too long for all sets to be looked at --------------------------------------------------------------------------


def exchange(generator: Array, patterns: Patterns, rounds: int = 6) -> Patterns:
    """Climb from each set to worse ones, by the exchange of one row that does most harm."""
    n, k = generator.shape
    out, into = (part.ravel() for part in np.indices((k, n - k)))
    for _ in range(rounds):
        changed = False
        for at, rows in enumerate(patterns):
            rest = np.setdiff1d(np.arange(n), rows)
            neighbours = np.repeat(rows[None], len(out), axis=0)
            neighbours[np.arange(len(out)), out] = rest[into]
            numbers = log_conditions(generator, np.vstack([rows[None], neighbours]))
            worst = int(numbers.argmax())
            if worst:
                patterns[at] = np.sort(neighbours[worst - 1])
                changed = True
        if not changed:
            break
    return np.unique(patterns, axis=0)


def sample(n: int, k: int, count: int, random: np.random.Generator) -> Patterns:
    """Random sets of k rows, and all sets of k neighbours on the circle."""
    neighbours = np.sort((np.arange(n)[:, None] + np.arange(k)) % n, axis=1)
    drawn = np.sort(random.permuted(np.tile(np.arange(n), (count, 1)), axis=1)[:, :k], axis=1)
    return np.unique(np.vstack([neighbours, drawn]), axis=0)


SAMPLED_SETS = 1500
CLIMBED_SETS = 12


def search_sampled(n: int, k: int, draws: int, kept: int) -> Array:
    """As `search`, for every order, over an active set of patterns: a sample, and the worst sets that exchange finds.

    What descends is followed by what is worst for it: after every stage the sets that its exchange found join the
    active set. The harmonic code, and what conference matrices give, are among those compared.
    """
    random = np.random.default_rng([n, k])
    pool = sample(n, k, SAMPLED_SETS, random)
    full = no_symmetry(n, k)
    finalists = [harmonic(n, k), *from_conferences(n, k)]
    candidates: list[tuple[float, Symmetry, Array]] = []
    for order in (g for g in range(3, n) if n % g <= 1 and n // g > 1):
        for _ in range(draws):
            symmetry, vectors = draw(n, k, order, random)
            worst = _worst_smooth(symmetry, vectors, pool)
            if worst < _HOPELESS:
                candidates.append((worst, symmetry, vectors))
    candidates = sorted(candidates, key=lambda c: c[0])[:kept]
    for sharpness in _SHARPNESS:
        followed = []
        for _, symmetry, vectors in candidates:
            vectors = soften(symmetry, vectors, pool, sharpness)[1]
            pool = np.unique(np.vstack([pool, climbed(symmetry.generator(vectors), pool)]), axis=0)
            followed.append((_worst_smooth(symmetry, vectors, pool), symmetry, vectors))
        candidates = sorted(followed, key=lambda c: c[0])[: max(1, len(followed) // 2)]
    finalists += [symmetry.generator(vectors) for _, symmetry, vectors in candidates]
    for generator in finalists:
        pool = np.unique(np.vstack([pool, climbed(generator, pool)]), axis=0)
    best = min(finalists, key=lambda g: float(log_conditions(g, pool).max()))
    for _ in range(3):
        leveled = full.generator(level(full, best, pool, 3))
        pool = np.unique(np.vstack([pool, climbed(leveled, pool)]), axis=0)
        if log_conditions(leveled, pool).max() < log_conditions(best, pool).max():
            best = leveled
    return best


def from_conferences(n: int, k: int) -> Iterator[Array]:
    """Codes of conference matrices, shortened to k columns and punctured to n rows."""
    for q in (17, 29, 37, 41, 53, 61):
        surplus = (q + 1) // 2 - k
        if surplus >= 0 and q + 1 - surplus >= n:
            generator = conference(q)
            for _ in range(surplus):
                generator = shortened(generator, 0)
            while len(generator) > n:
                generator = punctured(generator, 0)
            yield generator


def climbed(generator: Array, pool: Patterns) -> Patterns:
    """The worst sets of a pool, made worse by exchange."""
    numbers = log_conditions(generator, pool)
    return exchange(generator, pool[np.argsort(-numbers, kind="stable")[:CLIMBED_SETS]].copy())
