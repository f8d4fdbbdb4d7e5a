"""Memory of each stage of a run: a model's sizes and a run's knobs go in, bytes come out.

    for stage in stages(shape, knobs): stage.name, stage.parts, stage.total

Each stage is estimated at the moment of its peak, for the worst case: every prompt and completion
as long as it may be. docs/plan.md derives the formulas and has the measured peaks beside them. c
is the width of the compute type in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shfcas_lib.memory.shapes import Shape
from shfcas_lib.models.decoding import ANSWER_TOKENS
from shfcas_lib.pool import TOKENS

# TRL's log-probabilities never hold more logits than this at once
TILE_TOKENS, TILE_VOCAB = 4096, 32768
# copies of such a tile where there is no Triton (CPU): logits, softmax, gradient and what lies
# between
TORCH_TILES = 8.5


@dataclass(frozen=True)
class Knobs:
    """What a run asks for. Rows are sequences that go through the model together."""

    quantisation: str  # nf4, int8 or none
    compute: int  # c: 4 for float32, 2 for bfloat16 and float16
    cuda: bool
    prompt: int  # tokens of the longest prompt, template included
    completion: int  # tokens of the longest completion
    n: int  # completions per prompt
    sampling_rows: int  # 0: completions are given
    top_p: bool = False
    reward_rows: int = 0  # 0: no reward is trained on the backbone (probe)
    reward_rank: int = 0
    reward_dropout: bool = False
    # that lie on the backbone together: the proxy and one refined reward per strategy
    reward_adapters: int = 0
    policy_rows: int = 0  # 0: no policy is trained (tilt)
    policy_rank: int = 0
    online_rows: int = 0  # completions that the policy's trainer writes itself (rloo, grpo)
    sft_rows: int = 0  # 0: the model is not fine-tuned first
    sft_rank: int = 0
    policy_dropout: bool = False
    sft_dropout: bool = False
    checkpointing: bool = False
    optimiser: str = "adamw_torch"
    vllm: bool = False  # another engine writes the base policy's completions, beside the backbone
    stored: bool = False  # the files are quantised already, and are not quantised further
    scaled: bool = False  # float16: adapters are trained in float32 whatever the backbone is

    @property
    def length(self) -> int:
        """Tokens of a prompt with its completion."""
        return self.prompt + self.completion


@dataclass(frozen=True)
class Beside:
    """A published reward model that scores beside the backbone.

    rows: completions scored at once; quantisation: None for the backbone's.
    """

    shape: Shape
    rows: int
    quantisation: str | None = None


@dataclass(frozen=True)
class StageMemory:
    """One stage at its peak: bytes by what they are for, in the order of PARTS."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())


PARTS = ("weights", "adapters", "gradients", "optimiser", "activations", "logits", "cache")


def stages(
    shape: Shape, knobs: Knobs, published: dict[str, Beside] | None = None
) -> list[StageMemory]:
    """The stages of a run with their peaks, in the order they run.

    published: reward models that score beside the backbone, by what they are (gold, proxy).
    """
    resident = _resident(shape, knobs)
    peaks = []
    if shape.experts and knobs.quantisation == "nf4":
        peaks.append(_stage("loading", {}, _loading(shape, knobs)))
    if knobs.sft_rows:
        peaks.append(_stage("sft training", *_sft(shape, knobs)))
        peaks.append(_stage("sft merge", *_merge(shape, knobs)))
    if knobs.vllm:
        peaks.append(_stage("sampling by vLLM", resident, _vllm(shape, knobs)))
    if knobs.sampling_rows:
        peaks.append(_highest("sampling", resident, _sampling(shape, knobs)))
    peaks.append(_highest("scoring", resident, _scoring(shape, knobs)))
    if knobs.reward_rows:
        peaks.append(_stage("reward training", resident, _reward(shape, knobs)))
    if knobs.policy_rows:
        peaks.append(_stage("policy training", resident, _policy(shape, knobs)))
    if knobs.online_rows:
        peaks.append(_stage("policy sampling", resident, _online(shape, knobs)))
    for role, other in (published or {}).items():
        held = other.quantisation or knobs.quantisation
        beside = weights(other.shape, held, knobs.compute)
        both = resident | {"weights": resident["weights"] + beside}
        activations = _published_pass(other.shape, replace(knobs, quantisation=held), other.rows)
        peaks.append(_stage(f"published {role}", both, {"activations": activations}))
    return peaks


def _published_pass(shape: Shape, knobs: Knobs, rows: int) -> int:
    """Activations of a published reward model that scores `rows` completions at once."""
    per_token = _layer_forward(shape, knobs) + shape.hidden * knobs.compute
    return rows * knobs.length * per_token + _widened(shape, knobs)


def weights(shape: Shape, quantisation: str, c: int) -> int:
    """Bytes of the backbone.

    Quantisation reaches the linear layers, and NF4 the experts of a mixture; embeddings, output
    layer, norms and biases stay in the compute type.

    nf4 with double quantisation: half a byte, one byte of scale per 64 weights, one float32 per
    256 scales (Dettmers et al. 2023, section 3).
    """
    widths = {"nf4": 1 / 2 + 1 / 64 + 4 / (64 * 256), "int8": 1.0, "none": float(c)}
    reached = shape.linear + (shape.experts if quantisation == "nf4" else 0)
    return round(reached * widths[quantisation] + (shape.parameters - reached) * c)


def adapter(shape: Shape, rank: int, experts: bool = False) -> int:
    """Parameters of a LoRA adapter on all linear layers; and on the experts of a mixture."""
    return rank * (shape.lora + (shape.experts_lora if experts else 0))


def _adapter(shape: Shape, knobs: Knobs, rank: int, dropout: bool) -> int:
    """The same, where it is known whether LoRA reaches the experts."""
    return adapter(shape, rank, knobs.quantisation != "nf4" and not dropout)


def _loading(shape: Shape, knobs: Knobs) -> dict[str, float]:
    """The experts of a mixture lie there whole before the first of them is quantised."""
    rest = weights(replace(shape, experts=0), "nf4", knobs.compute)
    return {"weights": rest}


def saved(shape: Shape, knobs: Knobs, dropout: bool) -> float:
    """Bytes that autograd keeps for the backward pass, per token of one layer.

    The layer has adapters on all its linear layers.
    """
    c, h, q, f = knobs.compute, shape.hidden, shape.queries, shape.intermediate
    norms = 4 * shape.norms if shape.rms else c * h * (1 if shape.parallel else 2)
    # q, k, v as the kernel takes them, and its output
    attention = (6 if shape.fused else 4) * q * c
    attention += knobs.length * c + 4 * shape.heads  # its mask and its normaliser
    attention += 8 * shape.heads * knobs.length if shape.eager else 0
    feed_forward = (3 if shape.gated else 1) * f * c
    # PEFT widens the input of plain layers to float32 first
    upcast = knobs.compute < 4 and knobs.quantisation == "none"
    if dropout:
        mask = 1 if knobs.cuda else 4 if upcast else c
        inputs = shape.inputs * (c + mask)  # what LoRA reads after dropout, and the mask
    elif upcast:
        inputs = shape.inputs * c  # each layer's own copy, narrowed again
    else:
        # layers that read the same input share it
        inputs = (2 * h + f + (q if shape.fused else 0)) * c
    return norms + attention + feed_forward + inputs


def _resident(shape: Shape, knobs: Knobs) -> dict[str, int]:
    """What lies in memory all along: the backbone and every adapter, in float32."""
    one = _adapter(shape, knobs, knobs.reward_rank, knobs.reward_dropout)
    rewards = one * knobs.reward_adapters
    policy = 0
    if knobs.policy_rows:
        policy = _adapter(shape, knobs, knobs.policy_rank, knobs.policy_dropout)
    return {
        "weights": weights(shape, knobs.quantisation, knobs.compute),
        "adapters": 4 * (rewards + policy),
    }


def _layer_forward(shape: Shape, knobs: Knobs) -> int:
    """Bytes per token that one layer's forward pass holds for a moment."""
    return (shape.hidden + max(3 * shape.queries, 3 * shape.intermediate)) * knobs.compute


def _widened(shape: Shape, knobs: Knobs) -> int:
    """One quantised matrix, widened to the compute type to be multiplied; or a layer's experts."""
    if knobs.quantisation == "none":
        return 0
    # the experts of a layer are widened together
    together = shape.experts_inside if knobs.quantisation == "nf4" else 0
    return max(shape.largest, together) * knobs.compute


def _cache(shape: Shape, rows: int, tokens: int, knobs: Knobs) -> float:
    """Keys and values, and one layer's keys once more: a cache changes its size by copying."""
    return rows * tokens * shape.keys * knobs.compute * (2 * shape.layers + 1)


def _sampling(shape: Shape, knobs: Knobs) -> list[dict[str, float]]:
    """The moments that can be the peak.

    They are the prefill, the first step after it, whose hidden states still lie there, and the
    last step.
    """
    c, rows = knobs.compute, knobs.sampling_rows
    all_layers = (shape.layers + 1) * shape.hidden * c  # hidden states of one token
    prefilled = max(1, rows // knobs.n) * knobs.prompt
    states = prefilled * all_layers
    layer = rows * all_layers + _widened(shape, knobs)
    prefill = prefilled * (_layer_forward(shape, knobs) + all_layers) + _widened(shape, knobs)
    # float32 logits, then probabilities and their float64 sums
    choosing = 4 + (c if c < 4 else 0) + 20 + (12 if knobs.top_p else 0)
    logits = rows * shape.vocab * choosing
    first = _cache(shape, rows, knobs.prompt + 1, knobs)
    last = _cache(shape, rows, knobs.length, knobs)
    return [
        {"activations": prefill, "cache": _cache(shape, prefilled, 1, knobs)},
        {"activations": states + layer, "logits": logits, "cache": first},
        {"activations": layer, "logits": logits, "cache": last},
    ]


def _vllm(shape: Shape, knobs: Knobs) -> dict[str, float]:
    """The least that vLLM works with: the model unquantised, and keys and values of a batch.

    It takes nine tenths of what is free.
    """
    per_token = shape.keys * knobs.compute * 2 * shape.layers
    return {
        "weights": weights(shape, "none", knobs.compute),
        "cache": knobs.sampling_rows * knobs.length * per_token,
    }


def scoring_rows(knobs: Knobs) -> int:
    """Completions of the greatest length that `teacher_force` reads at once."""
    answers = ANSWER_TOKENS // knobs.completion
    return max(1, min(answers, 8 * ANSWER_TOKENS // knobs.length))


def _scoring(shape: Shape, knobs: Knobs) -> list[dict[str, float]]:
    """The moments of teacher-forced log-probabilities that can be the peak.

    They are one layer's pass over the prompts, and one over completions, beside keys and values of
    both, their logits, and one completion's in float32, twice. Hidden states of one layer stay.
    """
    rows, c = scoring_rows(knobs), knobs.compute
    prompts, answers = max(TOKENS, knobs.prompt), rows * knobs.completion
    layer = _layer_forward(shape, knobs) + shape.hidden * c
    asked = _cache(shape, 1, prompts, knobs)
    both = asked + _cache(shape, rows, knobs.length, knobs)
    last = shape.vocab * c * max(1, prompts // knobs.prompt)  # of every prompt's last token
    logits = last + shape.vocab * (answers * c + knobs.completion * 8)
    widened = _widened(shape, knobs)
    return [
        {"activations": prompts * layer + widened, "logits": last, "cache": asked},
        {"activations": answers * layer + widened, "logits": logits, "cache": both},
    ]


def _reward(shape: Shape, knobs: Knobs) -> dict[str, float]:
    trained = _adapter(shape, knobs, knobs.reward_rank, knobs.reward_dropout)
    return {
        "activations": _graph(shape, knobs, knobs.reward_rows, knobs.reward_dropout),
        "gradients": 4 * trained,
        "optimiser": trained * _optimiser(knobs, 4),
    }


def _sft(shape: Shape, knobs: Knobs) -> tuple[dict[str, int], dict[str, float]]:
    """Step 0, on a backbone that carries no other adapter: what lies there, what training takes."""
    backbone = {"weights": weights(shape, knobs.quantisation, knobs.compute)}
    training = _imitated(shape, knobs, knobs.sft_rank, knobs.sft_rows, knobs.sft_dropout)
    return backbone, training


def _merge(shape: Shape, knobs: Knobs) -> tuple[dict[str, int], dict[str, float]]:
    """The adapter of step 0 goes into an unquantised copy, matrix by matrix.

    At the peak: the update, widened to float32, and the matrix that it is added to.
    """
    copy = {
        "weights": weights(shape, "none", knobs.compute),
        "adapters": 4 * _adapter(shape, knobs, knobs.sft_rank, knobs.sft_dropout),
    }
    return copy, {"activations": shape.largest * (4 + 2 * knobs.compute)}


def _policy(shape: Shape, knobs: Knobs) -> dict[str, float]:
    """TRL trains without dropout, beside a frozen copy of the adapter: the resident one."""
    adapted = knobs.policy_dropout
    return _imitated(shape, knobs, knobs.policy_rank, knobs.policy_rows, False, adapted)


def _imitated(
    shape: Shape, knobs: Knobs, rank: int, rows: int, dropout: bool, named: bool | None = None
) -> dict[str, float]:
    """A training on the log-probabilities of given answers.

    dropout: while it trains; named: in its parameters, where that is another.
    """
    sparing = dropout if named is None else named
    trained, width = _adapter(shape, knobs, rank, sparing), _width(knobs)
    tokens = rows * (knobs.completion if knobs.cuda else knobs.length)
    tile = min(tokens, TILE_TOKENS) * min(shape.vocab, TILE_VOCAB)
    logits = tile * knobs.compute * (1 if knobs.cuda else TORCH_TILES)
    return {
        "adapters": width * trained,
        "gradients": width * trained,
        "optimiser": trained * _optimiser(knobs, width),
        "activations": _graph(shape, knobs, rows, dropout),
        "logits": logits + 4 * tokens * shape.hidden,
    }


def _width(knobs: Knobs) -> int:
    """Bytes of a trained number.

    On a quantised backbone TRL makes adapters of language models bfloat16, but with loss scaling
    they are float32.
    """
    return 4 if knobs.quantisation == "none" or knobs.scaled else 2


def _online(shape: Shape, knobs: Knobs) -> dict[str, float]:
    """`generate` inside TRL's online trainers, between optimiser steps."""
    trained = _adapter(shape, knobs, knobs.policy_rank, knobs.policy_dropout)
    width, c = _width(knobs), knobs.compute
    return {
        "adapters": width * trained,
        "optimiser": trained * _optimiser(knobs, width),
        "cache": _cache(shape, knobs.online_rows, knobs.length, knobs),
        "logits": knobs.online_rows * shape.vocab * (c + 16),
        "activations": knobs.online_rows * knobs.prompt * _layer_forward(shape, knobs),
    }


def _graph(shape: Shape, knobs: Knobs, rows: int, dropout: bool) -> float:
    """Activations where the backward pass begins.

    With checkpointing: each layer's input, and one layer in full.
    """
    tokens, kept = rows * knobs.length, saved(shape, knobs, dropout)
    # final norm, embeddings; gradients on their way through one layer
    ends = 2 * shape.hidden * 4 + 2 * shape.intermediate * knobs.compute
    every = shape.layers * kept
    if knobs.checkpointing:
        every = shape.layers * shape.hidden * knobs.compute + kept
    return tokens * (every + ends) + _widened(shape, knobs) + _copied_experts(shape, knobs)


def _copied_experts(shape: Shape, knobs: Knobs) -> float:
    """Experts that a training keeps for its backward pass beside those in `weights`.

    Widened from NF4, or with what LoRA adds to them; with checkpointing those of one layer.
    """
    return (shape.experts_inside if knobs.checkpointing else shape.experts) * knobs.compute


def _optimiser(knobs: Knobs, width: int) -> float:
    """Bytes of AdamW's two moments per trained parameter."""
    return 2 * width if knobs.optimiser == "adamw_torch" else 2 * 1.02


def _stage(name: str, resident: dict[str, int], more: dict[str, float]) -> StageMemory:
    return StageMemory(
        name, {part: round(resident.get(part, 0) + more.get(part, 0)) for part in PARTS}
    )


def _highest(name: str, resident: dict[str, int], moments: list[dict[str, float]]) -> StageMemory:
    return max(
        (_stage(name, resident, moment) for moment in moments), key=lambda stage: stage.total
    )
