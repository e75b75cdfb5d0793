"""Receptive fields on any graph: the first and last pixel that each element of a tensor sees, by interval arithmetic.

`field` is the arithmetic, `call` an operation with its arguments, `rules` and `sliding` map the fields of an
operation's inputs to those of its outputs, `following` traces an image through a network.
"""

from __future__ import annotations

from mlpconv.receptive_field.field import Axis, Field, Grid
from mlpconv.receptive_field.following import Follower, field_of

__all__ = ["Axis", "Field", "Follower", "Grid", "field_of"]
