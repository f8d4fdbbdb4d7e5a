"""Pool building on the embedded model: what P prompts x N cost.

That is completions, log-probabilities, features and the proxy's reward.

    python benchmarks/pool_building.py [--prompts 8] [--rounds 5]

Against (a) the usual way: `generate`, a second forward pass for log-probabilities, a third
through a separate reward model; (b) TRL's own generation helper and log-softmax, then the same
third pass; (c) llama.cpp on the same weights (Q4_1), sampling alone, where the extra `bench` is
installed; and against two bounds: one teacher-forced pass over the same tokens, completion by
completion, and the same with prompts passed once. Seconds per completion token; the sampled
lengths differ a little between contestants.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import secrets
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import pandas as pd
import torch
from race import growth, race, ratios, release

from shfcas_lib import pool, rewards, selection
from shfcas_lib.base import batches
from shfcas_lib.conflict import conflict_table
from shfcas_lib.experiment import checks
from shfcas_lib.models import loading
from shfcas_lib.params import reading
from shfcas_lib.params.schema import Params
from shfcas_lib.storage import assets

TOKENS = 32


class Contest:
    """The prompts, the backbone with our probe, and the separate reward model that the others
    need.
    """

    def __init__(self, settings: Params, prompts: int):
        from transformers import AutoModelForSequenceClassification

        self.params = settings
        self.sampling = settings.sampling.model_copy(update={"max_new_tokens": TOKENS})
        self.prompts = checks.check(settings).sort_values("prompt_id").head(prompts)
        self.backbone = loading.load_backbone(settings.model)
        self.rows = self.sampling.batch_size
        hidden = self.backbone.causal.config.hidden_size
        generator = np.random.default_rng(0)
        self.probe = rewards.Probe(
            np.zeros((2, 4 * hidden)), np.ones((2, 4 * hidden)), generator.normal(size=4 * hidden)
        )
        self.judge = AutoModelForSequenceClassification.from_pretrained(
            loading.located(settings.model.source, "model.source"),
            num_labels=1,
            dtype=torch.float32,
            quantization_config=loading._quantisation(settings.model.quantisation, torch.float32),
        ).eval()
        self.judge.config.pad_token_id = self.backbone.tokenizer.pad_token_id
        loading._keep_float32(self.judge)
        self.drawn: pd.DataFrame | None = None

    def ours(self) -> float:
        self.drawn = pool.sample(self.backbone, self.prompts, self.sampling, seed=0)
        self.probe.score(self.drawn)
        return self.drawn["n_tokens"].sum()

    def usual(self) -> float:
        """Three passes, with as many rows in a batch as ours."""
        tokens, n = 0, self.sampling.n
        texts = list(self.prompts["prompt"])
        for start in range(0, len(texts), self.rows // n):
            ids, mask = batches.pad_left(
                [self.backbone.prompt_ids(t) for t in texts[start : start + self.rows // n]],
                self._pad,
                "cpu",
            )
            with torch.inference_mode():
                full = self.backbone.causal.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    do_sample=True,
                    temperature=self.sampling.temperature,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=TOKENS,
                    num_return_sequences=n,
                    pad_token_id=self._pad,
                )
            tokens += self._score(full, ids.shape[1], mask.repeat_interleave(n, 0))
        return tokens

    def trl(self) -> float:
        """TRL's callback helper, which takes and returns text."""
        from accelerate import Accelerator
        from transformers import GenerationConfig
        from trl.trainer.callbacks import _generate_completions

        tokenizer = self.backbone.tokenizer
        texts = self._chats(tokenizer)
        config = GenerationConfig(
            do_sample=True,
            temperature=self.sampling.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=TOKENS,
            pad_token_id=self._pad,
            eos_token_id=self.backbone.stop_ids,
        )
        tokenizer.padding_side = "left"
        completions = _generate_completions(
            texts,
            self.backbone.causal,
            tokenizer,
            Accelerator(cpu=True),
            config,
            batch_size=self.rows,
        )

        # text again into tokens, and then the two passes of the usual way
        total = 0
        for start in range(0, len(texts), self.rows):
            part = slice(start, start + self.rows)
            prompts = [tokenizer(chat)["input_ids"] for chat in texts[part]]
            answers = [self.backbone.completion_ids(answer) for answer in completions[part]]
            ids, mask = batches.pad_left(prompts, self._pad, "cpu")
            full = torch.cat([ids, self._pad_right(answers)], 1)
            self._score(full, ids.shape[1], mask)
            total += sum(map(len, answers))
        return total

    def _chats(self, tokenizer) -> list[str]:
        """Every prompt N times, in the chat template."""
        chats = []
        for prompt in self.prompts["prompt"]:
            messages = self.backbone.writer.messages(prompt)
            chat = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
            chats += [chat] * self.sampling.n
        return chats

    def _pad_right(self, rows: list) -> torch.Tensor:
        """Rows of tokens as one tensor, padded to the longest."""
        longest = max(map(len, rows))
        return torch.tensor([list(row) + [self._pad] * (longest - len(row)) for row in rows])

    def bound(self) -> float:
        """One pass over prompt and completion of what `ours` sampled, rows of like length
        together, logits of completions alone.
        """
        prompt_ids = {
            row.prompt_id: self.backbone.prompt_ids(row.prompt) for row in self.prompts.itertuples()
        }
        rows = sorted(
            (prompt_ids[r.prompt_id] + list(r.tokens) for r in self.drawn.itertuples()), key=len
        )
        with torch.inference_mode():
            for start in range(0, len(rows), self.rows):
                ids, mask = batches.pad_left(rows[start : start + self.rows], self._pad, "cpu")
                self.backbone.causal(
                    input_ids=ids, attention_mask=mask, logits_to_keep=TOKENS + 1, use_cache=False
                )
        return self.drawn["n_tokens"].sum()

    def strict(self) -> float:
        """The same, with each prompt passed once for all its completions: every token that has to
        be seen is seen once, in two passes.
        """
        n, per_batch = self.sampling.n, max(1, self.rows // self.sampling.n)
        drawn = {
            prompt_id: list(part["tokens"]) for prompt_id, part in self.drawn.groupby("prompt_id")
        }
        with torch.inference_mode():
            for start in range(0, len(self.prompts), per_batch):
                batch = self.prompts.iloc[start : start + per_batch]
                ids, mask = batches.pad_left(
                    [self.backbone.prompt_ids(p) for p in batch["prompt"]], self._pad, "cpu"
                )
                cache = self.backbone.causal(
                    input_ids=ids, attention_mask=mask, logits_to_keep=1, use_cache=True
                ).past_key_values
                cache.batch_repeat_interleave(n)
                rows = self._pad_right(sum((drawn[name] for name in batch["prompt_id"]), []))
                mask = torch.cat([mask.repeat_interleave(n, 0), torch.ones_like(rows)], 1)
                self.backbone.causal(
                    input_ids=rows, attention_mask=mask, past_key_values=cache, use_cache=True
                )
        return self.drawn["n_tokens"].sum()

    @property
    def _pad(self) -> int:
        return self.backbone.tokenizer.pad_token_id

    def _score(self, full: torch.Tensor, width: int, prompt_mask: torch.Tensor) -> int:
        """The second and the third pass, in batches of 16 as `pool.score` takes them; returns the
        number of completion tokens.
        """
        from trl.trainer.utils import selective_log_softmax

        answer = full[:, width:]
        stop = torch.isin(answer, torch.tensor(self.backbone.stop_ids))
        alive = (stop.cumsum(1) - stop.long()) == 0
        mask = torch.cat([prompt_mask, alive.long()], 1)
        with torch.inference_mode():
            for start in range(0, len(full), 16):
                part = slice(start, start + 16)
                logits = self.backbone.causal(
                    input_ids=full[part],
                    attention_mask=mask[part],
                    logits_to_keep=answer.shape[1] + 1,
                    use_cache=False,
                ).logits
                (selective_log_softmax(logits[:, :-1], answer[part]) * alive[part]).sum(1)
                self.judge(input_ids=full[part], attention_mask=mask[part])
        return int(alive.sum())


class LlamaCpp:
    """llama.cpp with every slot in one batch, on the embedded model's own GGUF file."""

    def __init__(self, contest: Contest, folder: Path):
        import xllamacpp

        self.contest = contest
        threads, slots = torch.get_num_threads(), 32
        settings = xllamacpp.CommonParams()
        settings.model.path = str(assets.raw("smollm2-135m-instruct", folder) / "model.gguf")
        settings.n_parallel, settings.n_ctx = slots, slots * 512
        settings.warmup, settings.verbosity = False, -1
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        self.server, self.workers = xllamacpp.Server(settings), ThreadPoolExecutor(slots)

    def run(self) -> float:
        contest = self.contest
        prompts: list[list[int]] = []
        for prompt in contest.prompts["prompt"]:
            prompts += [contest.backbone.prompt_ids(prompt)] * contest.sampling.n
        return sum(self.workers.map(self._one, prompts, range(len(prompts))))

    def _one(self, prompt: list[int], seed: int) -> int:
        answer = self.server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": TOKENS,
                "temperature": self.contest.sampling.temperature,
                "top_k": 0,
                "top_p": 1.0,
                "min_p": 0.0,
                "samplers": ["temperature"],
                "seed": seed,
                "cache_prompt": True,
            }
        )
        return answer["usage"]["completion_tokens"]


def agreement(contest: Contest, seed: int) -> pd.DataFrame:
    """What the decode steps recorded against a plain teacher-forced pass over the same tokens,
    and what follows from each: K and comparisons.
    """
    drawn = pool.sample(contest.backbone, contest.prompts, contest.sampling, seed)
    plain = pool.score(contest.backbone, drawn)
    reward = np.random.default_rng(seed).normal(size=len(drawn))
    tables = [conflict_table(part, reward) for part in (drawn, plain)]
    recorded, recomputed = (_chosen(table, contest.params) for table in tables)
    other_k = tables[0]["kendall"] != tables[1]["kendall"]
    features = np.abs(pool.features(drawn) - pool.features(plain))
    row = {
        "completions": len(drawn),
        "largest difference of logp": np.abs(drawn["logp"] - plain["logp"]).max(),
        "largest difference of features": features.max(),
        "prompts with another K": int(other_k.groupby(tables[0]["prompt_id"]).any().sum()),
        "comparisons chosen otherwise": len(recorded) - len(recorded.merge(recomputed)),
    }
    return pd.DataFrame([row])


def _chosen(table: pd.DataFrame, params: Params) -> pd.DataFrame:
    """The comparisons that SHF-CAS chooses on a conflict table: prompt_id, i, j."""
    generator = np.random.default_rng(0)
    chosen = selection.select("shf_cas", table, 20, generator, params.selection)
    return chosen[["prompt_id", "i", "j"]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    quickstart = Path(__file__).parents[1] / "params" / "quickstart.yaml"
    contest = Contest(reading.load(quickstart), options.prompts)
    contestants = {
        "ours": contest.ours,
        "usual: three passes": contest.usual,
        "TRL helper, then two passes": contest.trl,
        "bound: one forward pass": contest.bound,
        "strict bound: prompts shared": contest.strict,
    }
    with tempfile.TemporaryDirectory() as folder:
        if importlib.util.find_spec("xllamacpp"):
            contestants["llama.cpp, sampling alone"] = LlamaCpp(contest, Path(folder)).run
        else:
            print("llama.cpp is left out: `make bench` installs it")
        table = ratios(race(contestants, options.rounds, warm=False), "ours")
    release("pool_building", table)
    release("pool_agreement", agreement(contest, seed=secrets.randbelow(2**31)))
    everything = contest.prompts
    sizes = [max(1, options.prompts * k // 8) for k in (1, 2, 4, 8)]

    def build(prompts: int) -> None:
        contest.prompts = everything.head(prompts)
        contest.ours()

    release("pool_growth", growth("pool building, prompts", sizes, build, rounds=1))


if __name__ == "__main__":
    main()
