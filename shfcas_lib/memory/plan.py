"""Will a run fit? Parameters and a GPU's memory go in; a table, a verdict and a knob come out.

    plan = make_plan(params, gpu_memory=24)
    print(plan.text())

Nothing is downloaded but the model's config.json. The estimate itself is in `estimate`; this
module says what a run asks for (`knobs_of`), and which single change of it brings the peak under
the card's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shfcas_lib.base import dialogues
from shfcas_lib.base.errors import InputError
from shfcas_lib.memory import estimate, shapes
from shfcas_lib.memory.estimate import PARTS, Beside, Knobs, StageMemory
from shfcas_lib.memory.shapes import Shape
from shfcas_lib.models import architecture, experts, stored
from shfcas_lib.models.published import as_loaded
from shfcas_lib.params.schema import Params
from shfcas_lib.storage import assets

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
    # where sizes come from, and what the estimate does not know: lengths of answers, published
    # reward models without a config.json
    notes: list[str]
    alone: list[Turn]  # single changes that make it fit
    # where there is none: changes one after the other, each with the peak that it leads to
    together: list[Turn]

    @property
    def peak(self) -> float:
        """Bytes that the card must have: the highest stage, CUDA and its allocator's gaps."""
        return bytes_needed(self.stages, self.knobs)

    @property
    def fits(self) -> bool:
        """Is the peak of all stages within the GPU's memory?"""
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
    source = params.model.source
    described = shapes.read_config(source, params.model.revision, config)
    name = f"model.source {source!r}"
    architecture.check_policy(described.config, name)
    held, stored_note = _held(described.config, params.model.quantisation, stored.Where(name))
    shape = shapes.shape_of(described.config)
    prompt = prompt_tokens or longest_prompt(params)
    answer = completion_tokens or longest_answer(params)
    already = stored.method_of(described.config) is not None
    knobs = replace(knobs_of(params, prompt, answer), quantisation=held, stored=already)
    published, notes = _published(params)
    notes = [note for note in (described.origin, stored_note) if note] + notes
    notes += _mixture(described.config, held, knobs, params)
    if params.preferences.given and answer is None:
        notes.append(
            "the answers of your preferences are not cut and were not measured: taken to be"
            f" {knobs.completion} tokens long (sampling.max_new_tokens); say how long they get with"
            " --completion-tokens"
        )
    stages = estimate.stages(shape, knobs, published)

    def peak(tried: Knobs) -> float:
        return bytes_needed(estimate.stages(shape, tried, published), tried)

    alone, together = _turns(knobs, params, peak, gpu)
    title = (
        f"{source}: {shape.parameters / 1e9:.3f} billion parameters,"
        f" {knobs.quantisation}, computing in {8 * knobs.compute} bits; prompts up to"
        f" {knobs.prompt} tokens, completions up to {knobs.completion}"
    )
    return MemoryPlan(title, shape, knobs, stages, gpu, notes, alone, together)


def _held(config: Any, wanted: str, where: stored.Where) -> tuple[str, str | None]:
    """How the weights of a model lie in memory (nf4, int8, none), and a note on stored ones.

    Raises InputError where the files cannot become what is wanted.
    """
    method = stored.method_of(config)
    if method is None:
        return ("none" if wanted == "as_stored" else wanted), None
    stored.check(config, wanted, where)
    if wanted != "as_stored":
        return wanted, None
    bits = stored.bits_of(config)
    held = "nf4" if bits <= 4 else "int8" if bits <= 8 else "none"
    return held, f"{where.name} is stored quantised ({method}): counted as {bits} bits a weight"


def _mixture(config: Any, held: str, knobs: Knobs, params: Params) -> list[str]:
    """What quantisation and LoRA do not reach of a mixture of experts, as notes."""
    found = experts.find(architecture.skeleton(config))
    nf4 = held == "nf4" and stored.method_of(config) is None
    told = experts.unreached(
        replace(found, quantised=nf4 and bool(found.names)),
        params.model.quantisation,
        experts.trained_adapters(params),
    )
    return [told] if told else []


def _published(params: Params) -> tuple[dict[str, Beside], list[str]]:
    """The published reward models that score beside the backbone by role (proxy, gold), and notes:
    where sizes come from, and what is left out because its sizes cannot be had."""
    sizes: dict[str, Beside] = {}
    notes = []
    blocks = (("proxy", "reward.proxy", params.reward), ("gold", "gold.kind", params.gold))
    for role, key, block in blocks:
        if not block.published:
            continue
        model, whence = as_loaded(block.published, block.model, params.model, key)
        try:
            described = shapes.read_config(block.published, block.model.revision)
            shape = shapes.shape_of(described.config, classifier=True)
        except InputError as error:
            notes.append(f"{role} model left out: {error}")
            continue
        held, note = _held(described.config, model.quantisation, whence.where)
        notes += [line for line in (described.origin, note) if line]
        # as the backbone, whatever that is turned to; files that are stored quantised stay so
        alike = block.model.quantisation is None and model.quantisation != "as_stored"
        sizes[role] = Beside(shape, block.model.batch_size, None if alike else held)
    return sizes, notes


def bytes_needed(stages: list[StageMemory], knobs: Knobs) -> float:
    """Bytes that a card, or a machine's memory, must have for these stages one after the other."""
    highest = max(stage.total for stage in stages)
    if not knobs.cuda:
        return highest
    return highest * (1 + FRAGMENTS) + CONTEXT


def knobs_of(params: Params, prompt_tokens: int, completion_tokens: int | None = None) -> Knobs:
    """What a run's parameters ask of memory.

    With `_choices`, the one place that knows their names.
    """
    # what is not trained asks for nothing
    model, sampling, policy = params.model, params.sampling, params.policy
    lora, trained = params.reward.kind == "lora", policy.kind != "tilt"
    tuned = params.sft.answers != "none"
    # an Apple GPU shares the machine's memory, and computes in float32 here
    cuda = model.device not in ("cpu", "mps")
    micro = params.training.micro_batch
    policy_batch = micro or _micro(policy.batch_size)
    return Knobs(
        quantisation=model.quantisation,
        compute=_compute(model.dtype, cuda),
        cuda=cuda,
        prompt=prompt_tokens,
        completion=completion_tokens or sampling.max_new_tokens,
        n=sampling.n,
        sampling_rows=_sampling_rows(params),
        top_p=sampling.top_p < 1,
        reward_rows=2 * (micro or params.reward.batch_size) if lora else 0,
        reward_rank=params.reward.lora.r if lora else 0,
        reward_dropout=params.reward.lora.dropout > 0,
        reward_adapters=1 + len(params.selection.strategies) if lora else 0,
        policy_rows=_answers(params) * policy_batch if trained else 0,
        policy_rank=policy.lora.r if trained else 0,
        online_rows=policy.batch_size if policy.kind in ("rloo", "grpo") else 0,
        sft_rows=(micro or _micro(params.sft.batch_size)) if tuned else 0,
        sft_rank=params.sft.lora.r if tuned else 0,
        policy_dropout=params.policy.lora.dropout > 0,
        sft_dropout=params.sft.lora.dropout > 0,
        checkpointing=params.training.gradient_checkpointing,
        optimiser=params.training.optimiser,
        scaled=model.dtype == "float16",
        vllm=sampling.engine == "vllm",
    )


def _compute(dtype: str, cuda: bool) -> int:
    """Bytes of the type that a model computes in."""
    if dtype == "auto":
        return 2 if cuda else 4
    return 2 if dtype in ("bfloat16", "float16") else 4


def _sampling_rows(params: Params) -> int:
    """Sequences that are sampled together, for the pool or for the answers of trained policies; 0
    where completions are given and no policy is trained."""
    sampling = params.sampling
    trained = params.policy.kind != "tilt"
    if params.completions.given and not trained:
        return 0
    answers = (trained and params.evaluation.answers) or sampling.n
    counts = (sampling.n, answers)
    return max(max(1, sampling.batch_size // n) * n for n in counts)


def _answers(params: Params) -> int:
    """Sequences per example of the policy's trainer."""
    return 2 if params.policy.kind in ("dpo", "rso") else 1


def _micro(batch_size: int) -> int:
    """How much of a batch a policy's trainer takes at once by default."""
    return next(size for size in range(min(4, batch_size), 0, -1) if batch_size % size == 0)


Settings = list[tuple[object, Knobs]]  # values of one parameter, and what is asked with each


def _choices(knobs: Knobs, params: Params) -> Iterator[tuple[str, object, Settings]]:
    """Parameters to turn: key, value now, and settings from mild to drastic.

    Those that leave results alone come first, those that change the method last.
    """
    # the same results from less memory
    training, sampling = params.training, params.sampling
    yield "training.micro_batch", training.micro_batch, _micro_batches(knobs, params)
    if not knobs.checkpointing:
        yield "training.gradient_checkpointing", False, _each(knobs, "checkpointing", [True])
    if knobs.optimiser == "adamw_torch":
        paged = _each(knobs, "optimiser", ["paged_adamw_8bit"])
        yield "training.optimiser", knobs.optimiser, paged
    rows = _each(knobs, "sampling_rows", _halves(knobs.sampling_rows, knobs.n))
    yield "sampling.batch_size", sampling.batch_size, rows
    if knobs.vllm:
        yield "sampling.engine", "vllm", [("backbone", replace(knobs, vllm=False))]
    kinds = [] if knobs.stored else ["none", "int8", "nf4"]
    smaller = kinds[kinds.index(knobs.quantisation) + 1 :] if kinds else []
    yield "model.quantisation", knobs.quantisation, _each(knobs, "quantisation", smaller)

    # from here on the method changes
    if knobs.completion == sampling.max_new_tokens:
        tokens = _each(knobs, "completion", _halves(knobs.completion, 16))
        yield "sampling.max_new_tokens", knobs.completion, tokens
    if knobs.sft_rows:
        yield "sft.answers", params.sft.answers, [("none", replace(knobs, sft_rows=0, sft_rank=0))]
    if knobs.reward_rows:
        probe = replace(knobs, reward_rows=0, reward_rank=0, reward_adapters=0)
        yield "reward.kind", params.reward.kind, [("probe", probe)]
    if knobs.policy_rows:
        tilt = replace(knobs, policy_rows=0, policy_rank=0, online_rows=0)
        yield "policy.kind", params.policy.kind, [("tilt", tilt)]


def _each(knobs: Knobs, knob: str, values: list) -> Settings:
    """One knob at each of these values."""
    return [(value, replace(knobs, **{knob: value})) for value in values]


def _micro_batches(knobs: Knobs, params: Params) -> Settings:
    """Smaller micro-batches that divide the batches of every training."""
    answers = _answers(params)
    micro = max(knobs.reward_rows // 2, knobs.policy_rows // answers, knobs.sft_rows)
    batches = [params.reward.batch_size, params.policy.batch_size]
    if knobs.sft_rows:
        batches.append(params.sft.batch_size)
    settings: Settings = []
    for size in _halves(micro, 1):
        if any(batch % size for batch in batches):
            continue
        smaller = replace(
            knobs,
            reward_rows=min(knobs.reward_rows, 2 * size),
            policy_rows=min(knobs.policy_rows, answers * size),
            sft_rows=min(knobs.sft_rows, size),
        )
        settings.append((size, smaller))
    return settings


def _turned(
    knobs: Knobs, params: Params, peak: Callable[[Knobs], float], gpu: float
) -> Iterator[tuple[Turn, Knobs]]:
    """For each knob the mildest setting that makes the run fit, or else its last.

    Knobs that change next to nothing are left out.
    """
    for key, before, settings in _choices(knobs, params):
        if not settings:
            continue
        fitting = (pair for pair in settings if peak(pair[1]) <= gpu)
        value, changed = next(fitting, settings[-1])
        if peak(changed) < 0.995 * peak(knobs):
            yield Turn(key, before, value, peak(changed)), changed


def _turns(
    knobs: Knobs, params: Params, peak: Callable[[Knobs], float], gpu: float
) -> tuple[list[Turn], list[Turn]]:
    """Single changes that make the run fit; where there is none, changes that do so together.

    Of those each is turned where it still helps.
    """
    alone = [turn for turn, _ in _turned(knobs, params, peak, gpu) if turn.peak <= gpu]
    together: list[Turn] = []
    while not alone and peak(knobs) > gpu:
        known = {turn.key for turn in together}
        steps = _turned(knobs, params, peak, gpu)
        step = next((pair for pair in steps if pair[0].key not in known), None)
        if step is None:
            break
        turn, knobs = step
        together.append(turn)
    return alone, together


def _halves(number: int, least: int) -> list[int]:
    """number halved again and again, down to `least`, in multiples of it."""
    halves = []
    while (number := number // 2 // least * least) >= least:
        halves.append(number)
    return halves


def longest_prompt(params: Params) -> int:
    """Tokens of the longest prompt, guessed from its letters; a fixed guess for a hub's, and for
    those that the library would have to fetch first."""
    from shfcas_lib.data.prompts import load_prompts

    if any(block.source or block.recipe for block in (params.prompts, params.preferences)):
        return UNKNOWN_PROMPT
    fetched = (assets.cache_dir() / "do-not-answer" / assets.MANIFEST).is_file()
    if params.task == "safety" and not fetched:
        return UNKNOWN_PROMPT
    longest = max(len(dialogues.plain(prompt)) for prompt in load_prompts(params)["prompt"])
    return (longest + len(params.model.system_prompt)) // LETTERS_PER_TOKEN + TEMPLATE_TOKENS


def longest_answer(params: Params) -> int | None:
    """Tokens of the longest completion where answers of the user's own lie in a file: theirs,
    guessed from their letters, or those that are sampled. None where there is no such file."""
    from shfcas_lib.data.completions import own_completions
    from shfcas_lib.data.preferences import own_pairs

    answers: list[str] = []
    if params.preferences.file:
        pairs = own_pairs(params)
        answers += [*pairs["chosen"], *pairs["rejected"]]
    if params.completions.file:
        answers += [*own_completions(params)[0]["completion"]]
    if not answers:
        return None
    sampled = params.sampling.max_new_tokens if _sampling_rows(params) else 0
    return max(sampled, max(map(len, answers)) // LETTERS_PER_TOKEN + 1)


def _card(card: float | str | None) -> float:
    """Bytes of the card that is meant."""
    if card is None:
        import torch

        if not torch.cuda.is_available():
            raise InputError(
                "this machine shows no GPU: say which one is meant with --gpu-memory, in GB (24) or"
                " by name: " + ", ".join(CARDS)
            )
        return float(torch.cuda.get_device_properties(0).total_memory)
    if card in CARDS:
        return CARDS[card] * GB
    try:
        number = float(card)
    except ValueError:
        number = 0.0
    if not 0 < number < 10_000:
        raise InputError(
            f"--gpu-memory: found {card!r}, expected a number of GB or one of {', '.join(CARDS)}"
        )
    return number * GB


def _table(stages: list[StageMemory]) -> list[str]:
    """A row a stage, a column a part, in GB."""
    rows = [f"{'GB':<17}" + "".join(f"{part:>12}" for part in PARTS) + f"{'peak':>9}"]
    for stage in stages:
        parts = "".join(f"{stage.parts[part] / GB:>12.2f}" for part in PARTS)
        rows.append(f"{stage.name:<17}{parts}{stage.total / GB:>9.2f}")
    return rows


def _verdict(plan: MemoryPlan) -> list[str]:
    """Does it fit, and if not, what to turn."""
    highest = max(plan.stages, key=lambda stage: stage.total)
    lines = []
    if plan.knobs.vllm:
        lines.append(
            "sampling by vLLM is the least it works with, not measured: it takes nine tenths of"
            " what is free"
        )
    beside = ""
    if plan.knobs.cuda:
        gaps = f"{FRAGMENTS:.0%} for gaps between tensors"
        beside = f", with {CONTEXT / GB} GB for CUDA itself and {gaps}"
    fits = "it fits" if plan.fits else "it does not fit"
    lines.append(
        f"peak {plan.peak / GB:.1f} GB in {highest.name}{beside}; the card has"
        f" {plan.gpu / GB:.1f} GB: {fits}"
    )
    if plan.fits:
        return lines
    if plan.alone:
        return [*lines, "any one of these makes it fit:", *map(_turn_line, plan.alone)]
    heading = "it cannot be made to fit; this is how far the parameters can go:"
    if plan.together and plan.together[-1].peak <= plan.gpu:
        heading = "no single change makes it fit, these together do:"
    return [*lines, heading, *map(_turn_line, plan.together)]


def _turn_line(turn: Turn) -> str:
    return f"  {turn.key}: {turn.after} (now {turn.before}) -> {turn.peak / GB:.1f} GB"
