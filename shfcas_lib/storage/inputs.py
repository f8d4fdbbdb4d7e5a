"""What a run reads beside the code, with checksums."""

from __future__ import annotations

import importlib.util
import re

from shfcas_lib.base.places import content_hash
from shfcas_lib.params.schema import Params
from shfcas_lib.storage import assets


def of_run(params: Params) -> dict[str, str | None]:
    """Checksums of what a run reads beside the code.

    Embedded assets have the sha256 of their wheel; files, folders and modules of the user's 16
    hex digits of their sha256. A hub id has none; its revision is a parameter.
    """
    checksums: dict[str, str | None] = dict(wheels(params))
    places = {params.feedback.file, params.model.source}
    for block in (params.prompts, params.preferences, params.completions):
        places |= {block.file, block.source}
    places.add(params.completions.requests)
    for place in places:
        if place is None or place in checksums:
            continue
        digest = content_hash(place)
        if digest:
            checksums[place] = digest

    attributes = [getattr(mechanism, "attribute", "") for mechanism in params.bias]
    if params.evaluation.remedies:
        attributes.append(params.evaluation.remedy_attribute)
    for name in [params.gold.kind, *attributes]:
        module = _own_module(name)
        spec = importlib.util.find_spec(module) if module else None
        if module and spec and spec.has_location:
            checksums[module] = content_hash(spec.origin)
    return dict(sorted(checksums.items()))


def _own_module(name: str) -> str | None:
    """The module of a `module:function` of the user's; None where the name is none."""
    if not re.fullmatch(r"[\w.]+:\w+", name) or name.startswith(("model:", "keyword:")):
        return None
    return name.partition(":")[0]


def wheels(params: Params) -> dict[str, str]:
    """The embedded assets that a run reads, with the sha256 of the wheel that each comes in."""
    names = {params.model.source}
    own = params.prompts.given or params.completions.given
    if params.task == "safety" and not own:
        names.add("do-not-answer")
    gold = params.gold.kind
    if gold == "relevance" or (gold == "task" and params.task == "helpfulness"):
        names.add("all-minilm-l6-v2")
    known = sorted(name for name in names if name in assets.ASSETS)
    return {name: f"wheel {assets.ASSETS[name].sha256}" for name in known}
