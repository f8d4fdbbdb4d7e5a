"""The plots of a sweep's report, drawn as analysis.figures draws: a table goes in; png, svg and csv
come out.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from shfcas_lib.analysis.figures import (
    COLOURS,
    dots,
    figure_function,
    legend,
    name_of,
    short,
    subplots,
)


@figure_function
def gain_by_budget(table: pd.DataFrame, note: str = ""):
    """Gold gained over the proxy against label budget.

    table: policy, budget, value, low, high; note: a line below, such as the ceilings.
    """
    figure, axes = subplots(9, 4.6)
    # the legend in the lines' order
    last = table[table["budget"] == table["budget"].max()]
    for policy in last.sort_values("value", ascending=False)["policy"]:
        part = table[table["policy"] == policy].sort_values("budget")
        wide = policy in ("shf_cas", "random")
        budget, colour = part["budget"], COLOURS.get(policy)
        axes.plot(
            budget,
            part["value"],
            color=colour,
            marker="o",
            markersize=4,
            linewidth=2.8 if wide else 1.4,
            label=name_of(policy),
        )
        if wide:  # one band each for the two that the figure is about
            low, high = part["low"], part["high"]
            axes.fill_between(budget, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(0, color="0.5", linestyle=":")
    axes.set(
        title="What a label buys",
        xlabel="labels",
        ylabel="gold reward gained over the proxy",
        xticks=sorted(table["budget"].unique()),
    )
    axes.margins(x=0.02)
    legend(axes)
    bands = f"Bands: 95% over pools and seeds, paired with the proxy. {note}"
    figure.text(0.01, -0.03, bands, fontsize=8.5, color="0.4")
    return figure


@figure_function
def strategy_matrix(table: pd.DataFrame, columns: str, title: str):
    """Differences of strategies (rows) by `columns`.

    table: policy, that column, difference, verdict. Pale cells are not significant.
    """
    import seaborn as sns

    rows, tops = list(dict.fromkeys(table["policy"])), list(dict.fromkeys(table[columns]))
    wide = table.pivot(index="policy", columns=columns).reindex(index=rows)
    value = wide["difference"].reindex(columns=tops)
    clear = wide["verdict"].reindex(columns=tops).isin(["higher", "lower"])
    figure, axes = subplots(3.2 + 0.95 * len(tops), 1.9 + 0.42 * len(rows))
    # colour only what is clear, one scale on both sides of 0
    limit = float(np.nanmax(np.abs(value.to_numpy()))) or 1.0
    sns.heatmap(
        value.where(clear),
        annot=False,
        cmap="RdBu",
        center=0,
        vmin=-limit,
        vmax=limit,
        linewidths=1,
        linecolor="white",
        cbar=False,
        ax=axes,
    )
    axes.set_facecolor("#f2f2f2")
    axes.grid(False)
    _numbers(axes, value.to_numpy(float), clear.to_numpy(), limit)
    axes.set(xlabel="", ylabel="", title=title)
    names = [name_of(str(top)) for top in tops]
    axes.set_xticks(np.arange(len(tops)) + 0.5, names, rotation=35, ha="right", fontsize=9)
    axes.set_yticks(np.arange(len(rows)) + 0.5, [name_of(row) for row in rows], rotation=0)
    axes.tick_params(length=0)
    legend_text = (
        "* interval clear of 0, Wilcoxon's p after Holm under 0.05, all pools agree in sign; grey:"
        " not significant"
    )
    figure.text(0.01, 0.005, legend_text, fontsize=8.5, color="0.4")
    return figure


def _numbers(axes, value: np.ndarray, clear: np.ndarray, limit: float) -> None:
    """The differences in the cells of a matrix, with a star where they are significant."""
    for row, column in np.ndindex(value.shape):
        number, significant = value[row, column], clear[row, column]
        colour = "0.5"
        if significant:
            colour = "white" if abs(number) > 0.6 * limit else "black"
        axes.text(
            column + 0.5,
            row + 0.5,
            ("" if np.isnan(number) else f"{number:+.3f}") + ("*" if significant else ""),
            ha="center",
            va="center",
            fontsize=9,
            color=colour,
        )


@figure_function
def error_areas(table: pd.DataFrame):
    """Does conflict find the proxy's wrong pairs, and better than its placebo?

    table: setting, measure, value, low, high: area under ROC; chance: that of the placebo.
    """
    settings = list(dict.fromkeys(table["setting"]))
    figure, axes = subplots(9.5, 1.2 + 0.55 * len(settings))
    measures = list(dict.fromkeys(table["measure"]))
    colours = {
        "|PACS|": COLOURS["pacs"],
        "K": COLOURS["kendall"],
        "|PACS_i - PACS_j|": COLOURS["pacs_difference"],
    }
    # the measures of one setting side by side, so that intervals do not cover each other
    shifts = np.linspace(-0.22, 0.22, len(measures))
    for shift, measure in zip(shifts, measures, strict=True):
        part = table[table["measure"] == measure]
        values, low, high = (part[c].to_numpy(float) for c in ("value", "low", "high"))
        axes.errorbar(
            values,
            [settings.index(s) + shift for s in part["setting"]],
            xerr=[values - low, high - values],
            fmt="o",
            markersize=5,
            capsize=2,
            color=colours.get(measure, "#555555"),
            label=measure,
        )
        axes.scatter(
            part["chance"],
            [settings.index(s) + shift for s in part["setting"]],
            marker="|",
            s=70,
            color=colours.get(measure, "#555555"),
        )
    axes.axvline(0.5, color="0.5", linestyle=":")
    axes.set(
        yticks=range(len(settings)),
        yticklabels=settings,
        xlabel="area under ROC (stroke: chance, the same with log-probabilities shuffled)",
        title="Which number knows where the proxy ranks a pair wrongly?",
    )
    axes.set_ylim(len(settings) - 0.5, -0.5)
    legend(axes)
    return figure


@figure_function
def category_gains(table: pd.DataFrame):
    """Gold gained over the proxy in each category. table: policy, category, value, low, high."""
    categories = list(dict.fromkeys(table["category"]))
    policies = list(dict.fromkeys(table["policy"]))
    figure, axes = subplots(8, 1.2 + 0.5 * len(categories))
    shifts = np.linspace(-0.2, 0.2, len(policies))
    for shift, policy in zip(shifts, policies, strict=True):
        part = table[table["policy"] == policy]
        dots(axes, part, [categories.index(c) + shift for c in part["category"]], policy)
    axes.axvline(0, color="0.5", linestyle=":")
    axes.set(
        yticks=range(len(categories)),
        yticklabels=[short(c) for c in categories],
        xlabel="gold reward gained over the proxy",
        title="Where the labels help",
    )
    axes.set_ylim(len(categories) - 0.5, -0.5)
    legend(axes)
    return figure


@figure_function
def selection_seconds(table: pd.DataFrame):
    """Seconds that one selection takes. table: policy, seconds (median)."""
    table = table.sort_values("seconds", ignore_index=True)
    figure, axes = subplots(7.5, 1 + 0.36 * len(table))
    colours = [COLOURS.get(policy, "0.4") for policy in table["policy"]]
    axes.barh(range(len(table)), table["seconds"], color=colours)
    axes.set(
        yticks=range(len(table)),
        yticklabels=[name_of(p) for p in table["policy"]],
        xscale="log",
        xlabel="seconds, one selection",
        title="What choosing costs",
    )
    # matplotlib's own would be a formula, and formulas are switched off
    axes.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
    axes.xaxis.set_minor_formatter(lambda seconds, _: "")
    return figure
