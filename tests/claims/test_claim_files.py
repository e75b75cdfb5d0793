"""Finding claims, and what is said about a file that is not one."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from mlpconv.claims.claim_files import FOLDERS, check_unique, find_claim, list_claims, read_claim
from mlpconv.claims.networks import Shape, build
from mlpconv.claims.schema import Comparison
from mlpconv.errors import UsageError


def test_there_are_23_claims_in_order_nine_of_them_exact() -> None:
    claims = [file.claim for file in list_claims()]
    assert [claim.number for claim in claims] == list(range(1, 24))
    assert all(claim.exact for claim in claims[:9])
    assert all(claim.comparisons for claim in claims[9:])
    assert len({claim.name for claim in claims}) == 23


def test_every_exact_claim_is_tried_on_a_thousand_cases() -> None:
    for file in list_claims()[:9]:
        assert max(check.cases for check in file.claim.checks) >= 1000


def test_claim_files_are_short() -> None:
    here = Path(str(list_claims()[0].path)).parents[1]
    lengths = [len(path.read_text().splitlines()) for folder in FOLDERS for path in (here / folder).glob("*.py")]
    assert statistics.median(lengths) < 80


def test_every_network_can_be_built() -> None:
    for file in list_claims():
        for arm in file.claim.arms.values():
            assert sum(weights.numel() for weights in build(arm.words, Shape(1, 8, 10)).parameters()) > 100


@pytest.mark.parametrize("name", ["10", "mlpconv"])
def test_a_claim_is_found_by_number_or_name(name: str) -> None:
    assert find_claim(name).claim.title == "mlpconv against linear convolution"


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="did you mean 'dropout'"):
        find_claim("dropuot")


def test_a_claim_of_ones_own_is_one_file(claim_path: Path) -> None:
    file = find_claim(str(claim_path))
    assert file.claim.name == "my-claim"
    assert len(file.hypothesis) == 64
    changed = claim_path.read_text().replace("2.0", "3.0")
    claim_path.write_text(changed)
    assert find_claim(str(claim_path)).hypothesis != file.hypothesis


BROKEN = {
    "no such file": (None, "is not a file"),
    "no CLAIM": (("CLAIM = ", "MINE = "), "has no CLAIM"),
    "another type": (("CLAIM = Claim(", "CLAIM = dict("), "CLAIM is dict"),
    "an unknown field": (('    name="my', '    nmae="x",\n    name="my'), "nmae"),
    "a missing field": (('    source="A colleague",\n', ""), "source"),
    "not Python": (("CLAIM =", "CLAIM = ="), "SyntaxError"),
    "an empty text": (('"A colleague"', '""'), "source is ''"),
    "a bad name": (('"my-claim"', '"My claim"'), "name is 'My claim'"),
    "an unknown data set": (('data=("digits",)', 'data=("digit",)'), "data is 'digit'; did you mean 'digits'"),
    "an unknown arm": (('"eight", "two", "lower"', '"eight", "tow", "lower"'), "control is 'tow'; did you mean 'two'"),
    "an unknown direction": (('"lower"', '"less"'), "expect is 'less'"),
    "no margin": (('{"digits": 2.0}', "{}"), "margin\\['digits'\\] is None"),
    "a margin of zero": (('{"digits": 2.0}', '{"digits": 0}'), "a number above 0"),
    "an unknown metric": (('"digits": 2.0}', '"digits": 2.0}, "eror"'), "metric is 'eror'; did you mean 'error'"),
    "a fraction above 1": (('max 1x1:K gap", epochs=0.1', 'max 1x1:K gap", epochs=2'), "arms\\['eight'\\]: epochs"),
    "an arm that matches itself": (('"3x3:2 max 1x1:K gap"', '"3x3:2 max 1x1:K gap", match="two"'), "match is 'two'"),
    "an unknown cost": (('max 1x1:K gap", epochs=0.1', 'max 1x1:K gap", by="mac"'), "by is 'mac'; did you mean 'macs'"),
    "no images": (('"3x3:2 max 1x1:K gap"', '"3x3:2 max 1x1:K gap", train_images=0'), "train_images is 0"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_refused_with_the_field(
    change: tuple[str, str] | None, message: str, claim_path: Path
) -> None:
    if change is None:
        claim_path.unlink()
    else:
        assert change[0] in claim_path.read_text()
        claim_path.write_text(claim_path.read_text().replace(*change))
    with pytest.raises(UsageError, match=message):
        read_claim(claim_path)


def test_comparisons_must_be_comparisons(claim_path: Path) -> None:
    claim_path.write_text(claim_path.read_text().replace("comparisons=(Comparison(", "comparisons=(dict(name=(")
                          .replace("{\"digits\": 2.0}),),", "{\"digits\": 2.0})),),"))  # fmt: skip
    with pytest.raises(UsageError, match="comparisons must be a tuple of Comparisons"):
        read_claim(claim_path)


def test_two_claims_may_not_share_a_name(claim_path: Path) -> None:
    claim_path.write_text(claim_path.read_text().replace("my-claim", "mlpconv"))
    with pytest.raises(UsageError, match="another claim has"):
        check_unique([*list_claims(), find_claim(str(claim_path))])


def test_margins_are_fixed_for_every_data_set_of_a_claim() -> None:
    for file in list_claims():
        for comparison in file.claim.comparisons:
            assert isinstance(comparison, Comparison)
            assert set(comparison.margin) == set(file.claim.data)
