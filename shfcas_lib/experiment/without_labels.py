"""Do I need labels at all? What strategies start from goes in, rewards that nobody was asked for
come out.

    mended(setting, stage)                         # the remedies that depend on no strategy
    cautious(setting, refined, evaluate, stage)    # the proxy, followed as far as a refined reward

Which ones, `evaluation.remedies` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from shfcas_lib import remedies
from shfcas_lib.base.errors import InputError
from shfcas_lib.loop import Setting
from shfcas_lib.remedies import Given, Target
from shfcas_lib.rewards import Probe, RewardModel

if TYPE_CHECKING:
    from shfcas_lib.storage.runs import Memory, Stage

_CAUTIOUS = "conservative_kl"


def mended(setting: Setting, stage: Stage | Memory) -> dict[str, RewardModel]:
    """The rewards of the run's remedies but conservative_kl, by name; each is kept in a folder of
    the stage. Raises InputError where the proxy is no probe."""
    names = [name for name in setting.params.evaluation.remedies if name != _CAUTIOUS]
    return _applied(names, setting, None, stage)


def cautious(
    setting: Setting, refined: RewardModel, evaluate: pd.DataFrame, stage: Stage | Memory
) -> dict[str, RewardModel]:
    """The reward of conservative_kl, where the run asks for it: its policy is on average as far
    from the base policy as that of `refined`, on the completions `evaluate`."""
    names = [name for name in setting.params.evaluation.remedies if name == _CAUTIOUS]
    target = Target(refined, evaluate, setting.params.policy.beta)
    return _applied(names, setting, target, stage)


def _applied(
    names: Sequence[str], setting: Setting, target: Target | None, stage: Stage | Memory
) -> dict[str, RewardModel]:
    if not names:
        return {}
    given = _given(setting, target)
    made: dict[str, RewardModel] = {}
    for name in names:
        make = partial(remedies.apply, name, given)
        made[name] = (stage / name).reward(make, remedies.read)
    return made


def _given(setting: Setting, target: Target | None) -> Given:
    if not isinstance(setting.proxy, Probe):
        raise InputError("evaluation.remedies mend a probe that is trained here")
    return Given(
        setting.proxy,
        setting.train,
        setting.observed,
        setting.params.reward.l2,
        setting.seed,
        setting.params.evaluation.remedy_attribute,
        target,
    )
