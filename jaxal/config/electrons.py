"""Whether a potential takes charge and unpaired electrons as input: decided by the structures that it will learn."""

import dataclasses
from collections.abc import Collection

from jaxal.config.schema import Part
from jaxal.core.errors import InputError
from jaxal.data.electrons import State, listed
from jaxal.potential.electrons import check_range

OPTION = "electrons"  # of a potential that can take them: auto, on or off


def resolved(potential: Part, states: Collection[State], field: str = "potential") -> Part:
    """The potential with its option `electrons` on or off: auto is on where the `states` to learn are several.

    `states` are the charges and numbers of unpaired electrons of all structures (`data.electrons.states`), `field` is
    the potential's section. Raises InputError where there are several and the potential cannot tell them apart, and
    for those that are beyond its inputs. A potential without that option is returned as it is.
    """
    several = len(set(states)) > 1
    setting = dict(potential.options).get(OPTION)
    if setting is None:
        if several:
            what = f"{potential.name} is blind to charge and spin, in which the structures differ ({listed(states)})"
            raise InputError(f"{field}.name: {what}; give one with the option `electrons`, such as equivariant")
        return potential
    if setting == "off" and several:
        raise InputError(f"{field}.electrons: off does not fit structures that differ ({listed(states)}); give auto")
    chosen = "on" if several or setting == "on" else "off"
    if chosen == "on":
        for state in states:
            try:
                check_range(*state)
            except InputError as error:
                raise InputError(f"{field}.electrons: {error}") from None
    options = ((name, chosen if name == OPTION else value) for name, value in potential.options)
    return dataclasses.replace(potential, options=tuple(options))
