"""What a report says first, and how it says numbers."""

import re

import pytest
from msgspec.structs import replace
from torch import nn

from awfulowl.lab.attacks.catalogue import ATTACKS
from awfulowl.lab.report.headlines import headlines
from awfulowl.lab.report.legend import LEGEND
from awfulowl.lab.report.page import page
from awfulowl.lab.report.schema import VERSION, Control, Judgement, Line, Measured, Possession, Report, Row, Score
from awfulowl.lab.report.words import block, hours, interval, operations, percent, points, seconds
from awfulowl.lab.request import make_request
from awfulowl.lab.scenes.threat import ThreatModel
from awfulowl.lab.yardsticks.floors import floors
from awfulowl.lab.yardsticks.lines import CONTROLS, LINES
from awfulowl.lab.yardsticks.verdict import Word
from awfulowl.results import Interval

AROUND = Interval(0.6, 0.8)


def row(name: str, positions: float | None, flops: float) -> Row:
    return Row(
        attack=name,
        rung="P2",
        setting="layer",
        layers=("hidden",),
        share=0.3,
        block=32,
        block_size=(32, 32),
        held=0.3,
        seen=0.3,
        positions_right=positions,
        rows_right=positions,
        columns_right=positions,
        positions_interval=None if positions is None else Interval(positions, positions),
        rows_interval=None,
        columns_interval=None if positions is None else Interval(0.9, 0.97),
        accuracy=0.5,
        interval=AROUND,
        completed=Measured(value=0.7, interval=AROUND),
        ways=("filled",),
        advantage=0.1,
        advantage_interval=Interval(0.05, 0.15),
        agreement=0.8,
        cosine=0.4,
        validation=0.7,
        flops=flops,
        share_of_training=flops / 1e12,
        completion_flops=0.0,
        evaluations=0.0,
        queries=0.0,
        seconds=1.0,
        gpu_hours=0.0,
        seeds=(1,),
    )


def line(name: str, accuracy: float, **more: object) -> Line:
    found = Line(
        name=name,
        setting="layer",
        accuracy=accuracy,
        interval=Interval(accuracy - 0.01, accuracy + 0.01),
        agreement=0.8,
        cosine=0.1,
        flops=1.0,
        seconds=1.0,
        gpu_hours=0.0,
        seeds=(1,),
    )
    return replace(found, **more)


def report(verdict: Word = "advantage", **more: object) -> Report:
    judgement = Judgement(
        setting="layer",
        share=0.3,
        block=32,
        block_size=(32, 32),
        attack="norms",
        floor="F1 <missing>",
        verdict=verdict,
        reason="so it is",
        over_floor=Measured(value=0.1, interval=Interval(0.05, 0.15)),
        over_foreign=None,
        controls=(
            Control(
                name="foreign network",
                accuracy=0.1,
                interval=Interval(0.0, 0.2),
                positions_right=0.02,
                completed=Measured(value=0.6, interval=AROUND),
                agreement=0.61,
                cosine=-0.013,
                difference=Measured(value=0.1, interval=AROUND),
                verdict="no advantage",
            ),
        ),
    )
    found = Report(
        version=VERSION,
        request=make_request({"model": "<b>digits", "data": "digits"}, ThreatModel(share=0.3)),
        layers={"layer": ("hidden",)},
        test_images=359,
        networks=(),
        floors=(line("F1 <missing>", 0.6, public=300),),
        lines=(line("victim", 0.98, share=0.3, block=32),),
        rows=(row("norms", 0.95, 10.0), row("surrogate", 1.0, 90.0), row("hints", None, 5.0)),
        judgements=(judgement,),
        possession=Possession(),
        missing=(),
        conversion="as it is",
        seconds=1.0,
        versions={"torch": "0"},
        finished=True,
    )
    return replace(found, **more)


def test_bad_news_comes_first() -> None:
    levels = [one.level for one in headlines(report())]
    assert levels == sorted(levels, key=["hurts", "unknown", "holds"].index)
    assert headlines(report())[0].text.startswith(
        "Advantage. One layer, share 30 %, block 32: the chosen attack (norms)"
    )
    assert "[+5.0, +15.0]" in headlines(report())[0].text


def test_the_cheapest_attack_that_finds_the_positions_is_named() -> None:
    (found,) = [one.text for one in headlines(report()) if "held blocks" in one.text]
    assert "norms puts 95.0 %" in found
    poor = report(rows=(row("norms", 0.2, 10.0), row("surrogate", 0.4, 90.0)))
    (found,) = [one.text for one in headlines(poor) if "held blocks" in one.text]
    assert "no attack here puts more than 40.0 %" in found
    assert "surrogate" in found
    assert not [one for one in headlines(report(rows=(row("hints", None, 5.0),))) if "held blocks" in one.text]


@pytest.mark.parametrize(
    ("verdict", "level"), [("advantage", "hurts"), ("no advantage", "holds"), ("undecided", "unknown")]
)
def test_verdicts_have_their_colour(verdict: Word, level: str) -> None:
    (found,) = [one for one in headlines(report(verdict)) if "chosen attack" in one.text]
    assert found.level == level


def test_a_floor_near_the_victim_hurts_and_one_that_does_not_count_is_not_named() -> None:
    def of(**fields: object) -> list[str]:
        floors = (line("F1", 0.6), replace(line("F3", 0.97), **fields))
        return [one.level for one in headlines(report(floors=floors)) if "Without any device" in one.text]

    assert of() == ["hurts"]
    assert of(counts=False) == ["holds"]


def test_layers_are_said_to_be_worth_hiding_or_not_only_where_that_is_sure() -> None:
    def score(layer: str, low: float, high: float) -> Score:
        return Score(
            layer=layer,
            weights=9,
            floor=0.5,
            floor_interval=Interval(0.4, 0.6),
            score=(low + high) / 2,
            interval=Interval(low, high),
        )

    scores = (score("deep", 0.1, 0.2), score("unsure", 0.0, 0.1), score("flat", 0.0, 0.01))
    texts = [one.text for one in headlines(report(possession=Possession(scores=scores)))]
    assert any("worth hiding: deep (+15.0 points)." in text for text in texts)
    assert any("for: flat. Each is rebuilt." in text for text in texts)
    assert not any("unsure" in text for text in texts)


def test_the_page_escapes_what_users_name() -> None:
    found = page(report(), [])
    assert "<b>digits" not in found
    assert "&lt;b&gt;digits" in found
    assert "F1 &lt;missing&gt;" in found
    assert "[5.0 %" not in found
    assert "+10.0 [+5.0, +15.0]" in found


def test_the_page_gives_every_interval_that_is_known() -> None:
    scores = (Score(layer="fc", weights=9, floor=0.5, floor_interval=AROUND, score=0.1, interval=Interval(0.0, 0.2)),)
    lines = (line("victim", 0.98, share=0.3, block=32, positions_right=0.11, positions_interval=Interval(0.05, 0.12)),)
    found = page(report(lines=lines, possession=Possession(scores=scores)), [])
    assert "11.0 % [5.0 %, 12.0 %]" in found  # blocks in place, of a line
    assert "95.0 % [90.0 %, 97.0 %]" in found  # columns
    assert "<td>95.0 %</td>" in found  # rows, of a single draw
    assert "50.0 % <small>[60.0 %, 80.0 %]" in found  # a layer's floor


def test_the_page_shows_what_controls_have_in_common_with_the_victim() -> None:
    (control,) = re.findall(r'<tr class="kind-control">(.*)</tr>', page(report(), []))
    cells = re.findall("<td>([^<]*)</td>", control)
    assert cells[:2] == ["control: foreign network, judged: no advantage", "2.0 %"]
    assert cells[7:9] == ["61.0 %", "-0.01"]


def test_what_auto_stands_for_is_said_wherever_a_block_is() -> None:
    assert [block("auto", (16, 16)), block(64, (64, 64)), block(64, (64, 13))] == [
        "auto (16 x 16)",
        "64",
        "64 (64 x 13)",
    ]
    whole = report()
    rows = tuple(replace(one, block="auto", block_size=(16, 16)) for one in whole.rows)
    judgements = tuple(replace(one, block="auto", block_size=(16, 16)) for one in whole.judgements)
    found = page(replace(whole, rows=rows, judgements=judgements), [])
    assert "<h2>One layer between known ones: share 30 %, block auto (16 x 16);" in found
    assert "One layer, share 30 %, block auto (16 x 16): the chosen attack" in found


def test_the_page_explains_its_words() -> None:
    found = page(report(), [])
    assert all(f"<dt>{word}</dt><dd>{meaning}</dd>" in found.replace("&#39;", "'") for word, meaning in LEGEND.items())
    words = {one for word in LEGEND for one in word.split(", ")}
    assert words >= {*LINES, *CONTROLS, "block auto"}
    assert words >= {attack.rung for attack in ATTACKS.values()}
    assert words >= {floor.name.split()[0] for floor in floors(base=nn.Identity(), mirrored=False)}
    headings = set(re.findall("<th>([^<{]+)</th>", found)) - {"hidden", "row", "GPU-hours", "seconds"}
    assert words >= headings != set()


def test_a_report_of_nothing_says_so() -> None:
    empty = report(rows=(), judgements=(), floors=(), lines=(), finished=False)
    found = page(empty, [])
    assert "There is nothing to say" in found
    assert "interrupted" in found


@pytest.mark.parametrize(
    ("share", "text"),
    [(None, "-"), (0.0, "0.0 %"), (1e-6, "< 0.1 %"), (0.5, "50.0 %"), (0.99999, "> 99.9 %"), (1.0, "100.0 %")],
)
def test_percentages_never_look_like_all_or_nothing(share: float | None, text: str) -> None:
    assert percent(share) == text


def test_numbers_are_said_in_few_digits() -> None:
    assert [points(0.051), points(-0.002), points(0.0)] == ["+5.1", "-0.2", "+0.0"]
    assert interval(None) == ""
    assert interval(Interval(0.1, 0.2)) == "[10.0 %, 20.0 %]"
    assert [operations(number) for number in (0, 950, 2.36e12, 5e8, 1e16)] == ["0", "950", "2.36 T", "500 M", "10.0 P"]
    assert [hours(0), hours(0.00123), seconds(0.123), seconds(123.4)] == ["0", "0.0012", "0.12", "123"]
