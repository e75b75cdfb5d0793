"""The presets of the playground against the claims."""

from __future__ import annotations

import re

from mlpconv.claims.claim_files import list_claims
from mlpconv.explorer.app import static_files


def test_every_preset_about_a_claim_names_one_of_the_package() -> None:
    text = static_files()["presets.js"].decode()
    named = re.findall(r'^    claim: "([^"]+)",$', text, re.MULTILINE)
    assert len(named) == len(re.findall(r"^    id:", text, re.MULTILINE)) - 1  # separable convolutions are no claim
    assert set(named) <= {file.claim.name for file in list_claims()}
