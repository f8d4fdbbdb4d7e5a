"""Every plot: a saved table goes in; a figure comes out, written as png and svg beside the csv it
was drawn from.

    figures.pacs_plane(conflict, folder / "pacs_plane")

Colours are the colour-blind safe palette of Okabe and Ito, and always mean the same policy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shfcas_lib.analysis import fonts
from shfcas_lib.analysis.agreement import NEEDS
from shfcas_lib.base import texts
from shfcas_lib.storage import files

COLOURS = {
    "base": "#7f7f7f",
    "proxy": "#d55e00",
    "random": "#56b4e9",
    "targeted": "#4b0092",
    "merged": "#b8860b",
    "shf_cas": "#009e73",
    "clean": "#000000",
    "shf_cas_threshold": "#cc79a7",
    "pacs": "#0072b2",
    "kendall": "#e69f00",
    "full": "#555555",
    "pacs_difference": "#882255",
    "margin": "#999933",
    "uncertainty": "#332288",
    "low_conflict": "#bbbbbb",
    "random_prompts": "#88ccee",
    "bald": "#aa4499",
    "d_optimal": "#661100",
    "best_of": "#ddcc77",
    "attribute_out": "#cc6677",
    "projection": "#996633",
    "ensemble_mean": "#6699cc",
    "ensemble_min": "#004488",
    "conservative_kl": "#8c7aa9",
    "placebo": "#44aa99",
    "extreme_reward": "#cc6677",
    "length": "#56b4e9",
}
LABELS = {
    "base": "base policy",
    "proxy": "proxy",
    "random": "random labels",
    "targeted": "targeted labels",
    "merged": "the same labels, merged",
    "shf_cas": "SHF-CAS labels",
    "clean": "labels before bias (ceiling)",
    "shf_cas_threshold": "SHF-CAS threshold",
    "pacs": "PACS only",
    "kendall": "K only",
    "full": "every label (ceiling)",
    "pacs_difference": "PACS difference",
    "margin": "smallest margin",
    "uncertainty": "ensemble uncertainty",
    "low_conflict": "low conflict (control)",
    "random_prompts": "random prompts",
    "bald": "BALD",
    "d_optimal": "D-optimal",
    "best_of": "proxy's favourites",
    "attribute_out": "attribute regressed out",
    "projection": "attribute projected out",
    "ensemble_mean": "ensemble mean",
    "ensemble_min": "ensemble minimum",
    "conservative_kl": "proxy at the same KL",
    "placebo": "placebo labels",
    "extreme_reward": "extreme rewards",
    "length": "length alone",
}
PAPER = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5}  # under text
# matplotlib's stubs want these keys as literals of their own
_STYLE: Any = {
    "text.parse_math": False,
    "svg.hashsalt": "shfcas",
    "figure.dpi": 110,
    "savefig.bbox": "tight",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
}
# the parts of a trust report: name and colour
_PARTS = {
    "taste": ("annotators' taste", "#d55e00"),
    "taught": ("what labels taught", "#0072b2"),
    "reward": ("refined reward", "#4b0092"),
}
_NEEDS = {
    "trust_report": "labels that can tell whom to trust, and refinement trust",
    "way_back": "replicates in which the flaw cost something",
    "proxy_errors": "gold, or preferences of your own that did not train the proxy",
    "attribute_pull": "gold, or an attribute that bias injects",
    "label_agreement": NEEDS,
    "error_roc": "gold that tells completions apart",
    "kendall_by_category": "a prompt that is not degenerate",
}


def figure_function(draw: Callable) -> Callable:
    """Make draw(table, ...) a function (table, path, ...) that writes path.png, .svg and .csv.

    It returns the figure. Where there is nothing to draw (table is None, or draw returns None),
    mostly for want of gold, one printed line says so and None is returned.
    """

    @functools.wraps(draw)
    def draw_and_write(table: pd.DataFrame | None, path: Path, **options):
        import matplotlib.pyplot as plt
        import seaborn as sns

        # seaborn jitters points from the global generator: the same table gives the same picture
        np.random.seed(0)
        shown = None if table is None else texts.printable_table(table)
        style = _STYLE if shown is None else _STYLE | {"font.family": fonts.families(shown)}
        with sns.axes_style("whitegrid"), sns.plotting_context("notebook"), plt.rc_context(style):
            figure = None if shown is None else draw(shown, **options)
            if figure is None:
                print(f"figure {path.name}: left out, it needs {_NEEDS.get(draw.__name__, 'gold')}")
                return None
            with fonts.missing_glyphs_told():
                figure.tight_layout()
                _write(figure, table, path)
            plt.close(figure)
        return figure

    return draw_and_write


def _write(figure, table: pd.DataFrame, path: Path) -> None:
    """The figure as png and svg, and its table as csv, side by side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix, extra in ((".png", {"dpi": 160}), (".svg", {"metadata": {"Date": None}})):
        with files.atomic(path.with_suffix(suffix)) as target:
            figure.savefig(target, format=suffix[1:], **extra)
    with files.atomic(path.with_suffix(".csv")) as target:
        texts.table_csv(table, target)


@figure_function
def proxy_errors(table: pd.DataFrame, judge: str = "gold ranks"):
    """Where the proxy is wrong.

    table: group, reward (proxy, and clean or length), value, low, high: pair accuracy on
    held-out prompts, as the judge has it.
    """
    groups = list(dict.fromkeys(table["group"]))
    figure, axes = subplots(7.5, 0.8 + 0.42 * len(groups))
    shifts = (-0.13, 0.13) if table["reward"].nunique() > 1 else (0,)
    for shift, (name, part) in zip(shifts, table.groupby("reward", sort=False), strict=True):
        dots(axes, part, [groups.index(g) + shift for g in part["group"]], name)
    axes.axvline(0.5, color="0.5", linestyle=":", zorder=0)
    axes.set(
        yticks=range(len(groups)),
        yticklabels=[short(g) for g in groups],
        xlabel=f"share of pairs ranked as {judge} them (0.5: chance)",
        title="Where the proxy is wrong",
    )
    axes.invert_yaxis()
    legend(axes)
    return figure


@figure_function
def attribute_pull(table: pd.DataFrame, attribute: str):
    """What the proxy follows.

    table: reward (gold, clean, proxy), correlation: per prompt, rank correlation with the
    attribute.
    """
    import seaborn as sns

    figure, axes = subplots(7.5, 2.8)
    order = [n for n in ("gold", "clean", "proxy") if n in set(table["reward"])]
    words = {"gold": "gold", "clean": "reward from\nlabels before bias", "proxy": "proxy"}
    palette = {"gold": "#b8860b", "clean": COLOURS["clean"], "proxy": COLOURS["proxy"]}
    sns.stripplot(
        table,
        x="correlation",
        y="reward",
        hue="reward",
        order=order,
        palette=palette,
        alpha=0.35,
        size=4,
        ax=axes,
        legend=False,
        jitter=0.25,
    )
    # the bar of the mean, and its number above the dots
    for row, name in enumerate(order):
        mean = table.loc[table["reward"] == name, "correlation"].mean()
        axes.plot([mean, mean], [row - 0.35, row + 0.35], color=palette[name], linewidth=3)
        axes.annotate(f"{mean:+.2f}", (mean, row - 0.38), ha="center", va="bottom", fontsize=10)
    axes.axvline(0, color="0.5", linestyle=":", zorder=0)
    axes.set(
        xlabel=f"rank correlation with {attribute}, one dot per held-out prompt (bar: mean)",
        ylabel="",
        xlim=(-1.05, 1.05),
        title=f"What each reward follows: {attribute}",
        ylim=(len(order) - 0.5, -0.85),
        yticks=range(len(order)),
        yticklabels=[words[name] for name in order],
    )
    return figure


@figure_function
def pacs_plane(table: pd.DataFrame):
    """The z(l)-z(r) plane. table: a conflict table (z_logp, z_reward, pacs)."""
    figure, axes = subplots(6.2, 5)
    limit = 2.75
    points = axes.scatter(
        table["z_logp"],
        table["z_reward"],
        c=table["pacs"],
        cmap="PuOr",
        vmin=-3.5,
        vmax=3.5,
        s=22,
        edgecolor="0.4",
        linewidth=0.25,
    )
    axes.plot([-limit, limit], [-limit, limit], color="0.3", linestyle="--", linewidth=1)
    _regions(axes)
    axes.set(
        xlim=(-limit, limit),
        ylim=(-limit, limit),
        xlabel="z(ℓ): how likely the policy finds it",
        ylabel="z(r): how much the proxy likes it",
        title="Proxy-policy conflict, one dot per completion",
        aspect="equal",
    )
    figure.colorbar(points, ax=axes, label="PACS = z(r) − z(ℓ)")
    return figure


def _regions(axes) -> None:
    """What the parts of the plane mean, written into it."""
    axes.annotate(
        "proxy and policy agree",
        (-2.45, -2.35),
        rotation=45,
        fontsize=9,
        color="0.3",
        rotation_mode="anchor",
        bbox=PAPER,
    )
    axes.annotate(
        "the proxy likes what the\npolicy finds unlikely", (-2.6, 2.15), fontsize=10, bbox=PAPER
    )
    axes.annotate(
        "the policy likes what the\nproxy scores down", (0.3, -2.6), fontsize=10, bbox=PAPER
    )


@figure_function
def pacs_distribution(table: pd.DataFrame):
    """Distribution of PACS. table: a conflict table."""
    import seaborn as sns

    figure, axes = subplots(7.5, 3)
    sns.histplot(
        table, x="pacs", bins=np.arange(-5, 5.01, 0.25), color="#5e3c99", alpha=0.75, ax=axes
    )
    share = (table["pacs"].abs() > 2).mean()
    for edge in (-2, 2):
        axes.axvline(edge, color="0.3", linestyle=":")
    axes.set(
        xlabel="PACS (negative: the policy likes it more; positive: the proxy likes it more)",
        ylabel="completions",
        title=f"{share:.0%} of completions have |PACS| above 2",
        xlim=(-5, 5),
    )
    return figure


@figure_function
def kendall_by_category(table: pd.DataFrame):
    """K by category. table: prompt_id, category, kendall, of prompts that are not degenerate; None
    where it is empty."""
    if not len(table):
        return None
    import seaborn as sns

    order = list(table.groupby("category")["kendall"].mean().sort_values(ascending=False).index)
    figure, axes = subplots(7.5, 1 + 0.38 * len(order))
    sns.stripplot(
        table, x="kendall", y="category", order=order, color="#0072b2", alpha=0.5, size=4.5, ax=axes
    )
    means = table.groupby("category")["kendall"].mean()
    for row, name in enumerate(order):
        axes.plot([means[name]] * 2, [row - 0.3, row + 0.3], color="#d55e00", linewidth=3)
    axes.axvline(0.5, color="0.5", linestyle=":", zorder=0)
    axes.set(
        xlim=(-0.03, 1.03),
        xlabel="Kendall-tau distance K (0: same ranking, 0.5: unrelated, 1: reversed)",
        ylabel="",
        yticks=range(len(order)),
        yticklabels=[short(n) for n in order],
        title="Where the two rankings differ (dot: prompt, bar: mean)",
    )
    return figure


@figure_function
def error_roc(table: pd.DataFrame):
    """Does conflict predict the proxy's error?

    table: score_name, placebo (log-probabilities shuffled), false_positive_rate,
    true_positive_rate, area.
    """
    figure, axes = subplots(5.6, 5.2)
    names = list(dict.fromkeys(table["score_name"]))
    colours = dict(zip(names, ("#009e73", "#e69f00", "#56b4e9"), strict=True))
    for (name, placebo), part in table.groupby(["score_name", "placebo"], sort=False):
        title = "   shuffled" if placebo else name
        axes.plot(
            part["false_positive_rate"],
            part["true_positive_rate"],
            color=colours[name],
            linewidth=1.3 if placebo else 2.2,
            linestyle="--" if placebo else "-",
            label=f"{title}: area {part['area'].iloc[0]:.2f}",
        )
    axes.plot([0, 1], [0, 1], color="0.5", linestyle=":")
    axes.set(
        xlabel="pairs the proxy ranks rightly, flagged",
        ylabel="pairs the proxy ranks wrongly, flagged",
        title="Does conflict find the proxy's errors?",
        xlim=(0, 1),
        ylim=(0, 1),
        aspect="equal",
    )
    axes.legend(loc="lower right", frameon=True, fontsize=9.5)
    return figure


@figure_function
def contradictions(table: pd.DataFrame):
    """What the labels bought.

    table: strategy, round, labels, contradicted (share of decided labels against the reward),
    ties.
    """
    strategies = list(dict.fromkeys(table["strategy"]))
    figure, axes = subplots(6.5 + 0.5 * len(strategies), 3.2)
    width = 0.8 / len(strategies)
    for k, name in enumerate(strategies):
        part = table[table["strategy"] == name]
        x = part["round"] + (k - (len(strategies) - 1) / 2) * width
        axes.bar(x, part["contradicted"], width * 0.9, color=COLOURS.get(name), label=name_of(name))
        # numbers side by side would run into each other
        named = zip(x, part["contradicted"], strict=True) if len(strategies) < 4 else ()
        for position, value in named:
            axes.annotate(f"{value:.0%}", (position, value), ha="center", va="bottom", fontsize=10)
    axes.axhline(0.5, color="0.5", linestyle=":")
    axes.set(
        xticks=sorted(table["round"].unique()),
        xlabel="round",
        ylabel="labels that contradict\nthe reward of the round",
        ylim=(0, 1),
        title="A label teaches most where the reward is wrong",
    )
    legend(axes)
    return figure


@figure_function
def trust_report(table: pd.DataFrame):
    """Whom the labels trust. table: from `belief.report`; the right panel shows the first
    strategy's."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=(1.1, 1))
    posterior = table[table["part"] == "rho"]
    values = sorted(posterior["name"].unique(), key=float)
    for name, part in posterior.groupby("strategy", sort=False):
        shares = part.set_index("name")["value"].reindex(values)
        left.plot(values, shares, color=COLOURS.get(name), marker="o", label=name_of(name))
    left.set(
        ylim=(0, None),
        xlabel="ρ: share that is quality",
        ylabel="posterior share",
        title="How far are the pairs believed?",
    )
    legend(left)

    first = table[table["strategy"] == table["strategy"].iloc[0]]
    rest = first[first["part"] != "rho"]
    names = list(dict.fromkeys(rest["name"]))
    for shift, part in zip((-0.12, 0.12), rest["part"].unique(), strict=True):
        (label, colour), rows = _PARTS[part], rest[rest["part"] == part]
        places = [names.index(name) + shift for name in rows["name"]]
        whiskers = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
        right.errorbar(rows["value"], places, xerr=whiskers, color=colour, fmt="o", label=label)
    right.axvline(0, color="0.5", linestyle=":", zorder=0)
    right.set(
        yticks=range(len(names)),
        yticklabels=names,
        ylim=(len(names) - 0.5, -0.5),
        xlabel="rank correlation within prompts",
        title=f"What do they follow? ({name_of(first['strategy'].iloc[0])})",
    )
    legend(right)
    return figure


@figure_function
def way_back(table: pd.DataFrame):
    """How much of what the flaw cost labels undo. table: from `way.shares`; the refinement that
    most rows have is drawn solid, others dashed."""
    figure, axes = subplots(8.5, 4.4)
    usual = table["refinement"].mode().iloc[0]
    # the legend in the lines' order
    table = table.sort_values(["labels", "value"], ascending=False)
    for (name, how), part in table.groupby(["policy", "refinement"], sort=False):
        part = part.sort_values("labels")
        style = {"linewidth": 2.4} if how == usual else {"linewidth": 1.4, "linestyle": "--"}
        label = name_of(name) + ("" if how == usual else f", {how}")
        colour = COLOURS.get(name)
        axes.plot(part["labels"], part["value"], color=colour, marker="o", label=label, **style)
        if how == usual:
            low, high = part["low"], part["high"]
            axes.fill_between(part["labels"], low, high, color=colour, alpha=0.1, linewidth=0)
    axes.axhline(0, color=COLOURS["proxy"], linestyle=":")
    axes.axhline(1, color=COLOURS["clean"], linestyle=":")
    for height, words in ((1, "clean labels"), (0, "biased proxy")):
        place = {"xycoords": axes.get_yaxis_transform(), "ha": "right", "va": "bottom"}
        axes.annotate(words, (0.985, height), **place)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}".replace("-", "−"))
    axes.set(
        xlabel="labels",
        ylabel="share of the way back",
        title=f"What labels undo (solid: refinement {usual}; bands: 95% over seeds)",
        xticks=sorted(table["labels"].unique()),
        ylim=(min(-0.1, table["value"].min() - 0.05), max(1.1, table["value"].max() + 0.05)),
    )
    legend(axes)
    return figure


@figure_function
def figure_of_merit(
    table: pd.DataFrame, measure: str = "gold", label: str = "gold reward on held-out prompts"
):
    """One measure for every policy.

    table: policy, measure, value, low, high. None where nobody measured it, as gold in a run
    without.
    """
    part = table[table["measure"] == measure]
    if not len(part):
        return None
    figure, axes = subplots(7.5, 1 + 0.48 * len(part))
    for row, (_, line) in enumerate(part.iterrows()):
        dots(axes, line.to_frame().T, [row], line["policy"])
        _number(axes, f"{line['value']:.3f}", line["value"], row)
    base = part.loc[part["policy"] == "base", "value"]
    if len(base):
        axes.axvline(base.iloc[0], color=COLOURS["base"], linestyle=":", zorder=0)
    axes.set(
        yticks=range(len(part)),
        yticklabels=[name_of(p) for p in part["policy"]],
        xlabel=f"{label} (bar: 95% interval)",
        title="Is it better?",
    )
    axes.set_ylim(len(part) - 0.5, -0.7)
    return figure


@figure_function
def label_agreement(table: pd.DataFrame):
    """Which reward ranks labelled pairs as their labels do?

    table: asked, reward, labels, value, low, high; a panel for each strategy that asked.
    """
    import matplotlib.pyplot as plt

    strategies = list(dict.fromkeys(table["asked"]))
    rewards = list(dict.fromkeys(table["reward"]))
    figure, panels = plt.subplots(
        1,
        len(strategies),
        figsize=(2 + 3.4 * len(strategies), 1.5 + 0.5 * len(rewards)),
        sharey=True,
        sharex=True,
        squeeze=False,
    )
    for axes, strategy in zip(panels[0], strategies, strict=True):
        part = table[table["asked"] == strategy].set_index("reward")
        _agreement_panel(axes, part, rewards, _chosen_by(strategy))
    return figure


def _agreement_panel(axes, part: pd.DataFrame, rewards: list[str], chosen: str) -> None:
    """The rewards on the labels of one strategy. part: labels, value, low, high by reward."""
    for row, reward in enumerate(rewards):
        line = part.loc[[reward]]
        value = line["value"].iloc[0]
        dots(axes, line, [row], reward)
        _number(axes, f"{value:.0%}", value, row)
    axes.axvline(0.5, color="0.5", linestyle=":", zorder=0)
    axes.set(
        title=f"{part['labels'].iloc[0]} labels on\n{chosen}",
        yticks=range(len(rewards)),
        xlabel="share of pairs ranked as labelled\n(0.5: chance, bar: 95% interval)",
        yticklabels=[_reward_name(reward) for reward in rewards],
    )
    axes.set_ylim(len(rewards) - 0.5, -0.7)


def _chosen_by(strategy: str) -> str:
    """The pairs that a strategy asked about, in words."""
    if strategy == "random":
        return "random pairs"
    return f"pairs that {name_of(strategy).removesuffix(' labels')} chose"


def _reward_name(reward: str) -> str:
    return "proxy" if reward == "proxy" else f"refined: {name_of(reward)}"


@figure_function
def over_optimisation(table: pd.DataFrame):
    """Gold and own reward against KL as beta falls.

    table: policy, beta, kl, reward_gain, gold_gain; without gold refined_gain in its place, which
    says how far labels changed a reward's mind, and nothing of who is right.
    """
    judge = "refined_gain"
    title = "No gold: solid is what the refined reward says, dashed what the reward itself believes"
    if "gold_gain" in table:
        judge = "gold_gain"
        title = "Over-optimisation: solid is gold, dashed is what the reward believes"
    figure, axes = subplots(8, 4.2)
    ends = []
    for name, part in table.groupby("policy", sort=False):
        part = part.sort_values("kl")
        kl, colour = part["kl"], COLOURS.get(name)
        axes.plot(kl, part[judge], color=colour, marker="o", markersize=4, linewidth=2.2)
        own = part["reward_gain"]
        axes.plot(kl, own, color=colour, linestyle="--", linewidth=1.1, alpha=0.7)
        ends.append((part[judge].iloc[-1], kl.iloc[-1], name))

    farthest = max(right for _, right, _ in ends)
    _name_ends(axes, ends, farthest + 0.05)
    axes.axhline(0, color="0.5", linestyle=":")
    axes.set(
        xlabel="KL from the base policy, nats (right: harder optimisation)",
        ylabel="gain, standard deviations",
        title=title,
    )
    axes.set_xlim(0, farthest * 1.32 + 0.1)
    return figure


def _name_ends(axes, ends: list[tuple[float, float, str]], right: float) -> None:
    """A policy's name beside the end (height, place, policy) of its line.

    Names are pushed apart where lines end close together.
    """
    lowest = -np.inf
    for height, place, policy in sorted(ends):
        lowest = max(height, lowest + 0.09)
        axes.annotate(
            name_of(policy),
            (place, height),
            xytext=(right, lowest),
            color=COLOURS.get(policy),
            va="center",
            fontsize=10,
        )


@figure_function
def seeds(table: pd.DataFrame, label: str = "gold reward, mean of the seed's held-out prompts"):
    """Replicates. table: seed, policy, gold."""
    import seaborn as sns

    order = list(dict.fromkeys(table["policy"]))
    figure, axes = subplots(7.5, 1 + 0.5 * len(order))
    # seeds as thin lines behind the dots: pairs of one seed belong together
    for _, part in table.groupby("seed"):
        part = part.set_index("policy").loc[order]
        axes.plot(part["gold"], range(len(order)), color="0.75", linewidth=0.6, zorder=0)
    sns.stripplot(
        table,
        x="gold",
        y="policy",
        hue="policy",
        order=order,
        palette={n: COLOURS.get(n, "0.3") for n in order},
        size=4.5,
        alpha=0.7,
        jitter=0,
        ax=axes,
        legend=False,
    )
    for row, name in enumerate(order):
        mean = table.loc[table["policy"] == name, "gold"].mean()
        axes.plot([mean] * 2, [row - 0.3, row + 0.3], color=COLOURS.get(name), linewidth=3)
    axes.set(
        yticks=range(len(order)),
        yticklabels=[name_of(n) for n in order],
        ylabel="",
        xlabel=label,
        title=f"Is it luck? {table['seed'].nunique()} seeds (line: one seed, bar: mean)",
    )
    return figure


@figure_function
def conflict_change(table: pd.DataFrame):
    """Conflict before and after.

    table: policy, measure, value, low, high with measures kendall and mean_abs_pacs.
    """
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(8, 2.6), sharey=True)
    measures = ("kendall", "mean_abs_pacs")
    words = ("Kendall-tau distance K", "mean |PACS|")
    for axes, measure, label in zip(panels, measures, words, strict=True):
        part = table[table["measure"] == measure].reset_index(drop=True)
        for row, line in part.iterrows():
            dots(axes, line.to_frame().T, [row], line["policy"])
        names = [name_of(policy) for policy in part["policy"]]
        axes.set(yticks=range(len(part)), yticklabels=names, xlabel=label)
        axes.set_ylim(len(part) - 0.5, -0.5)
    figure.suptitle(
        "Conflict between reward and base policy, held-out prompts", fontweight="bold", fontsize=12
    )
    return figure


def subplots(width: float, height: float):
    """A figure with one panel, in inches."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height))


def dots(axes, part: pd.DataFrame, rows: list[float], name: str) -> None:
    """A policy's values with their intervals, at the given heights. part: value, low, high."""
    values, low, high = (part[c].to_numpy(float) for c in ("value", "low", "high"))
    axes.errorbar(
        values,
        rows,
        xerr=[values - low, high - values],
        fmt="o",
        color=COLOURS.get(name, "#333333"),
        capsize=3,
        label=name_of(name),
    )


def _number(axes, text: str, value: float, row: float) -> None:
    """A number above the dot that stands at a value in a row."""
    axes.annotate(text, (value, row - 0.18), ha="center", va="bottom", fontsize=10)


def legend(axes) -> None:
    """A legend beside the panel."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)


def name_of(policy: str) -> str:
    """A policy's name for people."""
    return LABELS.get(policy, policy)


def short(category: str) -> str:
    """A category's name, cut at a word."""
    text = category.replace("_", " ")
    if len(text) < 32:
        return text
    return text[:30].rsplit(" ", 1)[0] + " …"
