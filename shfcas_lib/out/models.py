"""Rewards and policies of a finished run, written for other programs, with a card.

    export_reward(run, "shf_cas", folder, merged=True)
    export_policy(run, "shf_cas", folder)

A folder is written whole or not at all. A reward is read back from it by transformers and must
score completions of the run as it does here: how far the two are apart stands in the card.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from shfcas_lib import trust
from shfcas_lib.analysis import summary
from shfcas_lib.base import dialogues, places
from shfcas_lib.base.errors import InputError
from shfcas_lib.experiment import stages
from shfcas_lib.models import loading
from shfcas_lib.models.backbone import POLICY
from shfcas_lib.out import cards, reward_model, templates
from shfcas_lib.out.reward_model import Written
from shfcas_lib.params.schema import Policy
from shfcas_lib.pool import reference_features
from shfcas_lib.rewards import Probe, RewardModel
from shfcas_lib.storage import assets, files
from shfcas_lib.storage.runs import Run

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone

CHECKED = 24  # completions that are scored by both
TOLERANCE = 1e-3  # in float32, and in the reward's own unit
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for


def export_reward(
    run: Run,
    strategy: str | None,
    folder: Path,
    merged: bool = False,
    dtype: str | None = None,
) -> list[str]:
    """Write a reward of a run into a new folder; lines that say what is there.

    strategy: whose refined reward, or proxy; None: that of the leading strategy. merged: whole
    weights instead of an adapter. dtype: of the weights, the run's own where None. Raises
    InputError, and writes nothing, for a reward that is not there, is no single model, or would
    score otherwise than here.
    """
    name = _strategy(run, strategy)
    with whole_folder(folder) as scratch:
        backbone = stages.policy(run)
        reward = _reward(run, name, backbone)
        written = reward_model.write_reward(backbone, reward, scratch, merged, dtype)
        pool = run.require(stages.PROXY, "pool_evaluate")
        check = _compared(backbone, reward, written, _some(pool, backbone))
        facts = cards.reward_facts(run, name, reward, backbone)
        cards.write(scratch, cards.of_reward(facts, written, check))
        files.write_json(scratch / "facts.json", facts.record() | check)
    lines = [f"{folder}: the reward of {name}, {written.form}, {written.dtype}"]
    lines.append(f"scores as here to within {check['largest_difference']:.1g} (README.md)")
    return [*lines, f"vllm serve {folder} --runner pooling"] if written.form == "merged" else lines


def export_policy(
    run: Run, strategy: str | None, folder: Path, merged: bool = False, dtype: str | None = None
) -> list[str]:
    """The same of a trained policy: an adapter, or whole weights. Raises InputError for a policy
    that nobody trained."""
    name, policy = _strategy(run, strategy), run.params.policy
    if policy.kind == "tilt":
        raise InputError(
            "policy.kind tilt weighs sampled completions and has no weights to take away: expected"
            " a policy that was trained (policy.kind dpo, rso, kto, rloo or grpo)"
        )
    place = run.folder / stages.FEEDBACK / f"policy_{name}"
    if not (place / "done.json").exists():
        raise InputError(
            f"{place} holds no finished policy: run notebook 03, or 'shfcas stage policies', with"
            " the same parameters first"
        )
    with whole_folder(folder) as scratch:
        backbone = stages.policy(run)
        backbone.load_adapter(POLICY, place / "adapter")
        written = _write_policy(backbone, scratch, merged, dtype)
        facts = cards.policy_facts(run, name, backbone)
        told = serving_line("BASE", "FOLDER", backbone, policy, merged)
        cards.write(scratch, cards.of_policy(facts, written, told))
        files.write_json(scratch / "facts.json", facts.record())
    line = serving_line(reward_model.base_of(backbone), str(folder), backbone, policy, merged)
    return [f"{folder}: the policy of {name}, {written.form}, {written.dtype}", line]


def check_public(run: Run, merged: bool, what: str) -> None:
    """Raise InputError for an adapter whose base nobody else has: before it would be pushed."""
    adapter = not merged and (what == "policy" or run.params.reward.kind == "lora")
    source = run.params.model.source
    local = source in assets.ASSETS or places.user_path(source).exists()
    if adapter and (local or run.params.sft.answers != "none"):
        raise InputError(
            f"--push-to-hub: the adapter's base, {Path(source).name}, lies on this machine alone,"
            " and nobody else could load it: expected --merged"
        )


def _strategy(run: Run, wanted: str | None) -> str:
    names = ["proxy", *run.params.selection.strategies]
    if wanted is not None and wanted not in names:
        raise InputError(f"strategy: found {wanted!r}, expected one of {', '.join(names)}")
    return wanted or summary.leading(run.params)


def _reward(run: Run, name: str, backbone: Backbone) -> RewardModel:
    """One reward of a run, read from its folder."""
    if name == "proxy":
        return stages.proxy(run, backbone)
    folder = run.folder / stages.FEEDBACK / name / f"round_{run.params.selection.rounds}"
    return stages.finished_reward(run, folder, f"refined_{name}", backbone)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder that becomes `folder` when the block succeeds. Raises InputError for
    a folder that holds something."""
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there and not empty: expected a new folder")
    with files.writing(folder), files.scratch(folder.parent, folder.name) as scratch:
        inner = scratch / folder.name
        inner.mkdir()
        yield inner
        os.replace(inner, folder)  # over an empty folder, or none


def _some(pool: pd.DataFrame, backbone: Backbone) -> pd.DataFrame:
    """Evenly spaced completions of a pool, as texts; left out are empty ones and those that cannot
    be given as text. Raises InputError where none is left."""
    told = pool["completion"].map(backbone.writer.unfit)
    texts = pool.loc[pool["completion"].str.strip().astype(bool) & told.isna()]
    if not len(texts):
        raise InputError(
            "no completion of the run can be given as text, so that nothing can be compared with"
            " what would be written: set model.thinking to false"
        )
    rows = np.unique(np.linspace(0, len(texts) - 1, CHECKED).astype(int))
    return texts.iloc[rows][["prompt_id", "index", "prompt", "completion"]]


def _compared(
    backbone: Backbone, reward: RewardModel, written: Written, texts: pd.DataFrame
) -> dict[str, Any]:
    """How far what is written scores from the reward here, on completions given as text; and how
    many a chat template alone gives the same token ids. Raises InputError where it is too far."""
    plain = trust.inner(reward)
    shown = reference_features(backbone, texts) if isinstance(plain, Probe) else texts
    here = plain.score(shown)
    there, same = _scored_there(backbone, written, texts)
    loading.free_memory()
    difference = np.abs(here - there)
    both = {written.dtype, str(backbone.causal.dtype).removeprefix("torch.")}
    exact = both == {"float32"} and backbone.model.quantisation != "int8"
    if exact and difference.max() > TOLERANCE:
        row = texts.iloc[int(difference.argmax())]
        raise InputError(
            f"the exported reward scores completion {row['index']} of prompt {row['prompt_id']}"
            f" {there[difference.argmax()]:.4f} and the run's {here[difference.argmax()]:.4f}:"
            " nothing was written"
        )
    return {
        "completions": len(texts),
        "largest_difference": float(difference.max()),
        "spread": float(here.std()),
        "same_through_chat_template": same,
    }


def _scored_there(
    backbone: Backbone, written: Written, texts: pd.DataFrame
) -> tuple[np.ndarray, int]:
    """Raw logits of the folder, as transformers loads it, and how many texts its chat template
    writes as this library does."""
    import torch

    tokenizer = type(backbone.tokenizer).from_pretrained(written.folder)
    model = _loaded(backbone, written).eval()
    scores, same = [], 0
    for row in texts.itertuples():
        ids = backbone.prompt_ids(row.prompt) + backbone.completion_ids(row.completion)
        chat = [*dialogues.messages(row.prompt), {"role": "assistant", "content": row.completion}]
        through: Any = tokenizer.apply_chat_template(chat, return_dict=True)
        same += through["input_ids"] in (ids, ids[:-1])
        with torch.inference_mode():
            batch = torch.tensor([ids], device=model.device)
            scores.append(float(model(input_ids=batch).logits[0, 0]))
    return np.array(scores), int(same)


def _loaded(backbone: Backbone, written: Written) -> Any:
    """The model in a folder. A probe's class is taken from here, of which the folder has a copy:
    no code is loaded from a folder."""
    from transformers import AutoModelForSequenceClassification

    from shfcas_lib.out.modeling_probe_reward import ProbeReward

    if written.form == "probe":
        return ProbeReward.from_pretrained(written.folder)
    if written.form == "merged":
        return AutoModelForSequenceClassification.from_pretrained(written.folder)
    model = backbone.model
    whence = loading.Source("model.source", model.source, model.revision)
    config = loading.checked_config(model, whence)
    options = loading.loading_options(model, config, whence, skip=["score"])
    for ours in ("how", "trust_remote_code"):
        del options[ours]
    pad = backbone.tokenizer.pad_token_id
    return AutoModelForSequenceClassification.from_pretrained(
        written.folder, num_labels=1, pad_token_id=pad, **options
    )


def _write_policy(backbone: Backbone, folder: Path, merged: bool, dtype: str | None) -> Written:
    """Adapter or whole weights of the policy on the backbone, and its tokenizer."""
    templates.check_standard(backbone)
    templates.check_whole(merged, dtype)
    kind = dtype or str(backbone.causal.dtype).removeprefix("torch.")
    templates.for_policy(backbone).save_pretrained(folder)
    if not merged:
        return reward_model.write_policy_adapter(backbone, folder, kind)
    return reward_model.write_merged_policy(backbone, folder, kind)


def serving_line(base: str, folder: str, backbone: Backbone, policy: Policy, merged: bool) -> str:
    """The command with which vLLM serves a policy."""
    if merged:
        return f"vllm serve {folder}"
    rank = next((rank for rank in _RANKS if rank >= policy.lora.r), policy.lora.r)
    quantised = backbone.model.quantisation != "none"
    return (
        f"vllm serve {base} --enable-lora --max-lora-rank {rank}"
        f" --lora-modules policy={folder}" + (" --quantization bitsandbytes" if quantised else "")
    )
