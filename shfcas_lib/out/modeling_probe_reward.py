"""A reward that is a linear head on pooled hidden states of a language model's middle layer.

    model = AutoModelForSequenceClassification.from_pretrained(FOLDER, trust_remote_code=True)
    model(input_ids, attention_mask).logits        # (rows, 1), higher is better

This file lies beside the weights and needs torch and transformers alone. A sequence is a prompt
and one completion; padding may stand on either side, and `attention_mask` says where. For every
completion four states are pooled at layer `config.layer`: the mean over its tokens, the mean over
its first `start_tokens`, its last token, and the mean over the prompt's last `prompt_tokens`
(without the first token of the sequence, a sink of attention). Each is standardised; the fourth
counts through its product with the first:

    reward = weight . [mean, start, end, standardised(mean * prompt)]
"""

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class ProbeRewardConfig(PreTrainedConfig):
    """backbone: configuration of the language model's layers, as a dict, cut above `layer`.

    answer_start: token ids that stand between prompt and completion, whose last occurrence in a
    sequence counts; empty: the caller says where completions start. stop: ids that end one.
    """

    model_type = "shfcas_probe_reward"

    def __init__(
        self,
        backbone: dict | None = None,
        layer: int = 1,
        start_tokens: int = 8,
        prompt_tokens: int = 32,
        answer_start: list[int] | None = None,
        stop: list[int] | None = None,
        **more,
    ):
        self.backbone, self.layer = backbone, layer
        self.start_tokens, self.prompt_tokens = start_tokens, prompt_tokens
        self.answer_start, self.stop = answer_start or [], stop or []
        super().__init__(**more)


class ProbeHead(torch.nn.Module):
    """mean, std: (2, 4 x hidden), of the states and of the products; weight: (4 x hidden,)."""

    def __init__(self, hidden: int):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(2, 4 * hidden))
        self.std = torch.nn.Parameter(torch.ones(2, 4 * hidden))
        self.weight = torch.nn.Parameter(torch.zeros(4 * hidden))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Rewards, (rows,), of pooled states, (rows, 4 x hidden)."""
        hidden = states.shape[1] // 4
        standard = (states - self.mean[0]) / self.std[0]
        product = standard[:, :hidden] * standard[:, 3 * hidden :]
        product = (product - self.mean[1, :hidden]) / self.std[1, :hidden]
        return torch.cat([standard[:, : 3 * hidden], product], 1) @ self.weight


class ProbeReward(PreTrainedModel):
    config_class = ProbeRewardConfig
    base_model_prefix = "backbone"
    _keep_in_fp32_modules_strict = ["head"]

    def __init__(self, config: ProbeRewardConfig):
        super().__init__(config)
        self.num_labels = 1
        described = AutoConfig.for_model(**(config.backbone or {}))
        self.backbone = AutoModel.from_config(described)
        self.head = ProbeHead(described.get_text_config().hidden_size)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        completion_start: torch.Tensor | list[int] | None = None,
        **_,
    ) -> SequenceClassifierOutput:
        """logits: (rows, 1).

        input_ids, attention_mask: (rows, tokens); without a mask every token counts.
        completion_start: tokens before each completion, padding left out; None: they are found.
        Raises ValueError where a completion has no token, or its start is not found.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = self.backbone(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states[self.config.layer]

        rows = []
        for row, (ids, seen) in enumerate(zip(input_ids, mask.bool(), strict=True)):
            given = None if completion_start is None else int(completion_start[row])
            rows.append(self._pooled(ids[seen].tolist(), hidden[row][seen].float(), row, given))
        head = self.head.float()
        return SequenceClassifierOutput(logits=head(torch.stack(rows))[:, None])

    def _pooled(
        self, ids: list[int], states: torch.Tensor, row: int, start: int | None
    ) -> torch.Tensor:
        """The four states of one sequence, (4 x hidden,). states: (tokens, hidden)."""
        start = self._start(ids, row) if start is None else start
        ends = [k for k in range(start, len(ids)) if ids[k] in self.config.stop]
        own = states[start : ends[0] + 1 if ends else len(ids)]
        if not 0 < start or not len(own):
            raise ValueError(f"row {row}: expected a prompt and a completion, one is empty")
        before = states[max(min(1, start - 1), start - self.config.prompt_tokens) : start]
        first = own[: self.config.start_tokens]
        return torch.cat([own.mean(0), first.mean(0), own[-1], before.mean(0)])

    def _start(self, ids: list[int], row: int) -> int:
        """Tokens up to the end of the last `answer_start`."""
        mark = self.config.answer_start
        for end in range(len(ids), len(mark) - 1, -1):
            if mark and ids[end - len(mark) : end] == mark:
                return end
        raise ValueError(
            f"row {row}: where does the completion start? Expected the token ids {mark} before it,"
            " or completion_start"
        )
