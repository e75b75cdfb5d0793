"""Explore a network in the browser: the routes of a local page, and the same page as a static folder.

The page is plain ES modules in `static/`, readable like the Python: `tensor.js` computes, `program.js` runs a network
as a list of steps, `network.js` and `arithmetic.js` draw. `program.py` makes that list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlpconv.lazy import lazy_names

if TYPE_CHECKING:
    from mlpconv.explorer.app import make_app
    from mlpconv.explorer.site import export_site
    from mlpconv.explorer.subject import Subject

__all__ = ["Subject", "export_site", "make_app"]

_MODULE_OF = {"Subject": "subject", "export_site": "site", "make_app": "app"}

__getattr__ = lazy_names(__name__, _MODULE_OF)
