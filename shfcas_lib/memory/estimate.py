"""Memory of each stage of a run, from plain numbers: a model's sizes and a run's knobs go in,
bytes come out.

    for stage in stages(shape, knobs): stage.name, stage.parts, stage.total

Each stage is estimated at the moment of its peak, for the worst case: every prompt and completion
as long as it may be. docs/plan.md derives the formulas and has the measured peaks beside them. c
is the width of the compute type in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from shfcas_lib.memory.shapes import Shape

# TRL's log-probabilities never hold more logits than this at once
TILE_TOKENS, TILE_VOCAB = (
    4096,
    32768,
)
# copies of such a tile where there is no Triton (CPU): logits, softmax, gradient and what lies
# between
TORCH_TILES = 8.5
SCORING_ROWS = 16  # pool.score's and lora_reward's default batch


@dataclass(frozen=True)
class Knobs:
    """What a run asks for. Rows are sequences that go through the model together."""

    quantisation: str  # nf4, int8 or none
    compute: int  # c: 4 for float32, 2 for bfloat16 and float16
    cuda: bool
    prompt: int  # tokens of the longest prompt, template included
    completion: int  # tokens of the longest completion
    n: int  # completions per prompt
    sampling_rows: int
    top_p: bool = False
    reward_rows: int = 0  # 0: no reward is trained on the backbone (probe)
    reward_rank: int = 0
    reward_dropout: bool = False
    reward_adapters: int = (
        0  # that lie on the backbone together: the proxy and one refined reward per strategy
    )
    policy_rows: int = 0  # 0: no policy is trained (tilt)
    policy_rank: int = 0
    online_rows: int = (
        0  # completions that the policy's trainer writes itself, together (rloo, grpo)
    )
    sft_rows: int = 0  # 0: the model is not fine-tuned first
    sft_rank: int = 0
    sft_dropout: bool = False
    checkpointing: bool = False
    optimiser: str = "adamw_torch"
    vllm: bool = False  # another engine writes the base policy's completions, beside the backbone
    scaled: bool = False  # float16: adapters are trained in float32 whatever the backbone is

    @property
    def length(self) -> int:
        return self.prompt + self.completion


@dataclass(frozen=True)
class StageMemory:
    """One stage at its peak: bytes by what they are for, in the order of PARTS."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


PARTS = ("weights", "adapters", "gradients", "optimiser", "activations", "logits", "cache")


def stages(
    shape: Shape, knobs: Knobs, published: dict[str, tuple[Shape, int]] | None = None
) -> list[StageMemory]:
    """The stages of a run with their peaks, in the order they run.

    published: reward models that score beside the backbone, by what they are (gold, proxy):
    sizes, and completions scored at once.
    """
    found = (
        [_stage("sft training", *_sft(shape, knobs)), _stage("sft merge", *_merge(shape, knobs))]
        if knobs.sft_rows
        else []
    )
    if knobs.vllm:
        found.append(_stage("sampling by vLLM", _resident(shape, knobs), _vllm(shape, knobs)))
    found += [
        _highest("sampling", _resident(shape, knobs), _sampling(shape, knobs)),
        _stage("scoring", _resident(shape, knobs), _scoring(shape, knobs)),
    ]
    if knobs.reward_rows:
        found.append(_stage("reward training", _resident(shape, knobs), _reward(shape, knobs)))
    if knobs.policy_rows:
        found.append(_stage("policy training", _resident(shape, knobs), _policy(shape, knobs)))
    if knobs.online_rows:
        found.append(_stage("policy sampling", _resident(shape, knobs), _online(shape, knobs)))
    for role, (other, rows) in (published or {}).items():
        beside = _resident(shape, knobs)
        both = beside | {
            "weights": beside["weights"] + weights(other, knobs.quantisation, knobs.compute)
        }
        pass_ = rows * knobs.length * (
            _layer_forward(other, knobs) + other.hidden * knobs.compute
        ) + _widened(other, knobs)
        found.append(_stage(f"published {role}", both, {"activations": pass_}))
    return found


def weights(shape: Shape, quantisation: str, c: int) -> int:
    """Bytes of the backbone.

    Quantisation reaches the linear layers; embeddings, output layer, norms and biases stay in the
    compute type.

    nf4 with double quantisation: half a byte, one byte of scale per 64 weights, one float32 per
    256 scales (Dettmers et al. 2023, section 3).
    """
    per_weight = {"nf4": 1 / 2 + 1 / 64 + 4 / (64 * 256), "int8": 1.0, "none": float(c)}[
        quantisation
    ]
    return round(shape.linear * per_weight + (shape.parameters - shape.linear) * c)


def adapter(shape: Shape, rank: int) -> int:
    """Parameters of a LoRA adapter on all linear layers."""
    return rank * shape.lora


def saved(shape: Shape, knobs: Knobs, dropout: bool) -> float:
    """Bytes that autograd keeps for the backward pass: per token, of one layer with adapters on
    all its linear layers.
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
        # what LoRA reads after dropout, and the mask
        inputs = shape.inputs * (c + (1 if knobs.cuda else 4 if upcast else c))
    elif upcast:
        inputs = shape.inputs * c  # each layer's own copy, narrowed again
    else:
        inputs = (
            2 * h + f + (q if shape.fused else 0)
        ) * c  # layers that read the same input share it
    return norms + attention + feed_forward + inputs


def _resident(shape: Shape, knobs: Knobs) -> dict[str, int]:
    """What lies in memory all along: the backbone and every adapter, in float32."""
    rewards = adapter(shape, knobs.reward_rank) * knobs.reward_adapters
    policy = adapter(shape, knobs.policy_rank) if knobs.policy_rows else 0
    return {
        "weights": weights(shape, knobs.quantisation, knobs.compute),
        "adapters": 4 * (rewards + policy),
    }


def _layer_forward(shape: Shape, knobs: Knobs) -> int:
    """Bytes per token that one layer's forward pass holds for a moment."""
    return (shape.hidden + max(3 * shape.queries, 3 * shape.intermediate)) * knobs.compute


def _widened(shape: Shape, knobs: Knobs) -> int:
    """One quantised matrix, widened to the compute type to be multiplied."""
    return 0 if knobs.quantisation == "none" else shape.largest * knobs.compute


def _cache(shape: Shape, rows: int, tokens: int, knobs: Knobs) -> float:
    """Keys and values, and one layer's keys once more: a cache grows, expands and shrinks by
    copying.
    """
    return rows * tokens * shape.keys * knobs.compute * (2 * shape.layers + 1)


def _sampling(shape: Shape, knobs: Knobs) -> list[dict[str, float]]:
    """The two moments that can be the peak: the first step after the prefill, whose hidden states
    are still held, and the last step.
    """
    c, rows = knobs.compute, knobs.sampling_rows
    prefilled = max(1, rows // knobs.n) * knobs.prompt
    # float32 logits, then probabilities and their float64 sums
    choosing = 4 + (c if c < 4 else 0) + 20 + (12 if knobs.top_p else 0)
    logits = rows * shape.vocab * choosing
    states = prefilled * (shape.layers + 1) * shape.hidden * c
    layer = rows * (shape.layers + 1) * shape.hidden * c + _widened(shape, knobs)
    prefill = prefilled * (
        _layer_forward(shape, knobs) + (shape.layers + 1) * shape.hidden * c
    ) + _widened(shape, knobs)
    return [
        {"activations": prefill, "cache": _cache(shape, prefilled, 1, knobs)},
        {
            "activations": states + layer,
            "logits": logits,
            "cache": _cache(shape, rows, knobs.prompt + 1, knobs),
        },
        {"activations": layer, "logits": logits, "cache": _cache(shape, rows, knobs.length, knobs)},
    ]


def _vllm(shape: Shape, knobs: Knobs) -> dict[str, float]:
    """The least that vLLM works with: the model unquantised, and keys and values of a batch.

    It takes nine tenths of what is free.
    """
    return {
        "weights": weights(shape, "none", knobs.compute),
        "cache": knobs.sampling_rows * knobs.length * shape.keys * knobs.compute * 2 * shape.layers,
    }


def _scoring(shape: Shape, knobs: Knobs) -> dict[str, float]:
    """Teacher-forced log-probabilities: hidden states of all layers, logits of the completion and
    their log-softmax.
    """
    rows, c = SCORING_ROWS, knobs.compute
    tokens = rows * knobs.length
    return {
        "activations": tokens * (shape.layers + 1) * shape.hidden * c + _widened(shape, knobs),
        "logits": rows * (knobs.completion + 1) * shape.vocab * (c + 8),
    }


def _reward(shape: Shape, knobs: Knobs) -> dict[str, float]:
    trained = adapter(shape, knobs.reward_rank)
    return {
        "activations": _graph(shape, knobs, knobs.reward_rows, knobs.reward_dropout),
        "gradients": 4 * trained,
        "optimiser": trained * _optimiser(knobs, 4),
    }


def _sft(shape: Shape, knobs: Knobs) -> tuple[dict[str, int], dict[str, float]]:
    """Step 0, on a backbone that holds no other adapter: what lies there, and what training
    takes.
    """
    return {"weights": weights(shape, knobs.quantisation, knobs.compute)}, _imitated(
        shape, knobs, knobs.sft_rank, knobs.sft_rows, knobs.sft_dropout
    )


def _merge(shape: Shape, knobs: Knobs) -> tuple[dict[str, int], dict[str, float]]:
    """The adapter of step 0 goes into an unquantised copy, matrix by matrix: the update, widened
    to float32, and the matrix that it is added to.
    """
    held = {
        "weights": weights(shape, "none", knobs.compute),
        "adapters": 4 * adapter(shape, knobs.sft_rank),
    }
    return held, {"activations": shape.largest * (4 + 2 * knobs.compute)}


def _policy(shape: Shape, knobs: Knobs) -> dict[str, float]:
    """TRL trains without dropout, beside a frozen copy of the adapter in float32 (the resident
    one here).
    """
    return _imitated(shape, knobs, knobs.policy_rank, knobs.policy_rows, False)


def _imitated(shape: Shape, knobs: Knobs, rank: int, rows: int, dropout: bool) -> dict[str, float]:
    """A training on the log-probabilities of given answers."""
    trained, width = adapter(shape, rank), _width(knobs)
    tokens = rows * (knobs.completion if knobs.cuda else knobs.length)
    tile = min(tokens, TILE_TOKENS) * min(shape.vocab, TILE_VOCAB)
    logits = tile * knobs.compute if knobs.cuda else tile * knobs.compute * TORCH_TILES
    return {
        "adapters": width * trained,
        "gradients": width * trained,
        "optimiser": trained * _optimiser(knobs, width),
        "activations": _graph(shape, knobs, rows, dropout),
        "logits": logits + 4 * tokens * shape.hidden,
    }


def _width(knobs: Knobs) -> int:
    """Bytes of a trained number: on a quantised backbone TRL makes adapters of language models
    bfloat16, but with loss scaling they are float32.
    """
    return 4 if knobs.quantisation == "none" or knobs.scaled else 2


def _online(shape: Shape, knobs: Knobs) -> dict[str, float]:
    """`generate` inside TRL's online trainers, between optimiser steps."""
    trained, width, c = adapter(shape, knobs.policy_rank), _width(knobs), knobs.compute
    return {
        "adapters": width * trained,
        "optimiser": trained * _optimiser(knobs, width),
        "cache": _cache(shape, knobs.online_rows, knobs.length, knobs),
        "logits": knobs.online_rows * shape.vocab * (c + 16),
        "activations": knobs.online_rows * knobs.prompt * _layer_forward(shape, knobs),
    }


def _graph(shape: Shape, knobs: Knobs, rows: int, dropout: bool) -> float:
    """Activations where the backward pass begins; with checkpointing, each layer's input and one
    layer in full.
    """
    tokens, kept = rows * knobs.length, saved(shape, knobs, dropout)
    # final norm, embeddings; gradients on their way through one layer
    ends = 2 * shape.hidden * 4 + 2 * shape.intermediate * knobs.compute
    every = (
        shape.layers * shape.hidden * knobs.compute + kept
        if knobs.checkpointing
        else shape.layers * kept
    )
    return tokens * (every + ends) + _widened(shape, knobs)


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
