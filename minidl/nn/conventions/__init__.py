"""Conventions of batch normalization in other frameworks, and the way between them and ours.

    from_convention("keras", momentum=0.99, epsilon=1e-3)       arguments for BatchNorm1d and BatchNorm2d
    to_convention("keras", eps=1e-3, momentum=0.01)             and back
    state_from("keras", {"gamma": ..., ...}, rows="as is")      a state for `load_state_dict`
    state_to("keras", layer.state_dict(), rows="as is")         and back
    differences("keras")                                        what our layer does in another way all the same

`CONVENTIONS` is the table itself; docs/batchnorm-conventions.md shows it, and every row of that page is a test.
"""

from minidl.nn.conventions.arguments import differences, from_convention, to_convention
from minidl.nn.conventions.states import running_variance, state_from, state_to
from minidl.nn.conventions.table import CONVENTIONS, Convention, Names

__all__ = [
    "CONVENTIONS",
    "Convention",
    "Names",
    "differences",
    "from_convention",
    "running_variance",
    "state_from",
    "state_to",
    "to_convention",
]
