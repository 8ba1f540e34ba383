"""What a bias costs: dynamics on a finished model with and without it, in alternation.

    python scripts/bench_bias.py MODEL STRUCTURE "bias={name: metadynamics, ...}" [--walkers 64] [--rounds 9]

The fields are those of `jaxal dynamics`. Printed are the medians over the rounds of the time of a step without and
with the bias, and of their ratio, round by round, with its range. Needs a quiet machine.
"""

import argparse
import statistics
import time
from pathlib import Path

from jaxal.config.loading import parse
from jaxal.config.simulation import Simulation
from jaxal.deploy import model as models
from jaxal.simulate import dynamics
from jaxal.simulate.surface import structures
from jaxal.simulate.walkers import program

STEPS, FRAMES = 20, 10  # of a frame, of a round
WARM = 2  # rounds before those that count


def main() -> None:
    """Prints the two times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("structure", type=Path)
    parser.add_argument("fields", nargs="+", help="of `jaxal dynamics`, bias among them")
    parser.add_argument("--walkers", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    model = models.load(options.model)
    starts = structures(model, options.structure)
    moves = []
    for more in (["bias=[]"], []):
        fields = [f"explore.walkers={options.walkers}", *options.fields, *more]
        simulation = parse({}, None, Simulation, fields)
        walkers = dynamics.prepared(model, simulation, starts, options.structure)
        moves.append(program(walkers.surface, walkers.sampler, walkers.terms, walkers.starts, 0, STEPS))
    states = [each.start for each in moves]
    spent: list[list[float]] = []
    for _ in range(WARM + options.rounds):
        times = []
        for row, each in enumerate(moves):
            begun = time.perf_counter()
            states[row], _ = each.onward(states[row], FRAMES)
            times.append((time.perf_counter() - begun) / (STEPS * FRAMES))
        spent.append(times)
    counted = spent[WARM:]
    without, biased = (1e3 * statistics.median(times[row] for times in counted) for row in (0, 1))
    ratios = [times[1] / times[0] for times in counted]
    print(f"{options.walkers} walkers of {len(starts[0])} atoms: {without:.3f} ms a step without, {biased:.3f} with")
    print(f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, {options.rounds} rounds)")


if __name__ == "__main__":
    main()
