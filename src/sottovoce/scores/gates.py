"""Where the gates of a cascade stand: for an EER, a cost, a share of trials, or a bound on disagreement.

The first two are arXiv 2606.08078 as we read it (how the paper weighs EER against cost is not public: here the cheapest
that loses little against the last stage's EER, or the least loss within a cost, over a grid). `stop_gates`, for a share
of trials that the first stage answers, and `safe_gates` are ours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sottovoce.errors import BadInput
from sottovoce.scores.cascade import SAME, Gate, Map, Real, Rows, mean_cost, run, stopped
from sottovoce.scores.metrics import eer
from sottovoce.scores.resampling import speaker_numbers

COMBINATIONS = 400  # of gates that are tried for a target, at most
POINTS = 100  # of one gate, at most
DRAWS = 1000  # of speakers, for a share of trials
STEP = 0.005  # of a cosine, between the thresholds that `safe_gates` tests


@dataclass(frozen=True)
class Trade:
    """One choice of gates, and what it gives on the trials it was tried on."""

    distances: tuple[float, ...]  # of each gate from the threshold
    eer: float  # mean over the sets of trials
    cost: float
    stopped: tuple[float, ...]  # share of trials answered by each stage


def distances(mapped: Sequence[Real], threshold: float, most: int = COMBINATIONS) -> list[tuple[float, ...]]:
    """Combinations of gates to try: for each stage but the last quantiles of |score - threshold|, 0 and infinity."""
    points = max(3, min(POINTS, int(most ** (1 / (len(mapped) - 1)))))
    shares = np.linspace(0, 1, points - 1)[1:]
    rows = [[0.0, *np.quantile(np.abs(row - threshold), shares).tolist(), math.inf] for row in mapped[:-1]]
    return list(itertools.product(*(dict.fromkeys(row) for row in rows)))


def trades(
    mapped: Sequence[Real],
    labels: ArrayLike,
    threshold: float,
    costs: Sequence[float],
    tried: Iterable[tuple[float, ...]],
    sets: Sequence[Rows] | None = None,
) -> Iterator[Trade]:
    """EER and mean cost of a trial for each combination of gates in `tried`, in order.

    mapped: (trials,) for each stage, on the last stage's scale   costs: one a stage   sets: rows of trials whose EERs
    are averaged, as those of several lists; left out, all trials are one set
    """
    marks = np.asarray(labels)
    for chosen in tried:
        gates = [Gate.around(threshold, distance) for distance in chosen]
        found = run(lambda stage, rows: mapped[stage][rows], len(mapped[0]), [SAME] * len(mapped), gates)
        shares = tuple(stopped(found.stage, len(mapped)).tolist())
        yield Trade(chosen, mean_eer(found.scores, marks, sets), mean_cost(costs, found.stage), shares)


def mean_eer(scores: Real, labels: NDArray[np.integer[Any]], sets: Sequence[Rows] | None = None) -> float:
    """The mean EER over sets of trials, given as rows; over all trials where none are given."""
    parts = [slice(None)] if sets is None else sets
    return float(np.mean([eer(scores[rows], labels[rows])[0] for rows in parts]))


def front(tried: Sequence[Trade]) -> list[Trade]:
    """The trades that no other beats in both EER and cost, cheapest first."""
    best: list[Trade] = []
    for trade in sorted(tried, key=lambda one: (one.cost, one.eer, one.distances)):
        if not best or trade.eer < best[-1].eer:
            best.append(trade)
    return best


def cheapest(tried: Sequence[Trade], last: float, most: float) -> Trade:
    """The cheapest trade whose EER is at most `most` above the last stage's, and that of all wider gates too.

    tried: with infinite gates among them, whose EER is the last stage's. A trade that is good among wider ones that are
    not is luck, and does not last on other trials.
    """
    near = np.array([trade.eer - last <= most + 1e-12 for trade in tried])
    far = np.array([trade.distances for trade in tried])
    fit = [trade for trade, one in zip(tried, far, strict=True) if near[(far >= one).all(axis=1)].all()]
    if not fit:
        raise BadInput(
            f"gates: none of {len(tried)} choices keeps to the last stage's EER; infinite gates must be tried"
        )
    return min(fit, key=lambda one: (one.cost, one.eer))


def best_within(tried: Sequence[Trade], last: float, most_cost: float) -> Trade:
    """The trade that loses least against the last stage's EER, of those that cost at most `most_cost`.

    An EER below the last stage's is no loss, and no gain either: on development trials it may be luck. Of equals the
    dearest is taken, which follows the last stage best. Raises BadInput, naming the least cost there is.
    """
    fit = [trade for trade in tried if trade.cost <= most_cost + 1e-12]
    if not fit:
        least = min(trade.cost for trade in tried)
        raise BadInput(f"gates: no choice costs {most_cost:g} a trial; the first stage alone costs {least:g}")
    return min(fit, key=lambda one: (max(one.eer - last, 0.0), -one.cost))


# ---- gates that let a share of trials through


def doubts(mapped: Sequence[Real]) -> list[float]:
    """How far the mapped scores of each stage but the last are from the last stage's: root mean square."""
    return [float(np.sqrt(np.mean((row - mapped[-1]) ** 2))) for row in mapped[:-1]]


def stop_gates(
    mapped: Sequence[Real],
    threshold: float,
    enrol_speaker: ArrayLike,
    test_speaker: ArrayLike,
    share: float,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Gate]:
    """The widest gates around the threshold with which the first stage answers at least a share of the trials.

    mapped: (trials,) for each stage, on the last stage's scale   enrol_speaker, test_speaker: (trials,). The share is
    reached in more than `confidence` of the draws of speakers (trials weighted as in `resampling.redrawn`), because on
    other speakers it differs. Gates of later stages are as wide, in proportion to their doubt, as the first. Raises
    BadInput for a share or confidence outside (0, 1) and for fewer than two speakers. Ours.
    """
    if not (0 < share < 1 and 0 < confidence < 1):
        raise BadInput(f"gates: a share of {share:g} and a confidence of {confidence:g} must lie between 0 and 1")
    far = np.abs(mapped[0] - threshold)
    reach = _reaches(far, *speaker_numbers(enrol_speaker, test_speaker, len(far)), share, draws, seed)
    first = float(np.quantile(reach, 1 - confidence, method="lower"))
    spread = doubts(mapped)
    parts = [one / spread[0] if spread[0] > 0 else 1.0 for one in spread]
    return [Gate.around(threshold, first * part) for part in parts]


def _reaches(far: Real, first: Rows, second: Rows, speakers: int, share: float, draws: int, seed: int) -> Real:
    """For each draw of speakers the largest distance beyond which a share of the trials lies: (draws,).

    far: (trials,) distances. It lies between two of them, so that rounding cannot move a trial across.
    """
    order = np.argsort(-far, kind="stable")
    falling, a, b = far[order], first[order], second[order]
    last_of = np.searchsorted(-falling, -falling, side="right")  # the first trial that is nearer
    inner = np.append(falling, 0.0)[last_of]
    between = (falling + inner) / 2
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        times = np.bincount(rng.integers(speakers, size=speakers), minlength=speakers).astype(np.float64)
        total = np.cumsum(times[a] * np.where(a == b, 1.0, times[b]))
        if total[-1] > 0:  # else nothing was drawn together
            found.append(between[int(np.searchsorted(total, share * total[-1] * (1 - 1e-12)))])
    if not found:
        raise BadInput(f"gates: none of {draws} draws of the speakers has a trial; give trials of more speakers")
    return np.array(found)


# ---- gates that keep to a bound on disagreement


def at_most(errors: int, trials: int, confidence: float) -> float:
    """Upper end of the one-sided Clopper-Pearson interval of a share: `errors` of `trials` were seen."""
    low, high = errors / trials if trials else 0.0, 1.0
    if errors >= trials:
        return 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _so_few(errors, trials, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def fewest_trials(risk: float, confidence: float) -> int:
    """Trials without any error that are needed before a share is known to be at most `risk`."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - risk))


def safe_gates(
    scores: Sequence[ArrayLike], maps: Sequence[Map], threshold: float, risk: float, confidence: float = 0.95
) -> list[Gate]:
    """The gates that answer most, while at most a share `risk` of a stage's answers would be another by the last stage.

    scores: (trials,) for each stage, unmapped. A stage accepts where its mapped score is at least `threshold`. For its
    accepts and its rejects apart, thresholds a fixed STEP apart on its own scale are tested from the outside in: of the
    trials beyond, do so few disagree with the last stage that a share of `risk` is refuted (binomial test at the level
    (1 - confidence) / number of sides of all gates)? The walk begins where trials are enough to tell and ends at the
    first test that fails, so no correction for the number of tests is needed (fixed-sequence testing, as in
    Angelopoulos et al., arXiv 2110.01052). A later stage is tested on the trials that reach it. So, with `confidence`,
    on trials like these, P(the last stage answers otherwise | this stage answers) <= risk for every stage and both
    answers at once, and so for the whole cascade. `below` and `above` of a gate are Clopper-Pearson bounds at that
    level. Trials are taken as independent: those that share speakers tell less than their number. Raises BadInput where
    not even the first stage may answer. Ours: none of the four papers has it.
    """
    agreed = np.asarray(scores[-1], dtype=np.float64) >= threshold
    level = (1 - confidence) / (2 * (len(scores) - 1))
    left = np.arange(len(agreed))
    gates: list[Gate] = []
    for row, to_last in zip(scores[:-1], maps[:-1], strict=True):
        values, accepted = np.asarray(row, dtype=np.float64)[left], agreed[left]
        turn = float(to_last.back(threshold))
        low, below = _edge(-values, accepted, -turn, risk, level)
        high, above = _edge(values, ~accepted, turn, risk, level)
        upper = float(to_last(high))
        gates.append(Gate(min(float(to_last(-low)), upper), upper, below, above))
        left = left[~gates[-1].stops(to_last(values))]
    if gates[0].below is None and gates[0].above is None:
        raise BadInput(
            f"gates: trials are too few, or too many disagree, for a share of {100 * risk:g} %; it takes"
            f" {fewest_trials(risk, 1 - level)} trials of one answer or more, of {len(agreed)}; allow more"
        )
    return gates


def _edge(values: Real, wrong: NDArray[np.bool_], turn: float, risk: float, level: float) -> tuple[float, float | None]:
    """The lowest threshold, not below `turn`, such that it and all tested before it pass, and the bound there.

    wrong: (trials,) whether the last stage answers otherwise. Infinity and None when the first test fails.
    """
    order = np.argsort(-values)
    ranked, errors = -values[order], np.concatenate([[0], np.cumsum(wrong[order])])
    edge, passed = math.inf, None
    for step in range(int((1 - turn) / STEP) + 1):
        threshold = 1 - step * STEP
        beyond = int(np.searchsorted(ranked, -threshold, side="left"))
        if (1 - risk) ** beyond > level:
            continue
        seen = int(errors[beyond])
        if _so_few(seen, beyond, risk) > level:
            break
        edge, passed = threshold, (seen, beyond)
    return edge, at_most(*passed, 1 - level) if passed else None


def _so_few(errors: int, trials: int, share: float) -> float:
    """P(at most `errors` of `trials`), each with probability `share`."""
    if not 0 < share < 1:
        return float(share <= 0 or errors >= trials)
    counts = np.arange(1, errors + 1)
    ways = np.concatenate([[0.0], np.cumsum(np.log((trials - counts + 1) / counts))])
    several = np.arange(errors + 1)
    terms = ways + several * math.log(share) + (trials - several) * math.log1p(-share)
    return min(1.0, float(np.exp(terms).sum()))
