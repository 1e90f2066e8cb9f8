"""Sequential evidence that one of two models predicts better, valid at any time.

Both tests bet on the difference of two losses of the same outcome. While the bet's side is no
better on average, no betting strategy can be expected to gain: the capital is an e-process,
and it exceeds 1/alpha at any time, ever, with a probability of at most alpha (Ville's
inequality). The bets are those of Waudby-Smith and Ramdas, "Estimating means of bounded random
variables by betting", JRSS B 86, 2024, here a fixed mixture of stakes; their use for the
difference of two forecasters' scores is that of Choe and Ramdas, "Comparing sequential
forecasters", Operations Research 72, 2024.

A difference beyond `BOUND` nats counts as `BOUND`: what is tested is the mean of the bounded
differences.
"""

from dataclasses import dataclass, field

import numpy as np

from utils.feature_tools import Matrix

#: The largest difference of two losses that counts, in nats.
BOUND = 2.0
#: The stakes: shares of the capital that a bet may lose. The best stake for a mean m and a
#: variance v is m/v; a mixture is never far behind the best of its members.
STAKES = np.array([1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32])


def _gains(differences: Matrix) -> Matrix:
    """What a bet multiplies the capital by: (rows, stakes)."""
    shares = np.clip(np.asarray(differences, dtype=np.float64), -BOUND, BOUND) / BOUND
    gains: Matrix = 1.0 + shares[:, None] * STAKES
    return gains


def e_value(differences: Matrix) -> float:
    """The evidence that the differences are positive on average.

    >>> e_value(np.full(50, 0.5)) > 20, e_value(np.tile([0.5, -0.5], 50)) < 1
    (True, True)

    Args:
        differences: (rows,), in nats, in the order in which they became known.

    Returns:
        The capital after the last of them; it began at 1.
    """
    logs = np.log(_gains(differences)).sum(axis=0)
    return float(np.exp(np.minimum(logs, 500.0)).mean())


@dataclass
class EDetector:
    """Raises an alarm once differences are positive on average, whenever that begins.

    The sum of the e-processes begun at each outcome so far (Shiryaev and Roberts), so evidence
    of long ago to the contrary does not count: Shin, Ramdas and Rinaldo, "E-detectors", NEJSDS
    2024. As long as the differences are not positive on average, an alarm at `m` comes after at
    least `m` outcomes on average.

    >>> detector = EDetector()
    >>> detector.update(np.full(1000, -0.5)) < 100
    True
    >>> detector.update(np.full(60, 0.5)) > 1000
    True

    Attributes:
        capital: By stake, the capital of all processes together.
        joining: What joins it before each outcome. With 0, and a capital of 1 to begin with, this
            is one e-process: its evidence is about all outcomes since then.
    """

    capital: list[float] = field(default_factory=lambda: [0.0] * len(STAKES))
    joining: float = 1.0

    @classmethod
    def of_all(cls) -> "EDetector":
        """Evidence about all outcomes from now on together."""
        return cls([1.0] * len(STAKES), 0.0)

    def update(self, differences: Matrix) -> float:
        """Take in differences, (rows,), in nats; returns the evidence after the last."""
        capital = np.array(self.capital)
        for gain in _gains(differences):
            capital = np.minimum((capital + self.joining) * gain, 1e100)
        self.capital = capital.tolist()
        return self.value

    @property
    def value(self) -> float:
        """The evidence so far."""
        return float(np.mean(self.capital))
