"""The data that flows through the program and the types of its parts.

Shape letters are the same everywhere: b batch, w walkers, m members, n atoms (padded), k neighbors per
atom (padded), f features, c capacity, s species. Units are eV, Å, fs, amu and e at every boundary.
Everything here is a NamedTuple of arrays or of pure functions, so it passes through jit, vmap and scan.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from jaxal.core.errors import InputError as InputError

Key = PRNGKeyArray
Params = PyTree


class Structure(NamedTuple):
    """Atoms, one structure or a batch of them."""

    position: Float[Array, "*b n 3"]  # Å
    species: Int[Array, "*b n"]  # row of the species table, -1 = padding
    # Å, rows are lattice vectors. Along an open direction the vacuum vector that the user gave, or zeros: reference
    # methods get it and volumes have it, nothing else looks at it. Where nothing repeats all is zero.
    cell: Float[Array, "*b 3 3"]
    periodic: Bool[Array, "*b 3"]  # which lattice vectors repeat: all of a crystal, two of a slab, none of a molecule
    mass: Float[Array, "*b n"]  # amu; isotopes are the file's, padding has 1
    fixed: Bool[Array, "*b n"]  # atoms that nothing moves
    charge: Int[Array, "*b"]  # e
    spin: Int[Array, "*b"]  # number of unpaired electrons


class Label(NamedTuple):
    """What a reference calculation says of a structure (or of a batch); a number that nobody knows is NaN."""

    energy: Float[Array, "*b"]  # eV; in the program relative to the reference energies of the species
    force: Float[Array, "*b n 3"]  # eV/Å
    stress: Float[Array, "*b 3 3"]  # eV/Å^3, ASE's sign (positive under tension); zero along open directions
    ok: Bool[Array, "*b"]  # False: the calculation failed, the numbers mean nothing


class Neighbors(NamedTuple):
    """Dense neighbor list, valid while no atom has moved by more than half the skin.

    Padded slots point at the atom itself with index = n (out of range), so a gather with mode "fill" or a
    mask `index < n` removes them. `reverse[i, a]` is the slot of i in the row of its a-th neighbor, for the
    same pair of images: the transpose of a neighbor sum is a gather through it, never a scatter.
    """

    index: Int[Array, "*b n k"]
    shift: Float[Array, "*b n k 3"]  # whole lattice vectors to add to the neighbor's position; 0 along open ones
    reverse: Int[Array, "*b n k"]
    position: Float[Array, "*b n 3"]  # where the list was built
    cell: Float[Array, "*b 3 3"]
    overflow: Bool[Array, "*b"]  # more neighbors, or more images, than there is room for


class Prediction(NamedTuple):
    """What the committee says of one structure (a leading walker or batch axis where vmapped)."""

    energy: Float[Array, "*b m"]  # eV
    force: Float[Array, "*b m n 3"]  # eV/Å
    stress: Float[Array, "*b m 3 3"]  # eV/Å^3
    feature: Float[Array, "*b n f"]  # invariant atomic features of the first member
    # Standard deviations of a method that has them in closed form; None: those of the members are meant.
    energy_spread: Float[Array, "*b"] | None = None  # eV
    force_spread: Float[Array, "*b n"] | None = None  # eV/Å, of an atom's force vector; else in the method's own unit
    # Largest distance of an atom's features from those trained on, over the largest that is supported: the committee
    # and its bound know nothing of a structure above 1. None: it is not known what is supported.
    novelty: Float[Array, "*b"] | None = None


class Potential(NamedTuple):
    """A model of the energy. `energy` returns eV and the invariant feature of each atom.

    `energies` is the same for a batch [b], for models that evaluate it faster as a whole; without it `energy` is
    vmapped. Of an atom without neighbors `alone` says energy and feature, for each species, and `isolation` what
    `energies` says with the isolation of each atom (`data.fragments`), for models that know either at little cost.
    A potential of `committee.isolated_atoms`, whose isolated atoms are `exact`, has both.
    """

    init: Callable[[Key, Structure, Neighbors], Params]
    energy: Callable[[Params, Structure, Neighbors], tuple[Float[Array, ""], Float[Array, "n f"]]]
    cutoff: float  # Å
    energies: Callable[[Params, Structure, Neighbors], tuple[Float[Array, "b"], Float[Array, "b n f"]]] | None = None
    alone: Callable[[Params], tuple[Float[Array, "s"], Float[Array, "s f"]]] | None = None  # eV
    isolation: (
        Callable[[Params, Structure, Neighbors], tuple[Float[Array, "b"], Float[Array, "b n f"], Float[Array, "b n"]]]
        | None
    ) = None
    exact: bool = False


class Distribution(NamedTuple):
    """What one set of weights says of a batch of structures, by one or more pseudo-members [p].

    The mean over them is the prediction. Their population variance is the uncertainty, but for what is given in
    closed form.
    """

    energy: Float[Array, "p b"]  # eV
    force: Float[Array, "p b n 3"]  # eV/Å
    stress: Float[Array, "p b 3 3"]  # eV/Å^3
    feature: Float[Array, "b n f"]
    energy_spread: Float[Array, "b"] | None = None
    force_spread: Float[Array, "b n"] | None = None


# What a method of uncertainty has learned: named arrays of fixed shapes, kept as `params["posterior"]`.
Posterior = dict[str, Array]


class Lessons(NamedTuple):
    """The training set as a posterior sees it [c]; rows that are neither trained on nor held out are empty."""

    structure: Structure
    neighbors: Neighbors
    label: Label
    trained: Bool[Array, "c"]
    held: Bool[Array, "c"]


FORCE = "eV/Å"


class Uncertainty(NamedTuple):
    """What turns a model into a distribution. Every function takes one set of weights, without a leading axis.

    `init` adds to a potential's parameters what the method needs: trained weights under "params", the collection
    "posterior". `learn` makes the posterior anew from the training set, after every training; `update` adds structures
    to it whose labels are not trained on yet, at once and exactly so where the posterior depends on no label (a rank-k
    update), and returns it as it was where only training changes it. `potential` is what is trained, with what is
    random about it drawn from the key; `penalty` is added to the loss.
    """

    init: Callable[[Key, Params, Structure, Neighbors], Params]
    learn: Callable[[Params, Lessons], Posterior]
    update: Callable[[Params, Structure, Neighbors, Bool[Array, "k"]], Posterior]
    predict: Callable[[Params, Structure, Neighbors], Distribution]
    potential: Callable[[Key], Potential] | None = None
    penalty: Callable[[Params, Structure, Label, Distribution], Float[Array, ""]] | None = None
    unit: str = FORCE  # of the force spread; of another than eV/Å several sets of weights give the largest


class WalkerState(NamedTuple):
    """One walker. `engine` is the jax-md state; `stress` belongs to `structure` (barostats need it)."""

    structure: Structure
    engine: Any
    stress: Float[Array, "*b 3 3"]
    step: Int[Array, "*b"]  # integration steps done


class Explorer(NamedTuple):
    """How a walker moves, apart from who computes the forces.

    A step has two halves so that neighbors and committee are evaluated between them, once, for all walkers
    together: `propose` says where forces are needed next, `advance` ends the step with them. `init` begins a walker
    that has done `step` steps, with momenta of its own. Masses and fixed atoms are the structure's.
    """

    init: Callable[
        [Key, Structure, Float[Array, "n 3"], Float[Array, "3 3"], Int[Array, ""]], WalkerState
    ]  # (key, structure, force, stress, step)
    propose: Callable[[WalkerState], Structure]
    advance: Callable[[WalkerState, Structure, Float[Array, "n 3"], Float[Array, "3 3"]], WalkerState]
    timestep: float  # fs
    bath: Callable[[Int[Array, ""]], Float[Array, ""]] | None = None  # K after a number of steps; None: walkers at rest
    barostat: bool = False  # the cell changes: it needs all three periodic, a stress, and no fixed atom
    thermostat: bool = True  # False: the bath is where momenta come from at the start, and nothing keeps them there


class Start(NamedTuple):
    """Where walkers [w] begin, or begin again, and what moves them there: the mean or a member, without biases."""

    structure: Structure
    force: Float[Array, "w n 3"]  # eV/Å
    stress: Float[Array, "w 3 3"]  # eV/Å^3


class Seen(NamedTuple):
    """What is said of the structures [w] that a sampler asked about."""

    energy: Float[Array, "w"]  # eV, whose slope the force is, with the biases; relative to the reference energies
    force: Float[Array, "w n 3"]  # eV/Å, that moves the walker
    stress: Float[Array, "w 3 3"]  # eV/Å^3, of the same
    score: Float[Array, "w"]  # NaN where nobody judges
    physical: Bool[Array, "w"]  # False: the walker has left the physical since the last look, and will be rewound


class Sampler(NamedTuple):
    """How the walkers [w] of a group move, together or each for itself, apart from who computes the forces.

    What is asked about in a step is a walker: the images of a band, the replicas of an exchange and both ends of a
    dimer are walkers each, with a trusted frame, a score and labels of their own. The state is a pytree of arrays
    of fixed types, each with a row for every walker; what walkers share stands in every row. A number in a row that is
    not finite takes the walker back. Keys of random numbers are in it, as `init` and `rewind` give them: a step draws
    from nothing else.

    A step has two halves, as that of an `Explorer`: `propose` says where forces are needed, `advance` ends the step
    with them. Fixed atoms and padding stay where they are; the forces on them mean nothing. Where a walker has left the
    physical what is said of it may be no number: no other walker may follow it there. `rewind` takes the walkers of
    the mask to their trusted frames, where the others are in `Start`, too. Steps that were done count on, and what is
    not a walker's place (temperature, springs, rungs) is the sampler's to keep. No energy is handed over there: that
    of a trusted frame is of parameters before a training. What a bias has learned belongs to a walker's number:
    walkers exchange what acts on them, not their structures.

    On a mesh `propose` and `advance` of what couples have the rows of all walkers, while what asks (`walkers`,
    `kinetic`, `bath`, `report` and so on) has those of one device: a row answers for itself.

    An `Explorer`, written for one walker, becomes a sampler by `jaxal.explore.stepping.per_walker`. Raises InputError
    from `init` where it cannot move so many walkers, or not these.
    """

    init: Callable[[Key, Start, Int[Array, "w"]], PyTree]  # (keys [w], start, steps that are done)
    propose: Callable[[PyTree], Structure]  # [w]
    advance: Callable[[PyTree, Structure, Seen], PyTree]
    rewind: Callable[[Key, PyTree, Bool[Array, "w"], Start], PyTree]  # (keys [w], state, who, trusted frames)
    walkers: Callable[[PyTree], Structure]  # [w], where they are
    steps: Callable[[PyTree], Int[Array, "w"]]  # that they have done
    kinetic: Callable[[PyTree], Float[Array, "w"]]  # eV
    degrees: Callable[[PyTree], Int[Array, "w"]]  # of freedom, that have the kinetic energy
    timestep: float  # fs; of what is no dynamics, what a step counts as in the run's simulated time
    bath: Callable[[PyTree], Float[Array, "w"]] | None = None  # K, now; None: walkers at rest, or at constant energy
    # Numbers of each walker by name, for trajectory and metrics, such as its rung; the names of biases are taken
    report: Callable[[PyTree], dict[str, Float[Array, "w"]]] | None = None
    over: Callable[[PyTree], Bool[Array, "w"]] | None = None  # a converged band; None: never, as in dynamics
    ordered: bool = False  # walkers are a path: each begins at a start structure of its own, in their order
    couples: bool = False  # a walker's step depends on others: they are of one system, and a mesh gathers them
    relaxes: bool = (
        False  # to a stationary point: a frame, however uncertain, is worth a label and no reason to go back
    )
    barostat: bool = False  # as of an `Explorer`
    thermostat: bool = True  # likewise


Score = Callable[[Prediction, Structure], Float[Array, ""]]  # larger = less certain


class Measure(NamedTuple):
    """What a score measures; registered beside it, for its options."""

    unit: str  # "" has none
    spread: bool = True  # it rises with the spread and is zero where there is none, so an error can be told from it
    of_force: bool = False  # its unit is that of the force spread: eV/Å, or what the method of uncertainty has
    needs_force: bool = False  # it makes sense only of force spreads in eV/Å


# Collective variables of a structure, such as a distance; differentiable
Variable = Callable[[Structure], Float[Array, "v"]]


class Coordinate(NamedTuple):
    """What a variable measures; registered beside it, for its options."""

    unit: str  # "" has none
    period: float | None = None  # after which its values come again, such as 2 pi rad


class Variables(NamedTuple):
    """Several variables together, of structures of the same atoms."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    periods: tuple[float | None, ...]
    values: Variable


class Moment(NamedTuple):
    """What a bias learns from: a frame of one walker, or of all walkers [w] of a bias that they share."""

    variables: Float[Array, "*w v"]
    uncertainty: Float[Array, "*w"]  # in the measure of the bias; 0 where it has none
    slope: Float[Array, "*w n 3"]  # of the uncertainty, with positions
    force: Float[Array, "*w n 3"]  # eV/Å, committee mean
    structure: Structure
    time: Float[Array, "*w"]  # fs since the walker began
    physical: Bool[Array, "*w"]  # False: the walker has left the physical, and will be rewound


class Bias(NamedTuple):
    """An energy that drives walkers; scores, labels and reports are without it.

    It is a function of collective variables, of a measure of uncertainty, of the structure and of time, and may
    remember: its state is a pytree of fixed shapes in the dtype of the positions. `init` begins the state of a walker,
    given its structure and number. `learn` comes before `energy` at every step. Where `shared` all walkers have one
    state, the first one's to begin with, which learns from all of them at once. A walker that is rewound has the state
    of its trusted frame again; shared ones go on, and `rewind` of (present state, that of the trusted frame, its
    structure, time) says what else is to be.
    """

    init: Callable[[Structure, Int[Array, ""]], PyTree]
    # (state, variables, uncertainty, structure, time in fs) -> eV
    energy: Callable[[PyTree, Float[Array, "v"], Float[Array, ""], Structure, Float[Array, ""]], Float[Array, ""]]
    learn: Callable[[PyTree, Moment], PyTree]
    measure: Score | None = None  # None: it knows nothing of the uncertainty
    shared: bool = False
    largest: float | None = None  # eV/Å, of the bias force on an atom; a larger one scales the whole bias down
    rewind: Callable[[PyTree, PyTree, Structure, Float[Array, ""]], PyTree] | None = None
    temperature: float | None = None  # K, of the dynamics that it is made for; None: of any
    open: bool = False  # it makes sense of open structures alone
    static: bool = (
        False  # it knows nothing of time or uncertainty and only exchanges: each window's ensemble is a canonical one
    )
    # of a bias that grows: what has grown alike everywhere by now, eV; without it weights of frames would grow, too
    offset: Callable[[PyTree], Float[Array, ""]] | None = None
    couples: bool = False  # `learn` takes the states and the moment of all walkers [w], which exchange what they have
    # numbers of each walker by name, of its state, for trajectory and metrics
    numbers: tuple[tuple[str, Callable[[PyTree], Float[Array, ""]]], ...] = ()


class GateState(NamedTuple):
    """What a gate has learned: the factor that turns a score into an estimated error, and its threshold.

    The counts are of labels as they came, before anything was learned from them; the realized coverage is their ratio.
    """

    factor: Float[Array, ""]  # estimated error (eV/Å) = factor * score
    threshold: Float[Array, ""]  # label above it; in the unit of factor * score
    correction: Float[Array, ""]  # logarithm of what an online gate has multiplied its factor by
    covered: Int[Array, ""]  # labels whose error was within factor * score
    checked: Int[Array, ""]  # labels that were compared


class Gate(NamedTuple):
    """Whom to label now.

    `step` judges the scores of all walkers at a look. `observe` is told the scores and true errors of labels before the
    committee learns from them. `calibrate` learns from scores and errors out of sample, held-out ones and the latest.
    Where there is no `observe` nothing is counted. A gate that `estimates` turns a score that tells an error
    (`Measure`) into eV/Å; another compares the score itself, whatever its unit. Above `ceiling`, in the score's own
    unit, a frame is not physical.
    """

    init: Callable[[], GateState]
    step: Callable[[GateState, Float[Array, "w"]], tuple[GateState, Bool[Array, "w"]]]
    calibrate: Callable[[GateState, Float[Array, "c"], Float[Array, "c"], Bool[Array, "c"]], GateState]
    observe: Callable[[GateState, Float[Array, "k"], Float[Array, "k"], Bool[Array, "k"]], GateState] | None = None
    estimates: bool = True
    ceiling: float | None = None


class Candidates(NamedTuple):
    """Structures from which a batch is selected, and those that have a label already.

    Features are what the kernel makes of a structure: their products are the similarities of structures.
    """

    score: Float[Array, "c"]
    feature: Float[Array, "c f"]
    eligible: Bool[Array, "c"]
    known: Float[Array, "t f"]  # features of what has a label, held out or not, or waits for one
    labeled: Bool[Array, "t"]  # rows of `known` that hold a structure


# (potential, parameters of the first member, structures, neighbors) -> features of the structures
Kernel = Callable[[Potential, Params, Structure, Neighbors], Float[Array, "b f"]]


# (key, candidates, size) -> rows of the candidates, -1 = nothing more is worth a label
Select = Callable[[Key, Candidates, int], Int[Array, "k"]]


class Schedule(NamedTuple):
    """Which of several selections, the arms, picks each label of a look.

    The state has fixed shapes. `choose` is given the fraction of the label budget that is used up and gives an arm for
    each of `size` labels; `learn` is given labels that have come [k]: the arm of each, -1 = none that counts, and its
    gain between 0 and 1.
    """

    of: tuple[str, ...]  # names of the selections
    init: Callable[[], PyTree]
    choose: Callable[[Key, PyTree, Float[Array, ""], int], Int[Array, "k"]]
    learn: Callable[[PyTree, Int[Array, "k"], Float[Array, "k"]], PyTree]


# A reference potential written in JAX, called inside the program without a callback.
Oracle = Potential
