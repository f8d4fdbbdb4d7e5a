"""Stands in for the package vllm: of vLLM 0.32.0 the names, signatures and fields that
vllm_worker uses. Completions are a transformers model's own, one token at a time without a cache,
each request from a generator of its own."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    logprobs: int | None = None
    detokenize: bool = True


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float | None


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]


class LLM:
    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        dtype: str = "auto",
        revision: str | None = None,
        gpu_memory_utilization: float = 0.92,
        enforce_eager: bool = False,
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        load_format: str = "auto",
        generation_config: str = "auto",
        logprobs_mode: str = "raw_logprobs",
        enable_prefix_caching: bool | None = None,
    ):
        from transformers import AutoModelForCausalLM

        assert (
            skip_tokenizer_init and logprobs_mode == "raw_logprobs" and load_format == "safetensors"
        )
        self.model = AutoModelForCausalLM.from_pretrained(
            model, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code
        ).eval()
        self.longest = max_model_len

    def generate(
        self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None
    ) -> list[RequestOutput]:
        assert len(prompts) == len(sampling_params)
        return [
            RequestOutput(
                prompt["prompt_token_ids"], [self._write(prompt["prompt_token_ids"], told)]
            )
            for prompt, told in zip(prompts, sampling_params, strict=True)
        ]

    def _write(self, prompt: list[int], told: SamplingParams) -> CompletionOutput:
        import torch

        assert told.ignore_eos and told.logprobs == 0 and not told.top_k and told.top_p == 1
        if len(prompt) + told.max_tokens > self.longest:
            raise ValueError(
                f"a sequence of {len(prompt) + told.max_tokens} tokens is longer than max_model_len"
                f" {self.longest}"
            )
        generator, tokens, total = torch.Generator().manual_seed(told.seed), [], 0.0
        while len(tokens) < told.max_tokens and not (tokens and tokens[-1] in told.stop_token_ids):
            with torch.inference_mode():
                logits = self.model(torch.tensor([prompt + tokens])).logits[0, -1].float()
            tokens.append(
                int(
                    torch.multinomial(
                        torch.softmax(logits / told.temperature, -1), 1, generator=generator
                    )
                )
            )
            total += float(torch.log_softmax(logits, -1)[tokens[-1]])
        return CompletionOutput(0, "", tuple(tokens), total)
