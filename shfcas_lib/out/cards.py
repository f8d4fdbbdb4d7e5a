"""Cards of what leaves a run: measured numbers, and nothing that was not measured.

    facts = reward_facts(run, "shf_cas", reward, backbone)
    write(folder, of_reward(facts, written, check))

People who answered are counted, never named: a card may become public.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from shfcas_lib import bias
from shfcas_lib.analysis import diagnosis, stats
from shfcas_lib.base.randomness import rng
from shfcas_lib.base.texts import one_line
from shfcas_lib.evaluation import pair_accuracy
from shfcas_lib.experiment import stages
from shfcas_lib.out.reward_model import Written
from shfcas_lib.rewards import RewardModel
from shfcas_lib.storage import assets, files
from shfcas_lib.storage.machine import commit, versions
from shfcas_lib.storage.runs import Run
from shfcas_lib.trust import Trusted

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone

_ANSWERED = {
    "gold": "a simulated human, who follows this run's gold reward",
    "replay": "answers from a file",
    "person": "people, on this project's screen",
    "team": "people, in Label Studio or a spreadsheet",
    "judge": "a language model as judge",
    "mixed": "people for the pairs with most conflict, a language model as judge for the rest",
}


@dataclass(frozen=True)
class Facts:
    """What a card says of a run. Lists are sentences.

    accuracy: how often rewards rank held-out pairs rightly, as rows of a table; judge: by whom
    """

    run: str
    strategy: str
    seed: int
    base: str
    revision: str | None
    licence: str
    quantisation: str
    dtype: str
    system_prompt: str
    end: int
    preferences: list[str]
    labels: list[str]
    accuracy: list[dict]
    judge: str
    software: dict[str, str]
    commit: str | None

    def record(self) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self)


def reward_facts(run: Run, name: str, reward: RewardModel, backbone: Backbone) -> Facts:
    """What is known of a run and of its reward called `name`."""
    accuracy, judge = held_out(run, {name: reward}, backbone)
    labels = labels_told(run, name)
    if isinstance(reward, Trusted):
        labels.append(f"{reward.report}.")
    return _facts(run, name, backbone, labels, accuracy, judge)


def policy_facts(run: Run, name: str, backbone: Backbone) -> Facts:
    """The same of the policy that was trained against that reward. What its answers are worth
    stands in the run, where notebook 04 has sampled them."""
    rows, judge = [], ""
    path = run.folder / "04_evaluation" / "trained_summary.parquet"
    if path.exists():
        table = pd.read_parquet(path)
        measures = table["measure"].isin(["gold", "win", "kl"])
        rows = table[table["policy"].isin(["base", name]) & measures].to_dict("records")
        judge = "gold of this run" if run.params.gold.known else "rewards of this run"
    return _facts(run, name, backbone, labels_told(run, name), rows, judge)


def _facts(
    run: Run, name: str, backbone: Backbone, labels: list[str], accuracy: list[dict], judge: str
) -> Facts:
    model = run.params.model
    base, licence = base_told(model.source)
    if run.params.sft.answers != "none":
        base += ", fine-tuned in this run on chosen answers (sft)"
    return Facts(
        run=run.params.run,
        strategy=name,
        seed=run.params.seed,
        base=base,
        revision=model.revision,
        licence=licence,
        quantisation=model.quantisation,
        dtype=str(backbone.causal.dtype).removeprefix("torch."),
        system_prompt=backbone.system_prompt,
        end=backbone.stop_ids[0],
        preferences=preferences_told(run),
        labels=labels,
        accuracy=accuracy,
        judge=judge,
        software=versions(),
        commit=commit(),
    )


def base_told(source: str) -> tuple[str, str]:
    """The base model and its licence, in words; a folder of the user's by its last name alone."""
    if source in assets.ASSETS:
        asset = assets.ASSETS[source]
        return f"{asset.origin}, out of the package {asset.wheel}", asset.licence
    unknown = "not recorded here: see the base model"
    return (Path(source).name if Path(source).is_absolute() else source), unknown


def preferences_told(run: Run) -> list[str]:
    """What the proxy was trained on, and what was wrong with it."""
    params = run.params
    if params.reward.published:
        name, _ = base_told(params.reward.published)
        return [f"The proxy is the published reward model {name}."]
    if params.reward.fixed:
        return [
            "The proxy is a column of the completions that were given: nothing trained it here."
        ]
    biased = run.require(stages.PROXY, "preferences_biased")
    origin = "sampled pairs that this run's gold reward compares"
    if params.preferences.given:
        block = params.preferences
        named = block.recipe or block.source or Path(str(block.file)).name
        origin = f"preferences of the user's own ({named})"
    told = [f"The proxy was trained on {len(bias.observed(biased))} preferences: {origin}."]
    if not params.bias:
        return [*told, "Nothing was spoilt in them on purpose."]
    *mechanisms, wrong = bias.summary(biased).itertuples()
    for row in mechanisms:
        told.append(f"Spoilt on purpose: {row.mechanism}, {row.rows} rows ({row.share:.0%}).")
    return [*told, f"In all {wrong.rows} of their labels are wrong now ({wrong.share:.0%})."]


def labels_told(run: Run, strategy: str) -> list[str]:
    """How many labels there are, and who gave them."""
    if strategy == "proxy":
        return ["No label: this is the proxy as it was trained."]
    table = labels_of(run, strategy)
    label = table["label"]
    ties, skipped = int((label == 0.5).sum()), int(label.isna().sum())
    decided = len(table) - ties - skipped
    people = table["annotator"].str.split(", ").explode().nunique()
    kind = run.params.feedback.kind
    who = _ANSWERED[kind] + (f" ({people})" if kind in ("person", "team", "mixed") else "")
    return [
        f"{len(table)} labels in {run.params.selection.rounds} rounds, on pairs that the strategy"
        f" {strategy} chose: {decided} decided, {ties} ties, {skipped} skipped.",
        f"They come from {who}.",
        f"Refinement: {run.params.reward.refinement}.",
    ]


def labels_of(run: Run, strategy: str) -> pd.DataFrame:
    """The labels of a strategy's rounds, with the column round. Raises InputError where a round
    is missing."""
    parts = []
    for number in range(1, run.params.selection.rounds + 1):
        part = run.require(stages.FEEDBACK, f"{strategy}/round_{number}/labels")
        parts.append(part.assign(round=number))
    return pd.concat(parts, ignore_index=True)


def held_out(
    run: Run, rewards: dict[str, RewardModel], backbone: Backbone
) -> tuple[list[dict], str]:
    """How often rewards and the proxy rank pairs of held-out prompts rightly, with 95% intervals
    over prompts, and by whose word; without gold what notebook 04 found of agreement with the
    labels; nothing where that is missing."""
    if not run.params.gold.known:
        return _agreed(run, list(rewards)), "the labels, cross-validated over prompts"
    pool = run.require(stages.PROXY, "pool_evaluate")
    if not (run.folder / stages.PROXY / "gold_evaluate.parquet").exists():
        return [], ""
    gold = run.require(stages.PROXY, "gold_evaluate")["gold"].to_numpy()
    scores = {"proxy": stages.proxy(run, backbone).score(pool)}
    scores |= {name: reward.score(pool) for name, reward in rewards.items()}
    prompts = run.require(stages.PROXY, "prompts")
    table = diagnosis.accuracy_by_group(prompts, pool, gold, scores, run.params.seed)
    rows = table[table["group"] == "all prompts"].drop(columns="group").to_dict("records")
    for name in rewards:
        if name != "proxy":
            rows.append(_gain(run, pool["prompt_id"].to_numpy(), gold, scores, name))
    return rows, "the gold reward of this run"


def _gain(
    run: Run, ids: np.ndarray, gold: np.ndarray, scores: dict[str, np.ndarray], name: str
) -> dict:
    """What a reward gains over the proxy, paired by prompt."""
    accuracy = [pair_accuracy(ids, scores[key], gold) for key in ("proxy", name)]
    both = accuracy[0].merge(accuracy[1], on="prompt_id")
    gains = (both["pair_accuracy_y"] - both["pair_accuracy_x"]).to_numpy()
    gain = stats.mean_interval(gains, rng(run.params.seed, f"card/{name}"))
    numbers = {"value": gain.value, "low": gain.low, "high": gain.high}
    return {"reward": f"{name} - proxy", **numbers, "prompts": len(gains)}


def _agreed(run: Run, names: list[str]) -> list[dict]:
    path = run.folder / "04_evaluation" / "label_agreement.parquet"
    if not path.exists():
        return []
    table = pd.read_parquet(path)
    mine = table[table["reward"].isin(["proxy", *names]) & table["asked"].isin(["random", *names])]
    rows = mine[["reward", "asked", "value", "low", "high", "labels"]]
    return files.records(rows)


# --- texts


def write(folder: Path, text: str) -> None:
    """Write a card."""
    (folder / "README.md").write_text(text, encoding="utf-8")


def of_reward(facts: Facts, written: Written, check: dict[str, Any]) -> str:
    """The card of a reward. check: how it scored beside the run's own."""
    kind = "PEFT adapter" if written.form == "adapter" else "whole model"
    lines = [
        *_head("text-classification", "reward-model", facts, written),
        f"# Reward model: {facts.run}, {facts.strategy}",
        "",
        f"A {kind} with one output. The raw logit is the reward: higher is better, and a",
        "difference of 1 is the mean standard deviation within a prompt of the completions that it",
        "was fitted on. It compares completions of one prompt; between prompts it says nothing.",
        "",
        *_use_reward(facts, written),
        "",
        "## Same as in the run?",
        "",
        f"{check['completions']} completions of held-out prompts were scored by the run and by this"
        f" folder: the largest difference is {check['largest_difference']:.1g}, where the scores'"
        f" standard deviation is {check['spread']:.2g}. Through the chat template alone"
        f" {check['same_through_chat_template']} of {check['completions']} have the same tokens.",
        f"It was trained on weights quantised as {facts.quantisation}, computing in {facts.dtype};"
        f" {_weights_told(facts, written)}",
        "",
        *_training(facts),
        *_measured(facts, "Held-out accuracy", "pairs of held-out prompts ranked as by"),
        *_origin(facts),
    ]
    return "\n".join(lines)


def _weights_told(facts: Facts, written: Written) -> str:
    if written.form == "adapter":
        return "load the base with the same quantisation: another one is another reward."
    same = "the numbers that those weights stand for, without the quantisation"
    if written.dtype != "float32":
        same += f", rounded to {written.dtype}"
    return f"the weights here are {same}."


def _use_reward(facts: Facts, written: Written) -> list[str]:
    """The program that scores a completion."""
    arguments = "".join(f",\n    {name}={text}" for name, text in written.arguments.items())
    code = ", trust_remote_code=True" if written.form == "probe" else ""
    imports = ["import torch"]
    names = ["AutoModelForSequenceClassification", "AutoTokenizer"]
    if "BitsAndBytesConfig" in arguments:
        names.append("BitsAndBytesConfig")
    imports.append(f"from transformers import {', '.join(names)}")
    told = [
        "```python",
        *imports,
        "",
        'folder = "."  # this folder, or its hub id',
        f"tokenizer = AutoTokenizer.from_pretrained(folder{code})",
        "model = AutoModelForSequenceClassification.from_pretrained(",
        f"    folder{arguments}",
        ").eval()",
        "",
        "",
        "def ids(prompt, completion):",
        '    messages = [{"role": "user", "content": prompt}]',
        "    asked = tokenizer.apply_chat_template(",
        "        messages, add_generation_prompt=True, return_dict=True",
        "    )",
        "    answer = tokenizer(completion, add_special_tokens=False, split_special_tokens=True)",
        f'    return asked["input_ids"] + answer["input_ids"] + [{facts.end}]',
        "",
        "",
        'rows = [ids("Name a bird.", "A wren."), ids("Name a bird.", "No.")]',
        'batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(model.device)',
        "with torch.inference_mode():",
        "    print(model(**batch).logits[:, 0])",
        "```",
    ]
    if written.form == "probe":
        told += [
            "",
            "The class is in `modeling_probe_reward.py` beside the weights: read it before you",
            "allow it. It finds where a completion starts by the tokens `answer_start` of",
            "config.json; where that is empty, give `completion_start`.",
        ]
    if written.form == "merged":
        told += [
            "",
            "`vllm serve FOLDER --runner pooling` is meant to serve it: config.json names one",
            "label and `problem_type` regression, so that /classify gives the raw logit. That was",
            "not tried.",
        ]
    return told


def of_policy(facts: Facts, written: Written, line: str) -> str:
    """The card of a policy. line: the command that serves it."""
    auto = "AutoPeftModelForCausalLM" if written.form == "adapter" else "AutoModelForCausalLM"
    package = "peft" if written.form == "adapter" else "transformers"
    arguments = "".join(f",\n    {name}={text}" for name, text in written.arguments.items())
    quantised = "BitsAndBytesConfig" in arguments
    lines = [
        *_head("text-generation", "policy", facts, written),
        f"# Policy: {facts.run}, {facts.strategy}",
        "",
        f"Trained against the reward of {facts.strategy}.",
        "",
        "```python",
        *(["import torch"] if "torch." in arguments else []),
        f"from {package} import {auto}",
        *(["from transformers import BitsAndBytesConfig"] if quantised else []),
        "",
        f"model = {auto}.from_pretrained(",
        f'    "."{arguments}',
        ")",
        "```",
        "",
        f"    {line}",
        "",
        "The command is written for vLLM and was not tried with it.",
        f"Trained on weights quantised as {facts.quantisation}, computing in {facts.dtype};"
        f" {_weights_told(facts, written).replace('reward', 'policy')}",
        "",
        *_training(facts),
        *_measured(facts, "What its answers are worth", "by"),
        *_origin(facts),
    ]
    return "\n".join(lines)


def _head(task: str, tag: str, facts: Facts, written: Written) -> list[str]:
    """The card's metadata. The licence is named where it is known."""
    known = facts.licence.startswith("Apache-2.0")
    library = "peft" if written.form == "adapter" else "transformers"
    return [
        "---",
        f"library_name: {library}",
        f"pipeline_tag: {task}",
        *(["license: apache-2.0"] if known else []),
        f"tags: [{tag}, rlhf, shf-cas]",
        "---",
        "",
    ]


def _training(facts: Facts) -> list[str]:
    sentences = [one_line(text) for text in (*facts.preferences, *facts.labels)]
    return ["## What it learnt from", "", *[f"- {text}" for text in sentences], ""]


def _measured(facts: Facts, title: str, by: str) -> list[str]:
    """A table of measured numbers; one sentence where there are none."""
    if not facts.accuracy:
        return [f"## {title}", "", "Not measured in this run.", ""]
    columns = list(facts.accuracy[0])
    rows = []
    for entry in facts.accuracy:
        rows.append("| " + " | ".join(_shown(entry.get(key)) for key in columns) + " |")
    return [
        f"## {title}",
        "",
        f"{by.capitalize()} {facts.judge}; 95% bootstrap intervals over prompts.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *rows,
        "",
    ]


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _origin(facts: Facts) -> list[str]:
    packages = ", ".join(f"{name} {version}" for name, version in facts.software.items())
    revision = f", revision {facts.revision}" if facts.revision else ""
    code = facts.commit or "not recorded"
    system = f" The system prompt of the run stands in the chat template: {facts.system_prompt!r}."
    return [
        "## Where it comes from",
        "",
        f"- Base model: {facts.base}{revision}",
        f"- Licence of the base: {facts.licence}",
        f"- Run {facts.run}, seed {facts.seed}, commit {code}; {packages}."
        + (one_line(system) if facts.system_prompt else ""),
        "",
    ]
