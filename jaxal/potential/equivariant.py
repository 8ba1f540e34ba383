"""An E(3)-equivariant message-passing potential of the MACE family.

Batatia et al., NeurIPS 2022 (arXiv:2206.07697): messages of neighbors, symmetric products for the many-body
order, a residual connection by species, and a linear readout of invariants by species after every layer. Here
the radial weights belong to pairs of degrees (feature, harmonic) and the couplings are mixed by the linear map
that follows, and every radial weight is a combination of a few learned functions of the distance. So the sum over
neighbors is one matrix product of what belongs to the pair, the same for all channels, with the neighbors' features
(see `contraction`).
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxal.core.registry import register
from jaxal.core.types import Key, Neighbors, Params, Potential, Structure
from jaxal.core.units import Unit
from jaxal.data.fragments import isolation
from jaxal.data.neighbors import inward, vectors
from jaxal.potential import contraction, cuequivariance
from jaxal.potential import electrons as inputs
from jaxal.potential.radial import bessel, envelope
from jaxal.potential.repulsion import zbl


def _normal(scale: float) -> Callable:
    return nn.initializers.normal(scale)


def _radial_functions(
    network: tuple[Float[Array, "..."], ...], radial: Float[Array, "n k b"], cut: Float[Array, "n k"]
) -> Float[Array, "n k q"]:
    """The learned functions of the distance in a layer, which end at the cutoff."""
    if network:
        first, second = network
        radial = nn.silu(radial @ first) * 1.6765 @ second  # the factor keeps unit variance
    return radial * cut[:, :, None]


class _Layer(nn.Module):
    """One message-passing layer: [c, n, f] features in and out, degrees in sequence."""

    species: int
    channels: int
    l_max: int
    l_out: int
    correlation: int
    hidden: int
    functions: int
    kernels: str

    def _linear(self, name: str, values: Float[Array, "z n q"]) -> Float[Array, "z n f"]:
        rows = values.shape[-1]
        return values @ self.param(name, _normal(rows**-0.5), (rows, self.channels), values.dtype)

    def _by_degree(self, name: str, values: contraction.Features) -> contraction.Features:
        degrees = contraction.by_degree(values)
        return jnp.concatenate([self._linear(f"{name}_{l}", part) for l, part in enumerate(degrees)])

    @nn.compact
    def __call__(
        self,
        features: contraction.Features,
        species: Int[Array, "n"],
        harmonics: Float[Array, "n k h"],
        radial: Float[Array, "n k q"],
        cut: Float[Array, "n k"],
        index: Int[Array, "n k"],
        reverse: Int[Array, "n k"],
        average: Float[Array, ""],
    ) -> contraction.Features:
        dtype, f = harmonics.dtype, self.channels
        feature_l = round(features.shape[0] ** 0.5) - 1
        rank = radial.shape[-1]
        network = ()
        if self.hidden:
            first = self.param("radial_in", _normal(rank**-0.5), (rank, self.hidden), dtype)
            second = self.param("radial_out", _normal(self.hidden**-0.5), (self.hidden, self.functions), dtype)
            network, rank = (first, second), self.functions
        cut = cut / jnp.sqrt(average)
        weight = self.param("radial_weight", _normal(rank**-0.5), (rank, self.l_max + 1, feature_l + 1, f), dtype)
        sender = self._by_degree("sender", features)
        functions = partial(_radial_functions, network)
        algebra = cuequivariance if self.kernels == "cuequivariance" else contraction
        message = algebra.neighbor_contraction(harmonics, (radial, cut), functions, weight, sender, index, reverse)
        mixed = jnp.concatenate([self._linear(f"message_{l}", values) for l, values in enumerate(message)])

        product_weight = {}
        for degree in range(self.l_out + 1):
            for order in range(1, self.correlation + 1):
                count = contraction.number_of_symmetric_paths(self.l_max, order, degree)
                if count:
                    table = self.param(
                        f"product_{order}_{degree}", _normal(count**-0.5), (self.species, count, f), dtype
                    )
                    product_weight[order, degree] = table[species]
        product = algebra.symmetric_product(mixed, product_weight, self.l_max, self.l_out, self.correlation)
        result = self._by_degree("update", product) * self.correlation**-0.5
        kept = min(feature_l, self.l_out)
        keep = self._by_degree("keep", features[: (kept + 1) ** 2])
        scales = [
            jnp.repeat(
                self.param(f"residual_{l}", nn.initializers.ones, (self.species, f), dtype)[species][None], 2 * l + 1, 0
            )
            for l in range(kept + 1)
        ]
        low, high = jnp.split(result, [keep.shape[0]])
        return jnp.concatenate([low + keep * jnp.concatenate(scales), high])


class _Model(nn.Module):
    """Energies of a batch [b], all its structures as one graph of b n atoms."""

    table: tuple[int, ...]
    cutoff: float
    channels: int
    l_max: int
    hidden_l: int
    layers: int
    correlation: int
    radial: int
    radial_hidden: int
    radial_functions: int
    repulsion: bool
    kernels: str
    electrons: bool

    def _electronic(
        self,
        structure: Structure,
        features: contraction.Features,
        scale: Float[Array, ""],
        far: Float[Array, "b n"] | None,
    ) -> tuple[contraction.Features, Float[Array, "b"]]:
        """First features with those of charge and spin, and what these add to the energy of each structure, eV.

        Of a neutral structure atoms as isolated as `far` have so much less of them, for its unpaired electrons are not
        more one atom's than another's: each is as alone. Where all are, so is the structure.
        """
        dtype, (kinds, channels) = features.dtype, (len(self.table), self.channels)
        first = self.param("electrons", _normal(1.0), (inputs.INPUTS, inputs.UNITS), dtype)
        # zero at first: what is not learned about an ion is as of the neutral
        own = self.param("electrons_atom", nn.initializers.zeros, (inputs.UNITS, kinds, channels), dtype)
        whole = self.param("electrons_energy", nn.initializers.zeros, (inputs.UNITS,), dtype)
        offset = self.variable(
            "constants", "offset", lambda: jnp.zeros((2 * inputs.CHARGE + 1, inputs.SPIN + 1), dtype)
        ).value
        charge, spin = structure.charge, structure.spin
        units = nn.silu(inputs.inputs(charge, spin, dtype) @ first) * inputs.UNITS**-0.5
        each = jnp.einsum("bu,usf->bsf", units, own)
        # a product with ones and zeros: its transpose is one, too, where that of a gather is a scatter
        kind = nn.one_hot(structure.species, kinds, dtype=dtype)
        added = jnp.einsum("bns,bsf->bnf", kind, each)
        energy = offset[inputs.row(charge, spin)] + scale * (units @ whole)
        if far is not None:
            alone = jnp.where((charge == 0)[:, None], far, 0.0)
            added = added * (1.0 - alone)[:, :, None]
            energy = energy * (1.0 - jnp.prod(jnp.where(structure.species >= 0, alone, 1.0), axis=1))
        return features + added.reshape(features.shape), energy

    @nn.compact
    def __call__(
        self, structure: Structure, neighbors: Neighbors, isolating: bool = False
    ) -> tuple[Float[Array, "b"], Float[Array, "b n f"], Float[Array, "b n"] | None]:
        """Energies, features, and where `isolating` how isolated the atoms are."""
        batch, size = structure.species.shape
        number = batch * size
        kinds = len(self.table)
        dtype = structure.position.dtype
        real = structure.species >= 0
        species = jnp.maximum(structure.species, 0).reshape(number)
        vector, used = jax.vmap(vectors)(structure, neighbors)
        vector, used = vector.reshape(number, -1, 3), used.reshape(number, -1)
        first = size * jnp.arange(batch, dtype=jnp.int32)[:, None, None]
        index = jnp.where(neighbors.index < size, neighbors.index + first, number).reshape(number, -1)
        index, reverse = inward(index, neighbors.reverse.reshape(number, -1))
        # padded slots sit at the cutoff, where everything and its derivatives are zero
        vector = jnp.where(used[:, :, None], vector, jnp.asarray([self.cutoff, 0.0, 0.0], dtype))
        distance = jnp.sqrt(jnp.sum(vector**2, axis=-1))
        cut = envelope(distance, self.cutoff)
        radial = bessel(distance, self.cutoff, self.radial)
        import e3nn_jax as e3nn  # takes seconds

        harmonics = e3nn.spherical_harmonics(
            e3nn.Irreps.spherical_harmonics(self.l_max),
            vector / distance[:, :, None],
            normalize=False,
            normalization="component",
        ).array

        constant = {
            "neighbors": self.variable("constants", "neighbors", lambda: jnp.ones((), dtype)).value,
            "scale": self.variable("constants", "scale", lambda: jnp.ones((), dtype)).value,
        }
        embedding = self.param("embedding", _normal(1.0), (kinds, self.channels), dtype)
        features: contraction.Features = embedding[species][None]
        far = whole = None
        if isolating:
            far = isolation(self.table, self.cutoff, species, species[index], distance, used).reshape(batch, size)
            far = jnp.where(real, far, 0.0)
        if self.electrons:
            features, whole = self._electronic(structure, features, constant["scale"], far)
        energy = jnp.zeros(number, dtype)
        invariants = []
        for t in range(self.layers):
            l_out = self.hidden_l if t + 1 < self.layers else 0
            shape = kinds, self.channels, self.l_max, l_out, self.correlation, self.radial_hidden, self.radial_functions
            layer = _Layer(*shape, self.kernels, name=f"layer_{t}")
            features = layer(features, species, harmonics, radial, cut, index, reverse, constant["neighbors"])
            invariant = features[0]
            readout = self.param(f"readout_{t}", _normal(0.3 * self.channels**-0.5), (kinds, self.channels), dtype)
            energy = energy + jnp.sum(readout[species] * invariant, axis=-1)
            invariants.append(invariant)
        shift = self.param("shift", nn.initializers.zeros, (kinds,), dtype)
        energy = constant["scale"] * (energy + shift[species])
        if self.repulsion:
            energy = energy + zbl(self.table, species, species[index], distance, used)
        feature = jnp.concatenate(invariants, axis=-1).reshape(batch, size, -1)
        energy = jnp.sum(jnp.where(real, energy.reshape(batch, size), 0.0), axis=1)
        energy = energy if whole is None else energy + whole
        return energy, jnp.where(real[:, :, None], feature, 0.0), far


@register("potential")
def equivariant(
    table: tuple[int, ...],
    *,
    cutoff: Annotated[float, Unit("Å", 0.0, True)] = 5.0,
    channels: Annotated[int, Unit("", 1)] = 32,
    l_max: Annotated[int, Unit("", 0)] = 2,
    hidden_l: Annotated[int, Unit("", 0)] = 1,
    layers: Annotated[int, Unit("", 1)] = 2,
    correlation: Annotated[int, Unit("", 1)] = 2,
    radial: Annotated[int, Unit("", 1)] = 8,
    radial_hidden: Annotated[int, Unit("", 0)] = 32,
    radial_functions: Annotated[int, Unit("", 1)] = 8,
    repulsion: bool = True,
    kernels: Literal["xla", "cuequivariance"] = "xla",
    electrons: Literal["auto", "on", "off"] = "auto",
) -> Potential:
    """Equivariant message passing of the MACE family, with ZBL repulsion at short range.

    Parameters
    ----------
    table : atomic numbers the model knows
    cutoff : Å; energy, forces and their derivatives go smoothly to zero there
    channels : features of each degree
    l_max : highest degree of the spherical harmonics and of the messages
    hidden_l : highest degree of the features passed between layers (at most l_max)
    layers : message-passing layers
    correlation : factors in the symmetric products, 1 to 3: body order minus one
    radial : Bessel functions
    radial_hidden : width of the radial network's hidden layer; 0 = none, the Bessel functions are taken as they are
    radial_functions : learned functions of the distance in each layer, of which every radial weight is a combination
    repulsion : add the screened nuclear repulsion
    kernels : what computes the contractions: XLA, or NVIDIA's cuequivariance-jax (an extra), with the same result
    electrons : whether charge and unpaired electrons are an input (see `potential.electrons`); auto is on where the
        structures to learn differ in them, which who has the structures says (`config.electrons`), and off elsewhere

    The parameters hold "params" (trained) and "constants" (scale in eV, mean number of neighbors, with `electrons` the
    energies of charge and spin in eV; set from data). Energies are eV. Reference: Batatia et al., arXiv:2206.07697.
    """
    if hidden_l > l_max:
        raise ValueError(f"potential.hidden_l is {hidden_l}; it must not exceed potential.l_max = {l_max}")
    if not 1 <= correlation <= 3:
        raise ValueError(f"potential.correlation is {correlation}; it must be 1, 2 or 3")
    if kernels == "cuequivariance" and (why := cuequivariance.trouble()):
        raise ValueError(f"potential.kernels: cuequivariance {why}")
    network = radial, radial_hidden, radial_functions
    size = channels, l_max, hidden_l, layers, correlation
    model = _Model(table, cutoff, *size, *network, repulsion, kernels, electrons == "on")

    def batch_of(structure: Structure, neighbors: Neighbors) -> Any:
        return jax.tree.map(lambda x: x[None], (structure, neighbors))

    def init(key: Key, structure: Structure, neighbors: Neighbors) -> Params:
        return model.init(key, *batch_of(structure, neighbors))

    def evaluated(params: Params, structures: Structure, neighbors: Neighbors, free: bool) -> Any:
        constants = jax.lax.stop_gradient(params["constants"])
        return model.apply({"params": params["params"], "constants": constants}, structures, neighbors, free)

    def isolating(
        params: Params, structures: Structure, neighbors: Neighbors
    ) -> tuple[Float[Array, "b"], Float[Array, "b n f"], Float[Array, "b n"]]:
        return evaluated(params, structures, neighbors, True)

    def energies(
        params: Params, structures: Structure, neighbors: Neighbors
    ) -> tuple[Float[Array, "b"], Float[Array, "b n f"]]:
        return evaluated(params, structures, neighbors, False)[:2]

    def energy(
        params: Params, structure: Structure, neighbors: Neighbors
    ) -> tuple[Float[Array, ""], Float[Array, "n f"]]:
        value, feature = energies(params, *batch_of(structure, neighbors))
        return value[0], feature[0]

    def alone(params: Params) -> tuple[Float[Array, "s"], Float[Array, "s f"]]:
        """Without neighbors there are no messages: of each layer the residual connection is left.

        Of an atom of a neutral structure: charge and spin are none of its input.
        """
        own, feature, invariants = params["params"], params["params"]["embedding"], []
        atomic = own["shift"]
        for t in range(layers):
            feature = feature @ own[f"layer_{t}"]["keep_0"] * own[f"layer_{t}"]["residual_0"]
            atomic = atomic + jnp.sum(own[f"readout_{t}"] * feature, axis=-1)
            invariants.append(feature)
        return jax.lax.stop_gradient(params["constants"]["scale"]) * atomic, jnp.concatenate(invariants, axis=-1)

    return Potential(init, energy, cutoff, energies, alone, isolating)
