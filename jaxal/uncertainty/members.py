"""The committee itself: members with weights of their own, or with a readout head each on a shared backbone."""

from jaxal.core.registry import register
from jaxal.core.types import Potential, Uncertainty


@register("uncertainty")
def members(potential: Potential, species: int) -> Uncertainty | None:
    """The spread of the committee's members, of whichever `committee.kind`.

    Full committees: Seung, Opper and Sompolinsky, COLT 1992; shared backbones: Kellner and Ceriotti, Mach. Learn.:
    Sci. Technol. 5, 035006 (2024). `potential` and `species`, the rows of the species table, are what every method is
    given; None says that the members' predictions are all there is.
    """
    del potential, species
