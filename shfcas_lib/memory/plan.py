"""Will a run fit?

Parameters and a GPU's memory go in; a table per stage, a verdict and the knob to turn come out.

    plan = make(params, gpu_memory=24)
    print(plan.text())

Nothing is downloaded but the model's config.json. The estimate itself is in `memory`; this module
says what a run asks for (`knobs`), and which single change of it brings the peak under the card's
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from shfcas_lib.base import dialogues
from shfcas_lib.base.errors import InputError
from shfcas_lib.memory import estimate, shapes
from shfcas_lib.memory.estimate import PARTS, Knobs, StageMemory
from shfcas_lib.memory.shapes import Shape
from shfcas_lib.params.schema import Params

GB = 1e9
CARDS = {
    "T4": 15.6,
    "P100": 17.0,
    "L4": 23.6,
    "A10": 23.7,
    "RTX3090": 25.3,
    "RTX4090": 25.3,
    "A100-40": 42.3,
    "A100-80": 85.0,
    "H100": 85.0,
}
CONTEXT = 0.6 * GB  # what CUDA itself takes on a card, outside torch's count
FRAGMENTS = 0.05  # of the tensors: what torch's allocator holds beyond them
LETTERS_PER_TOKEN, TEMPLATE_TOKENS, UNKNOWN_PROMPT = 3, 40, 512


@dataclass(frozen=True)
class Turn:
    """One change of one knob, and the peak it leads to."""

    key: str
    before: object
    after: object
    peak: float


@dataclass(frozen=True)
class MemoryPlan:
    """A run's stages on a card. Memory in bytes."""

    title: str
    shape: Shape
    knobs: Knobs
    stages: list[StageMemory]
    gpu: float
    # what the estimate does not know: lengths of answers, published reward models without a
    # config.json
    notes: list[str]
    alone: list[Turn]  # single changes that make it fit
    # where there is none: changes one after the other, each with the peak that it leads to
    together: list[Turn]

    @property
    def peak(self) -> float:
        """Bytes that the card must have: the highest stage with what CUDA and its allocator take
        beside it.
        """
        return bytes_needed(self.stages, self.knobs)

    @property
    def fits(self) -> bool:
        return self.peak <= self.gpu

    def text(self) -> str:
        """The plan as it is printed."""
        return "\n".join([self.title, "", *_table(self.stages), "", *self.notes, *_verdict(self)])


def make_plan(
    params: Params,
    gpu_memory: float | str | None = None,
    config: Path | None = None,
    prompt_tokens: int | None = None,
    completion_tokens: int | None = None,
) -> MemoryPlan:
    """The plan of a run.

    gpu_memory: GB (10^9 bytes), a card's name from CARDS, or None for the machine's own GPU.
    Raises InputError.
    """
    gpu = _card(gpu_memory)
    read = shapes.read_config(params.model.source, params.model.revision, config)
    shape = shapes.shape_of(read)
    asked = knobs_of(params, prompt_tokens or longest_prompt(params), completion_tokens)
    published, notes = _published(params)
    if params.preferences.given and completion_tokens is None:
        notes.append(
            "the answers of your preferences are not cut and were not measured: taken to be"
            f" {asked.completion} tokens long (sampling.max_new_tokens); say how long they get with"
            " --completion-tokens"
        )
    stages = estimate.stages(shape, asked, published)
    alone, together = _turns(
        asked,
        params,
        lambda tried: bytes_needed(estimate.stages(shape, tried, published), tried),
        gpu,
    )
    title = (
        f"{params.model.source}: {shape.parameters / 1e9:.3f} billion parameters,"
        f" {asked.quantisation}, computing in {8 * asked.compute} bits; prompts up to"
        f" {asked.prompt} tokens, completions up to {asked.completion}"
    )
    return MemoryPlan(title, shape, asked, stages, gpu, notes, alone, together)


def _published(params: Params) -> tuple[dict[str, tuple[Shape, int]], list[str]]:
    """Sizes of the published reward models that score beside the backbone, by role, and those
    whose sizes cannot be had.
    """
    found, unknown = {}, []
    for role, block in (("proxy", params.reward), ("gold", params.gold)):
        if block.published:
            try:
                found[role] = (
                    shapes.shape_of(
                        shapes.read_config(block.published, block.model.revision), classifier=True
                    ),
                    block.model.batch_size,
                )
            except InputError as error:
                unknown.append(f"{role} model left out: {error}")
    return found, unknown


def bytes_needed(stages: list[StageMemory], asked: Knobs) -> float:
    """Bytes that a card, or a machine's memory, must have for these stages one after the other."""
    highest = max(stage.total for stage in stages)
    return highest * (1 + FRAGMENTS) + CONTEXT if asked.cuda else highest


def knobs_of(params: Params, prompt_tokens: int, completion_tokens: int | None = None) -> Knobs:
    """What a run's parameters ask of memory.

    With `_choices`, the one place that knows their names.
    """
    lora, trained, tuned = (
        params.reward.kind == "lora",
        params.policy.kind != "tilt",
        params.sft.answers != "none",
    )
    cuda = params.model.device != "cpu"
    narrow = params.model.dtype in ("bfloat16", "float16") or (
        params.model.dtype == "auto" and cuda
    )
    micro = params.training.micro_batch
    answers = (trained and params.evaluation.answers) or params.sampling.n
    return Knobs(
        quantisation=params.model.quantisation,
        compute=2 if narrow else 4,
        cuda=cuda,
        prompt=prompt_tokens,
        completion=completion_tokens or params.sampling.max_new_tokens,
        n=params.sampling.n,
        sampling_rows=max(
            max(1, params.sampling.batch_size // n) * n for n in (params.sampling.n, answers)
        ),
        top_p=params.sampling.top_p < 1,
        reward_rows=2 * (micro or params.reward.batch_size) if lora else 0,
        reward_rank=params.reward.lora.r if lora else 0,
        reward_dropout=params.reward.lora.dropout > 0,
        reward_adapters=1 + len(params.selection.strategies) if lora else 0,
        policy_rows=(
            _answers(params) * (micro or _micro(params.policy.batch_size)) if trained else 0
        ),
        policy_rank=params.policy.lora.r if trained else 0,
        online_rows=params.policy.batch_size if params.policy.kind in ("rloo", "grpo") else 0,
        sft_rows=(micro or _micro(params.sft.batch_size)) if tuned else 0,
        sft_rank=params.sft.lora.r if tuned else 0,
        sft_dropout=params.sft.lora.dropout > 0,
        checkpointing=params.training.gradient_checkpointing,
        optimiser=params.training.optimiser,
        scaled=params.model.dtype == "float16",
        vllm=params.sampling.engine == "vllm",
    )


def _answers(params: Params) -> int:
    """Sequences per example of the policy's trainer."""
    return 2 if params.policy.kind in ("dpo", "rso") else 1


def _micro(batch_size: int) -> int:
    """How much of a batch a policy's trainer takes at once by default."""
    return next(size for size in range(min(4, batch_size), 0, -1) if batch_size % size == 0)


def _choices(
    asked: Knobs, params: Params
) -> Iterator[tuple[str, object, list[tuple[object, Knobs]]]]:
    """Knobs, from those that leave results alone to those that change the method: key, value now,
    and (value, what is asked then) from mild to drastic.
    """
    micro = max(asked.reward_rows // 2, asked.policy_rows // _answers(params), asked.sft_rows)
    batches = [
        params.reward.batch_size,
        params.policy.batch_size,
        *([params.sft.batch_size] if asked.sft_rows else []),
    ]
    yield (
        "training.micro_batch",
        params.training.micro_batch,
        [
            (
                size,
                replace(
                    asked,
                    reward_rows=min(asked.reward_rows, 2 * size),
                    policy_rows=min(asked.policy_rows, _answers(params) * size),
                    sft_rows=min(asked.sft_rows, size),
                ),
            )
            for size in _halves(micro, 1)
            if all(batch % size == 0 for batch in batches)
        ],
    )
    if not asked.checkpointing:
        yield "training.gradient_checkpointing", False, [(True, replace(asked, checkpointing=True))]
    if asked.optimiser == "adamw_torch":
        yield (
            "training.optimiser",
            asked.optimiser,
            [("paged_adamw_8bit", replace(asked, optimiser="paged_adamw_8bit"))],
        )
    yield (
        "sampling.batch_size",
        params.sampling.batch_size,
        [
            (rows, replace(asked, sampling_rows=rows))
            for rows in _halves(asked.sampling_rows, asked.n)
        ],
    )
    if asked.vllm:
        yield "sampling.engine", "vllm", [("backbone", replace(asked, vllm=False))]
    milder = ["none", "int8", "nf4"]
    yield (
        "model.quantisation",
        asked.quantisation,
        [
            (kind, replace(asked, quantisation=kind))
            for kind in milder[milder.index(asked.quantisation) + 1 :]
        ],
    )
    if asked.completion == params.sampling.max_new_tokens:
        yield (
            "sampling.max_new_tokens",
            asked.completion,
            [
                (tokens, replace(asked, completion=tokens))
                for tokens in _halves(asked.completion, 16)
            ],
        )
    if asked.sft_rows:
        yield "sft.answers", params.sft.answers, [("none", replace(asked, sft_rows=0, sft_rank=0))]
    if asked.reward_rows:
        yield (
            "reward.kind",
            params.reward.kind,
            [("probe", replace(asked, reward_rows=0, reward_rank=0, reward_adapters=0))],
        )
    if asked.policy_rows:
        yield (
            "policy.kind",
            params.policy.kind,
            [("tilt", replace(asked, policy_rows=0, policy_rank=0, online_rows=0))],
        )


def _turned(
    asked: Knobs, params: Params, peak: Callable[[Knobs], float], gpu: float
) -> Iterator[tuple[Turn, Knobs]]:
    """For each knob the mildest setting that makes the run fit, or else its last.

    Knobs that change next to nothing are left out.
    """
    for key, before, settings in _choices(asked, params):
        if settings:
            value, changed = next((pair for pair in settings if peak(pair[1]) <= gpu), settings[-1])
            if peak(changed) < 0.995 * peak(asked):
                yield Turn(key, before, value, peak(changed)), changed


def _turns(
    asked: Knobs, params: Params, peak: Callable[[Knobs], float], gpu: float
) -> tuple[list[Turn], list[Turn]]:
    """Single changes that make the run fit; where there is none, changes that do so together,
    each turned where it still helps.
    """
    alone = [turn for turn, _ in _turned(asked, params, peak, gpu) if turn.peak <= gpu]
    together: list[Turn] = []
    while not alone and peak(asked) > gpu:
        known = {turn.key for turn in together}
        step = next(
            (pair for pair in _turned(asked, params, peak, gpu) if pair[0].key not in known), None
        )
        if step is None:
            break
        together.append(step[0])
        asked = step[1]
    return alone, together


def _halves(number: int, least: int) -> list[int]:
    """number halved again and again, down to `least`, in multiples of it."""
    found = []
    while (number := number // 2 // least * least) >= least:
        found.append(number)
    return found


def longest_prompt(params: Params) -> int:
    """Tokens of the longest prompt at a rough guess from its letters, where the prompts are at
    hand; a fixed guess where they are on a hub.
    """
    from shfcas_lib.data.prompts import load_prompts

    if any(block.source or block.recipe for block in (params.prompts, params.preferences)):
        return UNKNOWN_PROMPT
    longest = max(len(dialogues.plain(prompt)) for prompt in load_prompts(params)["prompt"])
    return (longest + len(params.model.system_prompt)) // LETTERS_PER_TOKEN + TEMPLATE_TOKENS


def _card(asked: float | str | None) -> float:
    """Bytes of the card that is meant."""
    if asked is None:
        import torch

        if not torch.cuda.is_available():
            raise InputError(
                "this machine shows no GPU: say which one is meant with --gpu-memory, in GB (24) or"
                " by name: " + ", ".join(CARDS)
            )
        return float(torch.cuda.get_device_properties(0).total_memory)
    if asked in CARDS:
        return CARDS[asked] * GB
    try:
        number = float(asked)
    except ValueError:
        number = 0.0
    if not 0 < number < 10_000:
        raise InputError(
            f"--gpu-memory: found {asked!r}, expected a number of GB or one of {', '.join(CARDS)}"
        )
    return number * GB


def _table(stages: list[StageMemory]) -> list[str]:
    """A row a stage, a column a part, in GB."""
    head = f"{'GB':<17}" + "".join(f"{part:>12}" for part in PARTS) + f"{'peak':>9}"
    return [
        head,
        *(
            f"{stage.name:<17}"
            + "".join(f"{stage.parts[part] / GB:>12.2f}" for part in PARTS)
            + f"{stage.total / GB:>9.2f}"
            for stage in stages
        ),
    ]


def _verdict(plan: MemoryPlan) -> list[str]:
    highest = max(plan.stages, key=lambda stage: stage.total)
    beside = (
        f", with {CONTEXT / GB} GB for CUDA itself and {FRAGMENTS:.0%} for gaps between tensors"
        if plan.knobs.cuda
        else ""
    )
    told = (
        [
            "sampling by vLLM is the least it works with, not measured: it takes nine tenths of"
            " what is free"
        ]
        if plan.knobs.vllm
        else []
    )
    lines = [
        *told,
        f"peak {plan.peak / GB:.1f} GB in {highest.name}{beside}; the card has {plan.gpu / GB:.1f}"
        " GB: " + ("it fits" if plan.fits else "it does not fit"),
    ]
    if plan.fits:
        return lines
    if plan.alone:
        return [*lines, "any one of these makes it fit:", *map(_told, plan.alone)]
    fitting = plan.together and plan.together[-1].peak <= plan.gpu
    told = (
        "no single change makes it fit, these together do:"
        if fitting
        else "it cannot be made to fit; this is how far the parameters can go:"
    )
    return [*lines, told, *map(_told, plan.together)]


def _told(turn: Turn) -> str:
    return f"  {turn.key}: {turn.after} (now {turn.before}) -> {turn.peak / GB:.1f} GB"
