"""The pictures of what attacks do: to accuracy, to probabilities, to features. Titles, captions, when there are any."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from limbeck.analysis import epsilons, features, moved, trade_off
from limbeck.analysis.robust import epsilon_text
from limbeck.analysis.statistics import spread
from limbeck.analysis.style import Picture, new_figure, png

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from limbeck.analysis.comparison import Comparison
    from limbeck.analysis.run_files import Run

    Rows = Mapping[str, Sequence[Run]]


def of_comparison(comparison: Comparison) -> Iterator[Picture]:
    """Yield robust against clean accuracy, of comparisons of adversarial training."""
    if comparison.attacks is None:
        return
    result = trade_off.compute(comparison)
    figure, panels = new_figure(7.6 if result.tried else 4.2, 2 if result.tried else 1)
    trade_off.draw(result, panels[0]).set_title("Chosen settings")
    caption = (
        f"Clean accuracy and accuracy under {comparison.attacks.headline} at epsilon "
        f"{epsilon_text(comparison.attacks.epsilon)}: up and to the right is better in both. Small dots: seeds. Bars: "
        "standard deviations over them."
    )
    if result.published:
        caption += (
            " Grey: published figures on the same data, at the same radius and by the same attack, of larger nets "
            "as a rule (Tables III and IV of arXiv 2503.08038)."
        )
    if result.tried:
        trade_off.draw_tried(result, panels[1]).set_title("All settings tried, on validation")
        caption += " Below: means of all settings of a row, the chosen one ringed."
    yield Picture("trade_off", "Robust against clean accuracy", caption, png(figure))


def of_attacks(rows: Rows, baseline: str | None) -> Iterator[Picture]:
    """Yield what the attacked predictions of finished runs show: nothing for runs that were not attacked."""
    yield from _epsilons(rows)
    yield from _moved(rows)
    if importlib.util.find_spec("sklearn"):
        yield from _features(rows, baseline)


def _epsilons(rows: Rows) -> Iterator[Picture]:
    result = epsilons.compute(rows)
    if result.empty:
        return
    figure, (axes,) = new_figure(3.8)
    epsilons.draw(result, axes).set_title(title := "Accuracy against the radius of the attack")
    bands = " Lines: mean over seeds; bands: their range." if any(len(runs) > 1 for runs in rows.values()) else ""
    of = "Each attack" if result.attack is None else f"Accuracy under {result.attack}"
    caption = f"{of} at the radii measured, which are marked; straight lines between them measure nothing.{bands}"
    yield Picture("epsilons", title, caption, png(figure))


def _moved(rows: Rows) -> Iterator[Picture]:
    result = moved.compute(rows)
    if result is None:
        return
    figure, (axes,) = new_figure(4.6)
    moved.draw(result, axes).set_title(title := "How far an attack moves probabilities")
    ratios = ", ".join(f"{name} {row.ratio:.2f}" for name, row in result.rows.items())
    caption = (
        f"Half the L1 distance of probabilities before and after PGD-20 at epsilon {epsilon_text(result.epsilon)}, one "
        "mark for each class: of its images on average (right) and of its mean (up). A mean cannot move more than its "
        "images do on average (the dashed line, triangle inequality); section 3.4 of arXiv 2503.08038 claims that it "
        f"moves less. Mean over the classes of the one over the other: {ratios}. The classes have {result.smallest} "
        "images or more; the fewer, the nearer the ratio is to 1."
    )
    yield Picture("moved_probabilities", title, caption, png(figure))


def _features(rows: Rows, baseline: str | None) -> Iterator[Picture]:
    found = features.tightness(rows)
    others = [name for name in found if name != baseline]
    shown = [name for name in (baseline, *others[-1:]) if name in found]  # rows go from the plain to the general one
    maps = {name: features.compute(rows[name][0]) for name in shown if name is not None}
    drawn = {name: result for name, result in maps.items() if result is not None}
    if not drawn:
        return
    figure, panels = new_figure(7.4 if len(drawn) == 1 else 4.2, 1, len(drawn))
    for axes, (name, result) in zip(panels, drawn.items(), strict=True):
        on_map = result.tightness
        ratio = f"intra / inter {on_map.clean:.2f} clean, {on_map.adversarial:.2f} attacked"
        features.draw(result, axes).set_title(f"{name}\n{ratio}", fontsize=9.5)
    sizes = {len(result.labels) for result in drawn.values()}
    classes = {len(set(result.labels.tolist())) for result in drawn.values()}
    ratios = "; ".join(
        f"{name} {_over_seeds([each.clean for each in of_runs])} clean, "
        f"{_over_seeds([each.adversarial for each in of_runs])} attacked"
        for name, of_runs in found.items()
    )
    caption = (
        f"t-SNE of the penultimate features of {min(sizes)} test images of {min(classes)} classes, before (dots) and "
        "after PGD-20 (crosses), of the first seed. Numbers: distance to the mean of the own class over the distance "
        "between the means of two classes; smaller is tighter. Above each map it is that on the map, which "
        "distorts distances. On the features themselves, all images and classes, mean ± standard deviation over seeds: "
        f"{ratios}."
    )
    yield Picture("features", "Features of clean and attacked images", caption, png(figure))


def _over_seeds(values: Sequence[float]) -> str:
    found = spread(values)
    return f"{found.mean:.3f}" if found.std is None else f"{found.mean:.3f} ± {found.std:.3f}"
