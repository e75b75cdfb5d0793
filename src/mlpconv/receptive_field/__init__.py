"""Receptive fields on graphs: the first and the last pixel that each element of a tensor sees, by interval arithmetic.

`field` is the arithmetic, `call` one operation with its arguments, `rules` and `sliding` what each operation does to
the fields of its inputs, `following` the image's way through a network.
"""

from __future__ import annotations

from mlpconv.receptive_field.field import Axis, Field, Grid
from mlpconv.receptive_field.following import Follower, field_of

__all__ = ["Axis", "Field", "Follower", "Grid", "field_of"]
