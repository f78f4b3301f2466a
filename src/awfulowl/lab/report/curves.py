"""Figures 6 and 7 of the founding paper, ours over the published numbers."""

from awfulowl.lab.report.figures import COLOURS, Figure, band, canvas
from awfulowl.lab.yardsticks.exchange import Curves, Point, Published


def draw_curves(curves: Curves, published: Published) -> list[Figure]:
    """Draw accuracy over the share of blocks missing, over pairs exchanged, and over the share displaced.

    Args:
        curves: ours.
        published: the paper's; where there is nothing in it, nothing is drawn.

    Raises:
        InputError: matplotlib is not installed.
    """
    return [
        _figure6(curves, published),
        _figure7(curves, published),
        _displaced(curves),
    ]


def _figure6(curves: Curves, published: Published) -> Figure:
    with canvas(6.5, 4.0) as (axes, files):
        if published.dropped:
            shares = sorted(published.dropped)
            label = "published: VGG16, CIFAR-100"
            axes.plot(shares, [published.dropped[share] for share in shares], color="#9ca3af", label=label)
        points = sorted(curves.dropped, key=lambda point: point.dropped)
        values = [(point.accuracy, point.interval) for point in points]
        band(axes, [point.dropped for point in points], values, COLOURS[0], f"ours: {curves.model}, {curves.layer}")
        axes.axhline(curves.zeroed, color=COLOURS[1], linewidth=0.8, linestyle="--", label="the layer zeroed")
        axes.set_xlabel(f"share of {curves.blocks} blocks missing, the others in place")
        axes.set_ylabel("accuracy")
        axes.legend(frameon=False)
        return Figure("figure-6", "Figure 6 of the founding paper: blocks missing.", files())


def _by_share(curves: Curves) -> dict[float, list[Point]]:
    found: dict[float, list[Point]] = {}
    for point in curves.exchanged:
        found.setdefault(point.dropped, []).append(point)
    return {share: sorted(points, key=lambda point: point.displaced) for share, points in sorted(found.items())}


def _figure7(curves: Curves, published: Published) -> Figure:
    with canvas(6.5, 4.0) as (axes, files):
        shares = [share for share in _by_share(curves) if share > 0]
        for colour, share in zip(COLOURS, shares, strict=False):
            theirs = sorted((pairs, value) for (at, pairs), value in published.exchanged.items() if at == share)
            if theirs:
                axes.plot(
                    *zip(*theirs, strict=True), color=colour, linewidth=1, linestyle=":", label=f"published, {share:g}"
                )
            points = sorted(_by_share(curves)[share], key=lambda point: point.pairs)
            values = [(point.accuracy, point.interval) for point in points]
            band(axes, [point.pairs for point in points], values, colour, f"ours, {share:g} missing")
        axes.set_xlabel("pairs exchanged, drawn with replacement")
        axes.set_ylabel("accuracy")
        axes.legend(frameon=False, fontsize=7)
        return Figure(
            "figure-7", "Figure 7 of the founding paper: blocks missing, and pairs of the others exchanged.", files()
        )


def _displaced(curves: Curves) -> Figure:
    with canvas(6.5, 4.0) as (axes, files):
        for colour, (share, points) in zip(COLOURS, _by_share(curves).items(), strict=False):
            values = [(point.accuracy, point.interval) for point in points]
            band(axes, [point.displaced for point in points], values, colour, f"{share:g} missing")
        axes.set_xlabel("share of held blocks displaced")
        axes.set_ylabel("accuracy")
        axes.legend(frameon=False)
        caption = (
            "The same over the share of held blocks that are not in their place: a few pairs ruin small holdings only."
        )
        return Figure("figure-7-displaced", caption, files())
