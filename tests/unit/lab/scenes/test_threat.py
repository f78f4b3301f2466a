from pathlib import Path

import pytest

from awfulowl.errors import InputError
from awfulowl.lab.attacks.catalogue import ATTACKS
from awfulowl.lab.scenes.threat import ThreatModel, changed, make_threat, read_threat

EXAMPLE = Path(__file__).parents[4] / "examples" / "threat.toml"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "t.toml"
    path.write_text(text)
    return path


def test_a_share_alone_is_a_threat_model(tmp_path: Path) -> None:
    assert read_threat(written(tmp_path, "share = 0.3\n")) == ThreatModel(share=0.3)


def test_the_example_holds_the_defaults() -> None:
    assert read_threat(EXAMPLE) == ThreatModel(share=0.3)
    assert all(field in EXAMPLE.read_text() for field in ThreatModel.__struct_fields__)


def test_the_example_says_what_no_attack_uses() -> None:
    said = EXAMPLE.read_text().partition("\n\n")[0]
    used = {field for attack in ATTACKS.values() for field in attack.needs}
    for field in ("sees_gradients", "links", "snapshots"):
        assert field in said
        assert field not in used


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "missing required field `share`"),
        ("share = 2", "share = 2: shares are between 0 and 1"),
        ("share = -0.1", "share = -0.1: shares are between 0 and 1"),
        ("share = nan", "share"),
        ("share = true", "share: expected `float`"),
        ("share = 0.3\nshares = 1", "unknown field `shares`; did you mean 'share'? There are share, sees_inputs"),
        ("share = 0.3\nqueries = -1", "queries = -1: expected `int` >= 0"),
        ("share = 0.3\nknows_labels = 1", "knows_labels: expected `bool`"),
        ("share = 0.3\ncompute = inf", "compute"),
        ("share = 0.3\nsnapshots = 0", "snapshots = 0: "),
        ("share = ", "no TOML"),
        ("share = 0.3\nshare = 0.4", "no TOML"),
        ("\x00", "no TOML"),
    ],
)
def test_what_is_no_threat_model_is_refused_by_file_and_field(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(InputError) as raised:
        read_threat(written(tmp_path, text))
    assert complaint in str(raised.value)
    assert "t.toml" in str(raised.value) or "threat model" in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no readable threat model"):
        read_threat(tmp_path / "none.toml")
    with pytest.raises(InputError, match="bytes that are read at most"):
        read_threat(written(tmp_path, "#" * (1 << 17)))


def test_what_is_granted_and_what_is_lacking() -> None:
    threat = ThreatModel(share=0.3, public=0, queries=0, knows_labels=False)
    needs = {"public", "queries", "knows_labels", "sees_inputs", "knows_base_model", "snapshots"}
    assert threat.lacking(needs) == ("knows_base_model", "knows_labels", "public", "queries", "snapshots")
    assert changed(threat, public=5, queries=1, knows_labels=True).lacking(needs) == ("knows_base_model", "snapshots")
    assert ThreatModel(share=0.3).grants("public")
    assert not ThreatModel(share=0.3, knows_inputs=False).grants("public")
    assert ThreatModel(share=0.3, snapshots=2).grants("snapshots")


def test_what_is_needed_and_not_granted_is_refused_by_name() -> None:
    threat = ThreatModel(share=0.3, public=0, knows_labels=False)
    threat.demand("a thief", {"queries", "knows_inputs"})
    with pytest.raises(InputError, match=r"^a thief needs knows_labels, public, which the threat model does not grant"):
        threat.demand("a thief", {"queries", "public", "knows_labels"})


def test_unknown_fields_are_refused_everywhere() -> None:
    threat = ThreatModel(share=0.3)
    with pytest.raises(InputError, match="no field 'luck'; there are share"):
        threat.grants("luck")
    with pytest.raises(InputError, match="unknown field `luck`; there are share"):
        changed(threat, luck=1)
    with pytest.raises(InputError, match="share: expected `float`"):
        make_threat({"share": "much"})
