"""Decode options are validated and serialised without default values."""

from __future__ import annotations

import itertools

import pytest

from mlpconv.decode_options import DEFAULT_DECODING, DEPTHS, FITS, DecodeOptions
from mlpconv.errors import UsageError


def test_options_round_trip_through_a_dict() -> None:
    for fit, bits in itertools.product(FITS, DEPTHS):
        assert DecodeOptions.from_dict(DecodeOptions(fit, bits).to_dict()) == DecodeOptions(fit, bits)
    assert DEFAULT_DECODING.to_dict() == {}
    assert DecodeOptions("pad", 12).to_dict() == {"fit": "pad", "bits": 12}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"fit": "croop"}, "did you mean 'crop'"),
        ({"fit": 3}, "accepted: crop, pad, stretch"),
        ({"bits": 11}, "8, 10, 12"),
    ],
)
def test_invalid_options_are_refused(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        DecodeOptions.from_dict(values)
