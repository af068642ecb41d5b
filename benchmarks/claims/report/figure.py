"""The claims bench's figure: pooled PSNR against tokens, and against bits with positions, of every policy."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from benchmarks.claims.models import variants
from benchmarks.claims.results import Results
from tatok.evaluation.comparison import PolicyScore

__all__ = ["draw_curve"]

POLICIES = {
    "DTF distance": ("#0b6e4f", "o"),
    "DTF content": ("#1f77b4", "s"),
    "DTF entropy (the paper's reading)": ("#9467bd", "^"),
    "fixed k by distance": ("#8c6d31", "v"),
    "random": ("#999999", "x"),
}
GRID = ("#c0392b", "D")


def draw_curve(results: Results, path: Path) -> None:
    """Write an SVG of two panels."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    curves = _curves(results)
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.6), sharey=True)
    for panel, axis in zip(panels, ("tokens", "bits"), strict=True):
        for name, (scores, (colour, marker)) in curves.items():
            xs = [mean(s.mean_tokens if axis == "tokens" else s.bits_with_positions for s in group) for group in scores]
            ys = [mean(s.psnr_of_mean_db for s in group) for group in scores]
            style = "--" if name == "coarse grid" else "-"
            panel.plot(xs, ys, style, color=colour, marker=marker, markersize=5, label=name)
        panel.set_xlabel("mean tokens an image" if axis == "tokens" else "mean bits an image, positions included")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("PSNR of the mean squared error, dB")
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    with matplotlib.rc_context({"svg.hashsalt": "tatok"}):  # the same figures make the same file
        figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def _curves(results: Results) -> dict[str, tuple[list[list[PolicyScore]], tuple[str, str]]]:
    """Name -> scores of all seeds, point by point."""
    curves = {}
    models = {
        each.variant: [r for r in results.reconstructions if r.variant == each.variant]
        for each in results.reconstructions
    }
    counts = sorted({results.setting.headline, *results.setting.curve})
    for name, look in POLICIES.items():
        points = [
            [
                s
                for each in models["tatok"]
                for point in each.points
                if point.wanted_tokens == count
                for s in point.scores
            ]
            for count in counts
        ]
        curves[name] = ([[s for s in scores if s.name == name] for scores in points], look)
    grids = [variant for variant in variants(results.setting) if variant.name.startswith("grid-")]
    grids = sorted((v for v in grids if v.name in models), key=lambda variant: variant.fixed_tokens or 0)
    curves["coarse grid"] = ([[each.points[0].scores[0] for each in models[v.name]] for v in grids], GRID)
    return curves
