"""What a run reads beside the code, with checksums."""

from __future__ import annotations

import importlib.util
import re

from shfcas_lib.base.places import content_hash
from shfcas_lib.params.schema import Params
from shfcas_lib.storage import assets


def of_run(params: Params) -> dict[str, str]:
    """Checksums of what a run reads beside the code: embedded assets (sha256 of the wheel),
    files, folders and modules of the user's (16 hex digits of their sha256). A hub id has none;
    its revision is a parameter."""
    found = wheels(params)
    places = {
        params.feedback.file,
        params.model.source,
        *(
            place
            for block in (params.prompts, params.preferences)
            for place in (block.file, block.source)
        ),
    }
    found |= {
        place: digest for place in places - {None} - set(found) if (digest := content_hash(place))
    }
    for name in [
        params.gold.kind,
        *(getattr(mechanism, "attribute", "") for mechanism in params.bias),
    ]:
        if re.fullmatch(r"[\w.]+:\w+", name) and not name.startswith(("model:", "keyword:")):
            spec = importlib.util.find_spec(name.partition(":")[0])
            if spec and spec.has_location:
                found[name.partition(":")[0]] = content_hash(spec.origin)
    return dict(sorted(found.items()))


def wheels(params: Params) -> dict[str, str]:
    """The embedded assets that a run reads, with the sha256 of the wheel that each comes in."""
    names = {params.model.source} | (
        {"do-not-answer"} if params.task == "safety" and not params.prompts.given else set()
    )
    if params.gold.kind == "relevance" or (
        params.gold.kind == "task" and params.task == "helpfulness"
    ):
        names.add("all-minilm-l6-v2")
    return {
        name: f"wheel {assets.ASSETS[name].sha256}"
        for name in sorted(names)
        if name in assets.ASSETS
    }
