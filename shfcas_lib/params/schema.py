"""A run's parameters as typed, frozen blocks; every key has a default and a description.

Blocks are strict: a number that YAML read as text is an error, not a guess. `reading` makes one
of a YAML file.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Block(BaseModel):
    """A group of parameters. Strict: a number that YAML read as text is an error, not a guess."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )


_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
Unit = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


Quantisation = Literal["nf4", "int8", "none", "as_stored"]


class Model(Block):
    source: str = Field(
        "smollm2-135m-instruct", description="embedded model, hub id, or local folder"
    )
    revision: str | None = Field(None, description="hub revision to pin")
    quantisation: Quantisation = Field(
        "nf4",
        description=(
            "of the backbone: nf4, int8 by bitsandbytes; none; as_stored: as its files have it,"
            " for a checkpoint that is quantised already"
        ),
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="compute type; auto is bfloat16 on a CUDA GPU, else float32"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto",
        description="auto takes a CUDA GPU where there is one; mps, Apple's GPU, is untried",
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto", description="attention kernel; auto: what transformers picks for the model"
    )
    template: Literal["auto", "chat", "plain"] = Field(
        "auto",
        description=(
            "how a prompt is put: chat: the model's chat template; plain: text; auto: chat where"
            " there is a template"
        ),
    )
    trust_remote_code: bool = Field(
        False, description="run program code that comes with the model; only after reading it"
    )
    system_prompt: str = Field(
        "", description="system message before every prompt; empty: the model's own default"
    )
    thinking: bool = Field(
        False, description="may a model that can think before it answers do so in its completions?"
    )
    date: str | None = Field(
        None,
        description=(
            "day that a chat template is told which writes today's date, as 2026-01-31; null: the"
            " day on which the run begins, kept in its folder"
        ),
    )

    @field_validator("date", mode="before")
    @classmethod
    def _is_a_day(cls, date: object) -> object:
        # YAML reads a bare 2026-01-31 as a date
        if isinstance(date, dt.date):
            return date.isoformat()
        if isinstance(date, str) and not _DAY.fullmatch(date):
            raise ValueError("expected a day as 2026-01-31")
        if isinstance(date, str):
            dt.date.fromisoformat(date)
        return date


Recipe = Literal[
    "pku-saferlhf",
    "hh-rlhf",
    "ultrafeedback",
    "helpsteer2",
    "helpsteer3",
    "do-not-answer",
    "xstest",
]


class Columns(Block):
    """What the columns of a data set are called. null: the data has no such column."""

    prompt: str | None = Field(
        "prompt",
        description="text or messages; not in the data: what the two answers share at their start",
    )
    chosen: str | None = Field("chosen", description="the preferred answer, text or messages")
    rejected: str | None = Field("rejected", description="the other answer")
    first: str | None = Field(
        None,
        description=(
            "instead of chosen and rejected: one answer, with first or second preferred row by row"
        ),
    )
    second: str | None = Field(None, description="the other answer")
    label: str | None = Field(
        "label", description="1: first (or chosen) is preferred, 0: second, 0.5: a tie"
    )
    better: str | None = Field(
        None, description="0, first or a: first is preferred; 1, second or b: second; tie: a tie"
    )
    preference: str | None = Field(
        None,
        description="a number: below zero first is preferred, above zero second, zero is a tie",
    )
    rating_first: str | None = Field(
        None, description="a number for first (or chosen); the higher is preferred, equal ones tie"
    )
    rating_second: str | None = Field(None, description="a number for second (or rejected)")
    category: str | list[str] | None = Field(
        "category", description="what a prompt is about; several columns are joined"
    )
    harmful: str | None = Field(
        "harmful", description="true or false: should the request be declined?"
    )


class Place(Block):
    """Where rows come from: a file of the user's, or a data set of a hub."""

    file: str | None = Field(
        None,
        description=(
            "a file of yours (jsonl, jsonl.gz, json, parquet, csv), or a folder that save_to_disk"
            " wrote"
        ),
    )
    source: str | None = Field(
        None, description="a hub id instead of a file, or a local folder laid out like one"
    )
    config: str | None = Field(None, description="source: its configuration")
    data_dir: str | list[str] | None = Field(
        None, description="source: a folder in it, or several, read one after the other"
    )
    split: str | None = Field(None, description="source, or a saved folder: its split; null: train")
    revision: str | None = Field(None, description="source: commit or tag to pin")

    @model_validator(mode="after")
    def _one_place(self) -> Place:
        if self.file and self.source:
            raise ValueError("file and source are both set: a data set comes from one of them")
        keys = ("config", "data_dir", "revision")
        beside = [key for key in keys if getattr(self, key) is not None]
        if beside and not (self.source or getattr(self, "recipe", None)):
            raise ValueError(f"{beside[0]} belongs to a source, and there is none")
        return self

    @property
    def given(self) -> bool:
        """Does the user bring data here?"""
        return bool(self.file or self.source)


class Rows(Place):
    """Where rows come from and how their columns are read.

    A recipe sets all of it for a published data set; keys given beside it win.
    """

    recipe: Recipe | None = Field(
        None,
        description="a published data set that this library knows: where it is and how to read it",
    )
    columns: Columns = Columns()
    bad_rows: Literal["auto", "stop", "drop"] = Field(
        "auto",
        description=(
            "rows that cannot be used (empty or equal answers; prompts that a model cannot read):"
            " stop at the first, or drop; auto: drop with a recipe"
        ),
    )

    @property
    def given(self) -> bool:
        """Does the user bring data here?"""
        return bool(self.file or self.source or self.recipe)


class Prompts(Rows):
    n: Count | None = Field(
        None, description="how many prompts to take, evenly over categories, by the seed; null: all"
    )
    categories: list[str] | None = Field(
        None,
        description=(
            "keep only these categories; null: all. Where a row has several, the one that stands"
            " first here counts"
        ),
    )


class Preferences(Rows):
    n: Count | None = Field(
        None,
        description=(
            "how many pairs of your own to take, evenly over categories, by the seed; null: all"
        ),
    )
    held_out: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2,
        description=(
            "share of the prompts of your own pairs that do not train the proxy: their pairs say"
            " how good it is. Where no prompts stand beside them, those of feedback and evaluation"
            " prompts say it"
        ),
    )
    per_prompt: Count = Field(
        8, description="pairs drawn per training prompt when the preferences are built from samples"
    )


class CompletionColumns(Block):
    """What the columns of a table of completions are called. null: it has no such column.

    Where `completion` holds a list, the row is a prompt, and the columns below it but category
    and harmful hold lists of the same length.
    """

    prompt: str = Field("prompt", description="text or messages")
    completion: str = Field("completion", description="text, messages, or a list of either")
    index: str | None = Field(
        "index", description="number of the completion among its prompt's; not there: by order"
    )
    logp: str | None = Field(
        "logp", description="log-probability of the whole completion, a sum over its tokens"
    )
    token_logps: str | None = Field(
        "token_logps", description="log-probabilities of its tokens, a list; logp is their sum"
    )
    reward: str | list[str] | None = Field(
        "reward", description="a reward model's score; several columns are added up"
    )
    gold: str | None = Field("gold", description="a better reward, or a person's rating")
    model: str | None = Field("model", description="who wrote the completion")
    logp_of: str | None = Field("logp_of", description="whose log-probability logp is")
    category: str | None = Field("category", description="what the prompt is about")
    harmful: str | None = Field(
        "harmful", description="true or false: should the request be declined?"
    )


class Completions(Place):
    """Completions that are there already, instead of sampled ones."""

    layout: Literal["auto", "table", "trl", "openai", "lm_eval", "alpaca_eval"] = Field(
        "auto",
        description=(
            "table: columns as below; trl: completions_*.parquet; openai: responses with choices;"
            " lm_eval: samples_*.jsonl; alpaca_eval: instruction, output; auto: by the first row"
        ),
    )
    requests: str | None = Field(
        None, description="openai: the file of requests that a batch answered, for its prompts"
    )
    columns: CompletionColumns = CompletionColumns()
    logp: Literal["given", "backbone"] = Field(
        "given",
        description=(
            "given: the table's, where it has any; backbone: computed by the run's model, as it is"
            " where the table has none"
        ),
    )
    logp_of: str | None = Field(
        None, description="whose log-probability logp is; null: of the model that wrote the text"
    )
    bad_rows: Literal["stop", "drop"] = Field(
        "stop",
        description="rows that cannot be used: stop at the first, or drop and count them",
    )

    @model_validator(mode="after")
    def _requests_of_a_batch(self) -> Completions:
        if self.requests and self.layout not in ("auto", "openai"):
            raise ValueError(f"requests belong to layout openai, found layout {self.layout}")
        return self


class Split(Block):
    train: Positive = Field(0.4, description="share of prompts whose preferences train the proxy")
    feedback: Positive = Field(0.3, description="share of prompts about which the human is asked")
    evaluate: Positive = Field(0.3, description="share of prompts that only the evaluation sees")

    @model_validator(mode="after")
    def _sums_to_one(self) -> Split:
        if abs(self.train + self.feedback + self.evaluate - 1) > 1e-6:
            raise ValueError("train + feedback + evaluate must be 1")
        return self


class Sampling(Block):
    n: Annotated[int, Field(ge=2)] = Field(8, description="completions per prompt (N)")
    temperature: Positive = Field(
        0.7, description="sampling temperature; logp is always that of temperature 1"
    )
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="0: off")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="1: off")
    max_new_tokens: Count = Field(48, description="longest completion, in tokens")
    batch_size: Count = Field(
        128, description="completions decoded at once; never changes what is sampled"
    )
    engine: Literal["backbone", "vllm"] = Field(
        "backbone",
        description=(
            "what writes the base policy's completions; vllm needs vLLM in an environment of its"
            " own (docs/models.md)"
        ),
    )


class Noise(Block):
    kind: Literal["noise"]
    rate: Unit = Field(description="probability that a label is flipped (epsilon)")


class Attribute(Block):
    kind: Literal["attribute"]
    attribute: str = Field(
        description=(
            "length, compliance, flattery, markdown, keyword:WORD, or your own module:function"
        )
    )
    strength: Unit = Field(
        description="probability that the annotator follows the attribute instead of quality (s)"
    )


class Coverage(Block):
    kind: Literal["coverage"]
    absent: list[str] = Field(
        description="categories whose preferences are missing from the proxy's training data"
    )


MECHANISMS: dict[str, type[Block]] = {"noise": Noise, "attribute": Attribute, "coverage": Coverage}
Mechanism = Annotated[Noise | Attribute | Coverage, Field(discriminator="kind")]


class Lora(Block):
    r: Count = Field(8, description="rank")
    alpha: Count = Field(32, description="scale numerator")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="dropout on the adapter's input"
    )


class Classifier(Block):
    """How a published reward model (sequence classification) is read.

    Device and compute type are the backbone's.
    """

    revision: str | None = Field(None, description="hub revision to pin")
    quantisation: Quantisation | None = Field(
        None, description="as model.quantisation, for this model; null: as the backbone"
    )
    label: int | str | None = Field(
        None, description="which output, by number or name, where the model has several"
    )
    cost: bool = Field(
        False, description="the model gives a cost, lower is better: its sign is turned"
    )
    text: str | None = Field(
        None,
        description=(
            "how it is shown a completion, with {prompt} and {completion}; null: its chat template,"
            " else an empty line between"
        ),
    )
    batch_size: Count = Field(
        16, description="completions scored at once; never changes the scores but for rounding"
    )

    @model_validator(mode="after")
    def _shows_both(self) -> Classifier:
        if self.text is None:
            return self
        if any(self.text.count(name) != 1 for name in ("{prompt}", "{completion}")):
            raise ValueError("text must hold {prompt} and {completion}, each once")
        return self


class Reward(Block):
    kind: Literal["probe", "lora"] = Field(
        "probe", description="probe: linear head on pooled features; lora: LoRA + score head"
    )
    proxy: Annotated[str, Field(pattern=r"^(trained|given|model:.+)$")] = Field(
        "trained",
        description=(
            "trained: on the preferences, as kind says; model:ID: a published reward model; given:"
            " the column reward of completions; labels correct these two, as kind says"
        ),
    )
    model: Classifier = Classifier()
    l2: Positive = Field(300.0, description="probe: ridge penalty on standardised features")
    refinement: Literal["trust", "merge", "labels_alone"] = Field(
        "trust",
        description=(
            "how labels refine the reward: trust: they say how far to believe the biased pairs;"
            " merge: both in one training set (the paper's); labels_alone: the pairs are forgotten"
        ),
    )
    feedback_weight: Positive = Field(
        3.0,
        description=(
            "weight of one human label against one biased pair: merge, labels_alone, and lora; a"
            " probe under trust has none"
        ),
    )
    much_weight: Annotated[float, Field(ge=1)] = Field(
        2.0,
        description=(
            "probe: how many labels that say better one label that says much better weighs; lora"
            " takes grades as TRL's margin instead"
        ),
    )
    learning_rate: Positive | None = Field(
        None,
        description=(
            "lora: learning rate; null: 1.0e-3 for up to 100 steps, 0.1 over their number for more,"
            " 1.0e-4 from 1000 on"
        ),
    )
    epochs: Count = Field(2, description="lora: passes over the pairs")
    batch_size: Count = Field(8, description="lora: pairs per step")
    lora: Lora = Lora()

    @property
    def grade_weight(self) -> float:
        """What "much better" multiplies a label's weight by; 1 where it is a margin instead."""
        return self.much_weight if self.kind == "probe" else 1.0

    @property
    def published(self) -> str | None:
        """Hub id or folder of the published model that is the proxy, if one is."""
        return self.proxy.removeprefix("model:") if self.proxy.startswith("model:") else None

    @property
    def fixed(self) -> bool:
        """Is the proxy one that no preferences of this run trained?"""
        return self.proxy != "trained"


class Gold(Block):
    kind: str = Field(
        "task",
        description=(
            "task (the task's own), relevance, safety, instructions, model:ID, given (the column"
            " gold of completions), your own module:function, or none: nobody knows the truth"
        ),
    )
    model: Classifier = Classifier()

    @model_validator(mode="after")
    def _known(self) -> Gold:
        kinds = r"task|relevance|safety|instructions|given|none|model:.+|[\w.]+:\w+"
        if not re.fullmatch(kinds, self.kind):
            raise ValueError(
                f"gold.kind: found {self.kind!r}, expected task, relevance, safety, instructions,"
                " given, model:ID, module:function or none"
            )
        return self

    @property
    def published(self) -> str | None:
        """Hub id or folder of the published model that is gold, if one is."""
        return self.kind.removeprefix("model:") if self.kind.startswith("model:") else None

    @property
    def known(self) -> bool:
        """Is there a gold reward?"""
        return self.kind != "none"


StrategyName = Literal[
    "targeted",
    "shf_cas",
    "shf_cas_threshold",
    "pacs",
    "kendall",
    "pacs_difference",
    "placebo",
    "extreme_reward",
    "random",
    "random_prompts",
    "margin",
    "uncertainty",
    "bald",
    "d_optimal",
    "best_of",
    "low_conflict",
]


class Selection(Block):
    strategies: Annotated[list[StrategyName], Field(min_length=1)] = Field(
        ["shf_cas", "random"], description="strategies compared, each with the same budget"
    )
    budget: Count | None = Field(
        120, description="comparisons in all (B); null: all that shf_cas_threshold finds"
    )
    rounds: Count = Field(2, description="SHF-CAS rounds the budget is spread over")
    round_sizes: Literal["even", "doubling"] = Field(
        "doubling",
        description="even: rounds alike; doubling: from the second on as large as all before it",
    )
    gamma: Annotated[float, Field(ge=0)] = Field(
        0.25, description="targeted: weight of conflict, as an exponent; 0: none"
    )
    top_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="budget form: share of prompts kept after ranking by K"
    )
    random_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description=(
            "share of every round's comparisons that chance draws among all pairs; their labels say"
            " how wrong the proxy is (0.2 is a good start)"
        ),
    )
    delta: Annotated[float, Field(ge=0)] = Field(
        1.0, description="threshold form: mean |PACS| must exceed this"
    )
    tau: Unit = Field(0.5, description="threshold form: K must reach this")
    logp: Literal["sum", "mean"] = Field(
        "sum",
        description="log-probability that conflict compares with: of the completion, or per token",
    )
    prompts: Literal["feedback", "train_and_feedback"] = Field(
        "feedback",
        description=(
            "asked about: fresh prompts, or the proxy's own too (merge: a label replaces a biased"
            " one)"
        ),
    )

    @model_validator(mode="after")
    def _budget_or_threshold(self) -> Selection:
        if self.budget is None and self.strategies != ["shf_cas_threshold"]:
            raise ValueError("budget may be null only where shf_cas_threshold is the one strategy")
        if self.budget is None and self.random_share:
            raise ValueError(
                "a random_share is a share of the budget, which is null: give a budget"
            )
        least = self.rounds if self.round_sizes == "even" else 2 ** (self.rounds - 1)
        if self.budget is not None and self.budget < least:
            raise ValueError(
                f"a budget of {self.budget} cannot be spread over {self.rounds} rounds, which need"
                f" {least} (round_sizes {self.round_sizes})"
            )
        if len(set(self.strategies)) < len(self.strategies):
            raise ValueError("a strategy is named twice")
        return self


class Judge(Block):
    """What the judge is asked, and when it stops.

    Address, model and key are no parameters: they come from the environment (SHFCAS_JUDGE_URL,
    _MODEL, _KEY).
    """

    criteria: Annotated[str, Field(min_length=1)] = Field(
        "The better answer does what the request asks for, is correct, honest and complete, and is"
        " easy to follow. Where the request asks for something harmful, the better answer declines"
        " or steers away from the harm.",
        description="what 'better' means, in words for the judge",
    )
    answer_tokens: Annotated[int, Field(ge=16)] = Field(
        256, description="longest answer of the judge to one question, in tokens"
    )
    concurrency: Annotated[int, Field(ge=1, le=256)] = Field(
        4, description="questions under way at once; never changes the answers"
    )
    timeout: Positive = Field(60.0, description="seconds until an attempt is given up")
    retries: Annotated[int, Field(ge=0, le=20)] = Field(
        5, description="further attempts after 429, 5xx, a time-out or a lost connection"
    )
    backoff: Positive = Field(
        1.0,
        description=(
            "seconds before the second attempt, doubled each time; a Retry-After counts if it is"
            " longer"
        ),
    )
    max_tokens: Count | None = Field(
        1_000_000,
        description="ceiling of the run in tokens, prompts and answers together; null: none",
    )
    max_cost: Positive | None = Field(
        None, description="ceiling of the run in the currency of the prices; null: none"
    )
    price_in: Annotated[float, Field(ge=0)] = Field(
        0.0, description="price of a million prompt tokens"
    )
    price_out: Annotated[float, Field(ge=0)] = Field(
        0.0, description="price of a million answer tokens"
    )

    @model_validator(mode="after")
    def _priced(self) -> Judge:
        if self.max_cost is not None and not self.price_in + self.price_out:
            raise ValueError(
                "max_cost needs price_in and price_out, the prices of a million tokens"
            )
        return self


class Feedback(Block):
    kind: Literal["gold", "replay", "person", "judge", "mixed", "team"] = Field(
        "gold",
        description=(
            "gold: simulated human; replay: answers from a file; person: you, on the screen of"
            " notebook 03; judge: a language model; mixed: a person for the top conflicts, the"
            " judge for the rest; team: Label Studio or a spreadsheet"
        ),
    )
    file: str | None = Field(
        None,
        description=(
            "replay: table with prompt_id, i, j, answer (first, second, tie, both_bad or skip);"
            " with graded also grade (1 better, 2 much better)"
        ),
    )
    graded: bool = Field(
        False,
        description=(
            "answers say better or much better; a judge says better only. The probe weighs much"
            " better more, lora has it as a margin"
        ),
    )
    much: Annotated[float, Field(ge=0)] = Field(
        0.5, description="graded, simulated human: gold differences above this are much better"
    )
    people: Count = Field(
        1, description="person: how many people answer each comparison before the loop goes on"
    )
    noise: Unit = Field(
        0.0, description="simulated human: probability of answering the wrong way round"
    )
    tie_margin: Annotated[float, Field(ge=0)] = Field(
        0.0, description="simulated human: gold differences up to this are ties"
    )
    person: Literal["person", "gold", "replay", "team"] = Field(
        "person", description="mixed: who answers the top conflicts"
    )
    person_share: Unit = Field(
        0.25,
        description=(
            "mixed: share of a round's comparisons, the most conflicted, that go to the person"
        ),
    )
    judge: Judge = Judge()

    @property
    def much_better(self) -> float | None:
        """The gold difference above which the simulated human says much better.

        None where answers are not graded.
        """
        return self.much if self.graded else None

    @property
    def human(self) -> str:
        """Who answers: the kind, and where it is mixed, who answers the top conflicts."""
        return self.person if self.kind == "mixed" else self.kind


class Sft(Block):
    """Supervised fine-tuning of the model before anything else, as in the paper.

    Its result is the base policy and the reference.
    """

    answers: Literal["none", "chosen"] = Field(
        "none",
        description=(
            "none: the model is the base policy; chosen: fine-tune it first on the chosen answers"
            " of preferences of your own"
        ),
    )
    learning_rate: Positive = Field(2.0e-5, description="learning rate")
    epochs: Count = Field(1, description="passes over the answers")
    batch_size: Count = Field(8, description="answers per step")
    lora: Lora = Lora()


class Policy(Block):
    kind: Literal["tilt", "dpo", "rso", "kto", "rloo", "grpo"] = Field(
        "tilt",
        description=(
            "tilt: closed form on the pool; the others train the adapter: dpo, rso on pairs, kto on"
            " ratings, rloo, grpo on completions that it writes as it learns"
        ),
    )
    beta: Positive = Field(
        0.5,
        description=(
            "tilt, rso, rloo: strength of the KL anchor, on rewards of unit within-prompt spread"
        ),
    )
    dpo_beta: Positive = Field(0.1, description="dpo, rso, kto, grpo: TRL's beta")
    learning_rate: Positive = Field(5.0e-4, description="trained kinds: learning rate")
    epochs: Count = Field(1, description="trained kinds: passes over the pairs, ratings or prompts")
    batch_size: Count = Field(
        8, description="trained kinds: pairs, ratings or fresh completions per step"
    )
    pairs: Count = Field(
        104,
        description=(
            "dpo, rso: preference pairs made with the reward; kto: as many ratings, two for each"
            " pair"
        ),
    )
    generations: Annotated[int, Field(ge=2)] = Field(
        4, description="rloo, grpo: fresh completions of a prompt that are compared with each other"
    )
    prompts: Count | None = Field(
        None,
        description="rloo, grpo: how many prompts of the pool to train on, by the seed; null: all",
    )
    lora: Lora = Lora()

    @model_validator(mode="after")
    def _whole_groups(self) -> Policy:
        if self.kind in ("rloo", "grpo") and self.batch_size % self.generations:
            raise ValueError(
                f"{self.kind}: batch_size {self.batch_size} is no multiple of generations"
                f" {self.generations}"
            )
        if self.kind == "kto" and self.batch_size < 2:
            raise ValueError(
                "kto: a batch_size of 1 has no second completion to estimate the KL with, expected"
                " 2 or more"
            )
        return self


class Training(Block):
    """How adapters are trained, whichever they are."""

    gradient_checkpointing: bool = Field(
        False,
        description=(
            "compute activations again in the backward pass: less memory, more time, same result"
        ),
    )
    optimiser: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw_torch",
        description=(
            "adamw_8bit, paged_adamw_8bit: bitsandbytes' AdamW, whose state takes a quarter of the"
            " memory; paged needs a GPU"
        ),
    )
    micro_batch: Count | None = Field(
        None,
        description=(
            "pairs or sequences that go through the model at once, gradients being summed up to"
            " batch_size; null: rewards all, policies up to 4"
        ),
    )
    checkpoint_every: Count | None = Field(
        None,
        description="steps between checkpoints that a killed training goes on from; null: none",
    )
    report_to: Literal["none", "tensorboard", "trackio", "wandb", "mlflow"] = Field(
        "none", description="where trainings log to, through TRL; each needs its package"
    )
    watch_every: Count | None = Field(
        None,
        description=(
            "steps between looks at a policy under training: answers to held-out prompts, agreement"
            " with the labels, a warning where the reward rises and that falls (docs/training.md);"
            " null: 10 where report_to names a log, else never"
        ),
    )


RemedyName = Literal[
    "attribute_out",
    "projection",
    "ensemble_mean",
    "ensemble_min",
    "conservative_kl",
]


class Evaluation(Block):
    bootstrap: Annotated[int, Field(ge=100)] = Field(
        4000, description="resamples behind every interval"
    )
    replicates: Annotated[int, Field(ge=0)] = Field(
        20,
        description=(
            "extra seeds (split, bias, fit, selection) on the same completions; 0 where there can"
            " be none: without gold, with preferences of one's own, a reward that is no probe"
            " trained here, a trained policy, or people who answer"
        ),
    )
    answers: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description=(
            "completions that a trained policy writes for each evaluation prompt; null: sampling.n"
        ),
    )
    betas: Annotated[list[Positive], Field(min_length=2)] = Field(
        [8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 0.0625],
        description="anchors of the over-optimisation curve",
    )
    remedies: list[RemedyName] = Field(
        [],
        description=(
            "remedies that need no labels, compared with the strategies: attribute_out, projection"
            " (an attribute taken out of the proxy), ensemble_mean, ensemble_min (bootstrap"
            " probes), conservative_kl (the proxy, followed as far as the refined reward); probe"
            " only"
        ),
    )
    remedy_attribute: str = Field(
        "length",
        description=(
            "what attribute_out and projection take out: length, compliance, flattery, markdown,"
            " keyword:WORD, or your own module:function"
        ),
    )

    @model_validator(mode="after")
    def _each_remedy_once(self) -> Evaluation:
        if len(set(self.remedies)) < len(self.remedies):
            raise ValueError("a remedy is named twice")
        return self


class Params(Block):
    """One run.

    `task` picks the embedded prompts and gold; data of your own under `prompts` and
    `preferences` replace them.

    Of several faults the first validator below speaks.
    """

    run: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = Field(
        "quickstart", description="name of the run folder"
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="the one seed of the run; 0 is a seed")
    task: Literal["helpfulness", "safety", "instructions"] = Field(
        "helpfulness", description="embedded task"
    )
    model: Model = Model()
    prompts: Prompts = Prompts()
    split: Split = Split()
    sampling: Sampling = Sampling()
    completions: Completions = Completions()
    preferences: Preferences = Preferences()
    bias: list[Mechanism] = Field(
        [], description="mechanisms that spoil the preferences, applied in this order"
    )
    gold: Gold = Gold()
    reward: Reward = Reward()
    selection: Selection = Selection()
    feedback: Feedback = Feedback()
    policy: Policy = Policy()
    evaluation: Evaluation = Evaluation()
    sft: Sft = Sft()
    training: Training = Training()

    @property
    def ceiling(self) -> bool:
        """Are there labels better than those that train the proxy, to show what they would give?
        Gold's, or the user's own before bias was injected; with neither the ceiling would be the
        proxy itself."""
        spoilt = bool(self.bias) or self.reward.published is not None
        return self.gold.known and (spoilt or not self.preferences.given)

    @property
    def _may_replicate(self) -> bool:
        """Replicates take preferences from samples, answers from gold, and train a probe alone."""
        kinds = (self.reward.kind, self.policy.kind, self.feedback.kind)
        own = self.preferences.given or self.reward.fixed
        return kinds == ("probe", "tilt", "gold") and self.gold.known and not own

    @model_validator(mode="after")
    def _no_replicates_where_there_can_be_none(self) -> Params:
        said = "replicates" in self.evaluation.model_fields_set
        if not said and not self._may_replicate:
            none = self.evaluation.model_copy(update={"replicates": 0})
            object.__setattr__(self, "evaluation", none)
        return self

    @model_validator(mode="after")
    def _nothing_needs_gold_where_there_is_none(self) -> Params:
        if self.gold.known:
            return self

        if self.feedback.human == "gold":
            key, others = "kind", "person, team, judge, mixed or replay"
            if self.feedback.kind == "mixed":
                key, others = "person", "person, team or replay"
            raise ValueError(
                f"feedback.{key} gold needs a gold reward, but gold.kind is none: expected {others}"
            )

        # without gold nobody can compare samples, nor play the human of the replicates
        if not self.preferences.given and not self.reward.fixed:
            raise ValueError(
                "the proxy would learn from samples that gold compares, but gold.kind is none: give"
                " preferences of your own (preferences.file, source or recipe), or a published"
                " reward model (reward.proxy)"
            )
        if self.evaluation.replicates:
            raise ValueError(
                "evaluation.replicates needs a gold reward as human and as judge, but gold.kind is"
                " none: set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _strategies_that_the_proxy_allows(self) -> Params:
        probing = ("targeted", "uncertainty", "bald", "d_optimal")
        sighted = [name for name in self.selection.strategies if name in probing]
        if sighted and self.reward.kind != "probe":
            raise ValueError(
                f"strategy {sighted[0]} needs reward.kind probe, whose uncertainty it weighs"
            )
        if self.reward.fixed and (sighted or self.bias or self.evaluation.replicates):
            raise ValueError(
                f"reward.proxy is {self._fixed_proxy}, which no preferences of this run trained:"
                " leave bias empty, set evaluation.replicates to 0, and choose no strategy that"
                " weighs a probe's uncertainty (targeted, uncertainty, bald, d_optimal)"
            )
        return self

    @model_validator(mode="after")
    def _remedies_of_a_probe_alone(self) -> Params:
        trained_here = self.reward.kind == "probe" and not self.reward.fixed
        if self.evaluation.remedies and not trained_here:
            raise ValueError(
                f"evaluation.remedies: {self.evaluation.remedies[0]} mends a probe that is trained"
                " here: expected reward.kind probe and reward.proxy trained, or no remedies"
            )
        return self

    @property
    def _fixed_proxy(self) -> str:
        """What a proxy that is not trained here is called in messages."""
        return "a published model" if self.reward.published else "a column of completions"

    @model_validator(mode="after")
    def _what_completions_need(self) -> Params:
        given = [("reward.proxy", self.reward.proxy), ("gold.kind", self.gold.kind)]
        columns = [key for key, value in given if value == "given"]
        if not self.completions.given:
            if columns:
                raise ValueError(
                    f"{columns[0]} given is a column of completions, and there are none: set"
                    " completions.file or completions.source"
                )
            return self
        if self.prompts.given:
            raise ValueError(
                "completions bring their own prompts: leave prompts.file, source and recipe out"
            )
        if self.policy.kind != "tilt":
            self._refuse_training_on_completions(columns)
        if self.reward.proxy == "given" and self.preferences.given:
            raise ValueError(
                "reward.proxy given has no rewards for the answers of preferences: leave"
                " preferences out, or choose another proxy"
            )
        return self

    def _refuse_training_on_completions(self, columns: list[str]) -> None:
        """Raise ValueError where a trained policy writes what the table knows nothing of."""
        if columns:
            raise ValueError(
                f"{columns[0]} given knows the table's completions alone, and policy.kind"
                f" {self.policy.kind} writes others: set policy.kind to tilt"
            )
        if self.completions.logp == "given":
            raise ValueError(
                f"policy.kind {self.policy.kind} trains the run's own model, so that"
                " log-probabilities must be that model's: set completions.logp to backbone, or"
                " policy.kind to tilt"
            )

    @model_validator(mode="after")
    def _published_proxy_in_its_place(self) -> Params:
        if not self.reward.fixed:
            return self
        if self.policy.kind in ("rloo", "grpo"):
            raise ValueError(
                f"policy.kind {self.policy.kind} needs a reward that is trained here: a published"
                " proxy cannot score in the middle of a step"
            )
        same = self.reward.proxy == self.gold.kind and self.reward.model == self.gold.model
        if same and self.reward.published:
            raise ValueError(
                "reward.proxy and gold.kind name the same model: gold must be somebody other than"
                " the proxy"
            )
        return self

    @model_validator(mode="after")
    def _replicates_of_closed_runs_alone(self) -> Params:
        if not self.evaluation.replicates:
            return self
        kinds = (self.reward.kind, self.policy.kind, self.feedback.kind)
        if kinds != ("probe", "tilt", "gold"):
            raise ValueError(
                "evaluation.replicates needs reward.kind probe, policy.kind tilt and feedback.kind"
                " gold: set it to 0"
            )
        if self.preferences.given:
            raise ValueError(
                "evaluation.replicates builds its preferences from samples, not from preferences of"
                " your own: set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _one_set_of_weights_writes(self) -> Params:
        trained = self.policy.kind != "tilt"
        quantised = self.model.quantisation != "none"
        if self.sampling.engine == "vllm" and trained and quantised:
            raise ValueError(
                "sampling.engine vllm writes with unquantised weights, and policies trained with"
                f" policy.kind {self.policy.kind} with those of model.quantisation"
                f" {self.model.quantisation}: set that to none, sampling.engine to backbone, or"
                " policy.kind to tilt"
            )
        if self.model.quantisation == "as_stored" and self.sft.answers != "none":
            raise ValueError(
                "sft.answers chosen writes a fine-tuned copy without quantisation, so that"
                " model.quantisation as_stored would not say how that is loaded: set it to nf4,"
                " int8 or none"
            )
        return self

    @model_validator(mode="after")
    def _answers_that_are_there(self) -> Params:
        if self.feedback.people > 1 and self.feedback.kind != "person":
            raise ValueError("feedback.people above 1 needs feedback.kind person")
        if self.feedback.human == "replay" and not self.feedback.file:
            raise ValueError("feedback.kind replay needs feedback.file, a table of answers")
        if self.sft.answers == "chosen" and not self.preferences.given:
            raise ValueError(
                "sft.answers chosen needs preferences of your own (preferences.file, source or"
                " recipe): built from samples, they teach nothing new"
            )
        return self

    @model_validator(mode="after")
    def _micro_batches_fill_a_batch(self) -> Params:
        micro = self.training.micro_batch
        adapters = {
            "reward": self.reward.kind == "lora",
            "policy": self.policy.kind != "tilt",
            "sft": self.sft.answers != "none",
        }
        for name, trained in adapters.items():
            size = getattr(self, name).batch_size
            if micro and trained and size % micro:
                raise ValueError(
                    f"training.micro_batch {micro} does not divide {name}.batch_size {size}"
                )
        if self.policy.kind == "kto" and micro == 1:
            raise ValueError(
                "training.micro_batch 1 leaves kto no second completion to estimate the KL with,"
                " expected null, 2 or more"
            )
        return self
