"""The audit as a whole, on a tiny victim: its report, what is missing in it, and how it goes on."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any, ClassVar

import msgspec
import pytest
import torch

from awfulowl.costs import Ledger
from awfulowl.errors import InputError, ModelError
from awfulowl.lab.attacks.base import Attack, Recovery
from awfulowl.lab.audit import cells, possessed, summary, workshop
from awfulowl.lab.audit.record import Graded, Record, Store
from awfulowl.lab.audit.running import CELLS, Conditions, audit, run
from awfulowl.lab.audit.workshop import Workshop
from awfulowl.lab.report.headlines import headlines
from awfulowl.lab.report.page import HTML
from awfulowl.lab.report.schema import JSON, VERSION, Report, read_report
from awfulowl.lab.request import ORDERS, DropCell, FloorCell, NetworkCell, Request, WarmCell, make_request, seed_of
from awfulowl.lab.scenes.grading import Grade, compare
from awfulowl.lab.scenes.loot import Scene
from awfulowl.lab.scenes.threat import ThreatModel, make_threat
from awfulowl.lab.victims import kinds as victims
from awfulowl.lab.yardsticks import lines, possession
from awfulowl.models.data import Labelled
from awfulowl.randomness import Entropy
from tests.scenes import TINY

FIELDS = {"attack", "share", "block", "positions_right", "rows_right", "columns_right", "accuracy", "interval"}
MORE_FIELDS = {"advantage", "flops", "seconds", "gpu_hours", "seeds"}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A victim that learns in a moment, and little to measure."""
    with monkeypatch.context() as patch:
        patch.setattr(victims, "KINDS", {"tiny": TINY})
        for module in (possession, possessed):
            patch.setattr(module, "DROPPED", (0.0, 0.5, 1.0))
            patch.setattr(module, "WARM_SHARES", (0.5,))
        patch.setattr(workshop, "_PUBLIC_EPOCHS", 2)
        yield


def request(**fields: Any) -> Request:
    threat = {"share": 0.5, "queries": 300, "compute": 0.2, **fields.pop("threat", {})}
    given = {
        "model": "tiny",
        "data": "digits",
        "victims": 2,
        "shuffles": 2,
        "blocks": [16],
        "attacks": ["random", "norms"],
        "public": [50],
        "possession": False,
        **fields,
    }
    return make_request(given, make_threat(threat))


@cache
def _folder() -> Path:
    """Trained networks of all tests in this file."""
    return Path(mkdtemp(prefix="awfulowl-test-"))


def run_once(output: Path, stop: Any = lambda: False, **fields: Any) -> Report:
    return run(request(**fields), output, Conditions(cache=_folder(), stop=stop))


@cache
def finished() -> tuple[Report, Path]:
    """The audit that most tests look at, and its folder."""
    output = _folder() / "finished"
    return run_once(output), output


def numbers(report: Report) -> Any:
    """All numbers but times."""

    def without_times(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_times(one) for key, one in value.items() if key != "seconds"}
        return [without_times(one) for one in value] if isinstance(value, list | tuple) else value

    return without_times(msgspec.to_builtins(report))


def test_the_choice_does_not_hang_on_draws_that_only_the_chosen_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    def group(*validation: float) -> Any:
        graded = [SimpleNamespace(completed=SimpleNamespace(validation=one), cost={"flops": 1.0}) for one in validation]
        return [graded, graded]

    groups = {"cheap": group(0.9, 0.9), "dear": group(0.95)}
    monkeypatch.setattr(summary, "attacks_of", lambda *_: list(groups))
    monkeypatch.setattr(summary, "attack_group", lambda _, __, ___, name: groups[name])
    nothing: Any = SimpleNamespace(setting="layer")
    before = summary.chosen_attack(nothing, nothing, nothing)
    groups["dear"] = group(0.95, 0.2)  # the draws that controls are compared with
    assert summary.chosen_attack(nothing, nothing, nothing) == before == "dear"


def test_the_report_has_rows_lines_floors_and_a_verdict() -> None:
    report, folder = finished()
    found = json.loads((folder / JSON).read_text())
    assert found["version"] == VERSION == 3
    assert {row["attack"] for row in found["rows"]} == {"random", "norms"}
    assert all(row.keys() >= FIELDS | MORE_FIELDS for row in found["rows"])
    assert [line["name"] for line in found["lines"]] == list(lines.LINES)
    assert {floor["name"] for floor in found["floors"] if floor["counts"]} == {
        "F1 missing layers",
        "F1 all layers",
        "F2 distilled",
    }
    assert [floor["public"] for floor in found["floors"] if floor["name"] == "F1 all layers"] == [300, 50]
    (judgement,) = report.judgements
    assert judgement.attack == "norms"
    assert {control.name for control in judgement.controls} == set(lines.CONTROLS)
    assert next(one.verdict for one in judgement.controls if one.name == lines.FOREIGN) != "advantage"
    row = next(row for row in report.rows if row.attack == judgement.attack)
    assert row.cosine > 0.3
    for control in judgement.controls:
        assert control.positions_right is not None
        assert abs(control.cosine) < 0.2
        assert control.agreement < row.agreement
    assert judgement.verdict != "advantage"  # two victims and two draws are too few in any case
    assert report.missing == ()
    assert report.finished
    for row in report.rows:
        assert row.interval.low <= row.accuracy <= row.interval.high
        assert row.completed.interval.low <= row.completed.value <= row.completed.interval.high
        assert len(row.seeds) == 4
    assert read_report(folder) == report


def test_the_page_is_one_file_that_says_what_hurts_first() -> None:
    report, folder = finished()
    page = (folder / HTML).read_text()
    assert page.count("<table") >= 2
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page
    assert "data:image/svg+xml;base64," in page
    first = headlines(report)
    assert first[0].level == "hurts"
    assert page.index('class="first"') < page.index("<table")
    assert {path.suffix for path in folder.iterdir() if path.name.startswith("accuracy")} == {".svg", ".png"}
    assert all(row.attack in page for row in report.rows)


def test_finished_rows_are_not_done_again() -> None:
    first, folder = finished()
    kept = {path: path.stat().st_mtime_ns for path in (folder / CELLS).iterdir() if "network" not in path.name}
    assert numbers(run_once(folder)) == numbers(first)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


@pytest.mark.parametrize("taking", ["blocks", "columns"])
def test_the_report_says_what_size_auto_came_to(tmp_path: Path, taking: str) -> None:
    fields = {"blocks": ["auto"], "taking": taking, "victims": 1, "shuffles": 1, "attacks": ["norms"]}
    report = run_once(tmp_path, **fields)
    (row,), (judgement,) = report.rows, report.judgements
    assert (row.block, row.block_size) == (judgement.block, judgement.block_size) == ("auto", (16, 16))
    assert "block auto (16 x 16)" in (tmp_path / HTML).read_text()


def test_an_interrupted_audit_says_what_is_missing_and_goes_on_to_equal_numbers(tmp_path: Path) -> None:
    calls = iter(range(10**6))
    half = run_once(tmp_path, stop=lambda: next(calls) > 30)
    assert not half.finished
    assert any("not done yet" in one.why for one in half.missing)
    assert half.judgements == ()
    assert "interrupted" in (tmp_path / HTML).read_text()
    done = run_once(tmp_path)
    assert done.finished
    assert numbers(done) == numbers(finished()[0])


def test_attacks_that_lack_knowledge_are_missing_by_name(tmp_path: Path) -> None:
    report = run_once(tmp_path, attacks=["norms", "surrogate"], threat={"knows_labels": False})
    assert [row.attack for row in report.rows] == ["norms"]
    (missing,) = [one for one in report.missing if "attack surrogate" in one.what]
    assert "needs knows_labels, which the threat model does not grant" in missing.why
    assert "surrogate" in (tmp_path / HTML).read_text()


def test_a_whole_model_has_a_ceiling_too(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"victims": 1, "shuffles": 1, "attacks": ["hints"], "public": [], "taking": "scattered"}
    threat = {"knows_other_layers": False, "compute": 1.0}
    report = run_once(tmp_path / "seeing", **fields, threat=threat)
    found = {line.name: line for line in report.lines}
    assert [*found] == list(lines.LINES)
    ceiling = found[lines.CEILING]
    assert ceiling.positions_right == 1.0
    assert ceiling.flops > 0
    assert ceiling.queries == 300
    assert ceiling.accuracy > found[lines.TRUE].accuracy + 0.2
    assert ceiling.cosine > found[lines.RANDOM].cosine + 0.2
    blind = run_once(tmp_path / "blind", **fields, threat={**threat, "sees_inputs": False})
    assert [line.name for line in blind.lines] == [name for name in lines.LINES if name != lines.CEILING]
    (missing,) = [one for one in blind.missing if one.what.startswith(f"line {lines.CEILING}")]
    assert "needs sees_inputs, which the threat model does not grant" in missing.why


def test_without_public_data_there_is_no_floor_and_no_number(tmp_path: Path) -> None:
    report = run_once(tmp_path, threat={"public": 0}, attacks=["random", "norms"])
    assert report.rows == ()
    assert report.judgements == ()
    assert {one.what for one in report.missing} >= {"verdict (layer, share 0.5, block 16)"}
    assert any("needs public" in one.why for one in report.missing)
    assert "what is missing" in (tmp_path / HTML).read_text().lower()


def test_possession_has_curves_scores_and_warm_starts(tmp_path: Path) -> None:
    report = run_once(tmp_path, possession=True, victims=1, attacks=["norms"], shuffles=1)
    found = report.possession
    assert {one.layers for one in found.dropped} >= {("conv",), ("hidden", "head"), ("conv", "inner", "hidden", "head")}
    whole = [one.accuracy for one in found.dropped if one.dropped == 0]
    assert len(set(whole)) == 1
    assert {one.layer for one in found.scores} == {"conv", "inner", "hidden", "head"}
    assert [one.score for one in found.scores] == sorted((one.score for one in found.scores), reverse=True)
    assert {one.order for one in found.warm} == set(ORDERS)
    scratch = [one for one in found.warm if one.share == 0]
    assert all(one.gain == 0 for one in scratch)
    assert {path.stem for path in tmp_path.glob("*.svg")} >= {"drop-curves", "layer-scores", "warm-start"}


@pytest.mark.parametrize(
    ("threat", "lacking"),
    [
        ({"public": 0}, "public"),
        ({"knows_labels": False}, "knows_labels"),
        ({"knows_inputs": False}, "knows_inputs, public"),
        ({"knows_architecture": False}, "knows_architecture"),
    ],
)
def test_a_pirate_that_cannot_train_starts_from_nothing(tmp_path: Path, threat: dict[str, Any], lacking: str) -> None:
    report = run_once(tmp_path, possession=True, victims=1, shuffles=1, attacks=["norms"], threat=threat)
    assert report.possession.warm == ()
    assert report.possession.dropped  # no knowledge is needed for what only the owner can measure
    why = [one.why for one in report.missing if one.what.startswith("warm start")]
    assert why == [f"a warm start needs {lacking}, which the threat model does not grant: set it there"]


def test_a_warm_start_learns_from_the_pirate_s_images_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Workshop(request(threat={"public": 50}), tmp_path, _folder())
    learned: list[Labelled] = []

    def watched(victim: Any, held: Any, public: Labelled, *others: Any, **more: Any) -> Any:
        learned.append(public)
        return warm_start(victim, held, public, *others, **more)

    warm_start = possession.warm_start
    monkeypatch.setattr(possession, "warm_start", watched)
    for share in (0.0, 0.5):
        record = cells.work(shop, WarmCell(victim=0, block=16, share=share, order="random"))
        assert record.graded is not None
    scene, _ = shop.floor_scene(FloorCell(setting="layer", victim=0, floor="F1 all layers"))
    for public in learned:
        assert len(public.labels) == 50
        assert torch.equal(public.inputs, scene.public.inputs)
        assert torch.equal(public.labels, scene.public.labels)


def test_drop_curves_look_at_all_classes_of_data_that_are_sorted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Workshop(request(), tmp_path)
    inputs, labels = shop.data.test
    order = labels.argsort()
    shop.data = shop.data._replace(test=Labelled(inputs[order], labels[order]))
    seen: list[Labelled] = []

    def watched(*args: Any, test: Labelled, **others: Any) -> Grade:
        seen.append(test)
        return compare(*args, test=test, **others)

    monkeypatch.setattr(cells, "DROP_IMAGES", 60)
    monkeypatch.setattr(cells, "compare", watched)
    cells.work(shop, DropCell(victim=0, layers=("hidden",), block=16, dropped=0.5, draw=0))
    assert len(seen[0].labels) == 60
    assert len(set(seen[0].labels.tolist())) == 10


class Lucky(Attack):
    """Leaves every block out."""

    name: ClassVar[str] = "lucky"
    rung: ClassVar[str] = "P2"

    def recover(self, scene: Scene, ledger: Ledger, entropy: Entropy) -> Recovery:
        places = {layer: scene.layers[layer].grid for layer in scene.layers}
        return Recovery(
            placements={layer: (entropy.normal(len(scene.layers[layer]), 2) * 0 - 1).long() for layer in places}
        )


def test_the_api_takes_attacks_of_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(_folder()))
    report = audit(
        "tiny",
        "digits",
        {"share": 0.5, "compute": 0.2, "queries": 300},
        tmp_path,
        attacks=[Lucky()],
        victims=1,
        shuffles=1,
        blocks=[16],
        possession=False,
        public=[],
    )
    (row,) = report.rows
    assert row.attack == "lucky"
    assert row.positions_right == 0.0
    with pytest.raises(InputError, match="workers = 1"):
        audit("tiny", "digits", ThreatModel(share=0.5), tmp_path, attacks=[Lucky()], workers=2)
    with pytest.raises(InputError, match="unknown field `luck`; there are model"):
        audit("tiny", "digits", ThreatModel(share=0.5), tmp_path, luck=1)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"attacks": ["nonsense"]}, "no attack 'nonsense'; there are random"),
        ({"model": "nonsense"}, "no victim 'nonsense'; there are tiny"),
        ({"data": "nonsense"}, "no data 'nonsense'"),
        ({"attacks": ["nrms"]}, "no attack 'nrms'; did you mean 'norms'"),
        ({"layers": ["nose"]}, "no layer 'nose'"),
        ({"victims": 0}, "victims"),
        ({"threat": {"share": 0.0}}, "share = 0"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], complaint: str
) -> None:
    monkeypatch.setattr("awfulowl.lab.audit.running.Hands", None)
    with pytest.raises(InputError, match=complaint):
        run_once(tmp_path / "out", **fields)
    assert not (tmp_path / "out").exists()


def test_a_victim_that_is_not_finite_ends_the_audit(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))\n"
        "    nn.init.constant_(model[1].weight, float('nan'))\n    return model\n"
    )
    with pytest.raises((InputError, ModelError), match=r"must be finite|not finite"):
        run_once(tmp_path / "out", model=f"{path}:make", attacks=["random"])


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / CELLS).write_text("a file where the folder should be")
    with pytest.raises(InputError, match="cannot be written"):
        run_once(tmp_path)


def test_a_file_where_the_folder_should_be_is_said_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("awfulowl.lab.audit.running.Hands", None)
    (tmp_path / "file").write_text("of somebody")
    with pytest.raises(InputError, match="no folder for the report"):
        run_once(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "of somebody"


def test_what_the_report_needs_is_asked_for_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("awfulowl.lab.audit.running.Hands", None)
    monkeypatch.setattr("awfulowl.lab.report.page.find_spec", lambda name: None if name == "matplotlib" else name)
    with pytest.raises(InputError, match=r"needs matplotlib.*awfulowl\[lab\]"):
        run_once(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_seeds_are_far_from_those_of_networks_and_differ() -> None:
    asked = request()
    seeds = {seed_of(asked, "attack", number) for number in range(100)}
    assert len(seeds) == 100
    assert min(seeds) >= 1 << 20


def test_a_damaged_record_is_done_again(tmp_path: Path) -> None:
    store, cell = Store(tmp_path, {"a": 1}), NetworkCell(number=1)
    graded = Graded(
        positions_right=None,
        rows_right=None,
        columns_right=None,
        accuracy=0.5,
        agreement=0.5,
        cosine=0.0,
        cosines={},
        validation=None,
        right=b"\xa0",
        images=3,
    )
    store.keep(cell, Record(seed=1, graded=graded))
    found = store.find(cell)
    assert found is not None
    assert found.graded is not None
    assert found.graded.answers().tolist() == [True, False, True]
    assert Store(tmp_path, {"a": 2}).find(cell) is None
    store.path(cell).write_bytes(b'{"seed": 1')
    assert store.find(cell) is None


@pytest.mark.parametrize("content", ["", "{}", '{"version": 1}', "[1]"])
def test_what_is_no_report_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / JSON).write_text(content)
    with pytest.raises(InputError, match="no report of this version"):
        read_report(tmp_path)
    with pytest.raises(InputError, match="no readable report"):
        read_report(tmp_path / "none.json")
