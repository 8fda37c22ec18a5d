"""Parallel tempering: replicas at neighbouring temperatures exchange their configurations now and then.

Two of them, at inverse temperatures β_i and β_j with energies E_i and E_j (with PV in npt), exchange with the probability
min(1, exp((β_i - β_j)(E_i - E_j))), which keeps the canonical distribution at every temperature; momenta are rescaled by the
root of the ratio of the temperatures (Sugita & Okamoto, Chem. Phys. Lett. 314, 141 (1999)). Even and odd pairs take turns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlff.basics.errors import ConfigError, DataError
from mlff.basics.units import KB


class Tempering:
    """The exchanges of one run: what is asked for, and after it what was accepted."""

    def __init__(self, every: int, seed: int = 0):
        """Exchanges are tried every so many steps, with random numbers from `seed` and the number of the step."""
        if every < 1:
            raise ConfigError(f"exchanges are tried every so many steps, a positive number, not {every}")
        self.every = every
        self.seed = seed
        self.kelvins: list[float] = []  #: of the replicas, increasing
        self.tried = self.accepted = np.zeros(0, int)  #: (n - 1,) exchanges of each pair of neighbours
        self.walkers = np.zeros(0, int)  #: (n,) where the configuration at each temperature began
        self.round_trips = np.zeros(
            0, int
        )  #: (n,) of each configuration, from the lowest temperature to the highest and back
        self._has_been_up = np.zeros(0, bool)

    def start(self, kelvins: Sequence[float]) -> None:
        """Raises ConfigError unless the temperatures increase."""
        kelvins = [float(kelvin) for kelvin in kelvins]
        if len(kelvins) < 2 or any(low >= high for low, high in zip(kelvins, kelvins[1:], strict=False)):
            raise ConfigError("parallel tempering needs two or more temperatures that increase from replica to replica")
        self.kelvins, n = kelvins, len(kelvins)
        self.tried, self.accepted = np.zeros(n - 1, int), np.zeros(n - 1, int)
        self.walkers, self.round_trips, self._has_been_up = np.arange(n), np.zeros(n, int), np.zeros(n, bool)

    def exchanges(self, step: int, energies: Sequence[float], going: Sequence[bool]) -> list[tuple[int, int]]:
        """The pairs of neighbours that exchange their configurations after `step`; energies in eV. Keeps account."""
        random = np.random.default_rng([self.seed, step]).random(len(self.kelvins))
        pairs = []
        for low in range(step // self.every % 2, len(self.kelvins) - 1, 2):
            if going[low] and going[low + 1]:
                self.tried[low] += 1
                if random[low] < acceptance(self.kelvins[low : low + 2], energies[low : low + 2]):
                    self.accepted[low] += 1
                    pairs.append((low, low + 1))
                    self.walkers[[low, low + 1]] = self.walkers[[low + 1, low]]
        lowest, highest = self.walkers[0], self.walkers[-1]
        self.round_trips[lowest] += self._has_been_up[lowest]
        self._has_been_up[lowest], self._has_been_up[highest] = False, True
        return pairs

    def state(self) -> dict[str, np.ndarray]:
        """Arrays for a restart."""
        held = {"kelvins": self.kelvins, "tried": self.tried, "accepted": self.accepted, "walkers": self.walkers}
        held |= {"round_trips": self.round_trips, "has_been_up": self._has_been_up, "every": self.every, "seed": self.seed}
        return {name: np.array(value) for name, value in held.items()}

    def restore(self, held: dict[str, np.ndarray], source: object) -> None:
        """Take up what `state` gave, after `start`. Raises DataError: damaged; ConfigError: another frequency, other seeds."""
        for name, value in self.state().items():
            found = held.get(name)
            if found is None or found.shape != value.shape or found.dtype != value.dtype:
                raise DataError(f"{source}: {name!r} of parallel tempering is missing or damaged; start without restart")
            if name in ("kelvins", "every", "seed") and not np.array_equal(found, value):
                raise ConfigError(
                    f"{source}: the earlier run had {name} {found.tolist()} in parallel tempering, not {value.tolist()}"
                )
        if not np.array_equal(np.sort(held["walkers"]), np.arange(len(self.kelvins))):
            raise DataError(f"{source}: 'walkers' of parallel tempering is damaged; start without restart")
        self.tried, self.accepted, self.walkers = held["tried"], held["accepted"], held["walkers"]
        self.round_trips, self._has_been_up = held["round_trips"], held["has_been_up"]

    def table(self) -> str:
        """Temperatures, the share of exchanges that was accepted, and round trips, as text."""
        lines = ["  from K     to K  accepted"]
        for low, high, accepted, tried in zip(self.kelvins, self.kelvins[1:], self.accepted, self.tried, strict=False):
            share = f"{100 * accepted / tried:7.0f} %" if tried else "never tried"
            lines.append(f"{low:8.1f} {high:8.1f} {share}  ({accepted:,} of {tried:,})")
        trips = ", ".join(str(number) for number in self.round_trips)
        return "\n".join(
            [*lines, f"round trips between {self.kelvins[0]:g} and {self.kelvins[-1]:g} K, by replica: {trips}"]
        )


def acceptance(kelvins: Sequence[float], energies: Sequence[float]) -> float:
    """Probability with which two replicas exchange; K and eV."""
    exponent = (1 / kelvins[0] - 1 / kelvins[1]) * (energies[0] - energies[1]) / KB
    return float(np.exp(min(exponent, 0.0)))


def read_temperatures(text: str, count: int | None) -> list[float]:
    """`300,350,400`, or the geometric ladder `300:900` of `count` replicas, in K. Raises ConfigError."""
    ladder = ":" in text
    try:
        kelvins = [float(word) for word in text.split(":" if ladder else ",")]
    except ValueError:
        kelvins = []
    if not kelvins or not all(np.isfinite(kelvin) and kelvin > 0 for kelvin in kelvins) or (ladder and len(kelvins) != 2):
        raise ConfigError(f"{text!r} are no temperatures; write 300,350,400 or 300:900 with --replicas")
    if ladder:
        if count is None or count < 2:
            raise ConfigError(f"{text!r} is a ladder from one temperature to another; say with --replicas of how many")
        return [float(kelvin) for kelvin in np.geomspace(*kelvins, count)]
    if count not in (None, len(kelvins)):
        raise ConfigError(f"{len(kelvins)} temperatures for {count} replicas")
    return kelvins
