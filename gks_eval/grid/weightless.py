"""The model class without weights: it counts the tokens of every request and scores nothing."""

from __future__ import annotations

from typing import Any

from gks_eval.library.fit import meta_model
from gks_eval.model.lm import GksArrowLM
from gks_eval.scoring.loglikelihood import TokenLogLikelihood
from gks_eval.scoring.tree import count_distinct_tokens, count_harness_tokens, to_sequences

__all__ = ["WeightlessLM"]


class WeightlessLM(GksArrowLM):
    """`GksArrowLM` with its tokenizer and its base's config, but a base on the meta device.

    lm-eval runs it like any model, so it gets the requests of a real run, including prompts,
    few-shot examples and chat templates. Its answers mean nothing.

    Attributes:
        scored: Task, context tokens and continuation tokens of every text to score.
        continued: The task of every text to continue.
    """

    def __init__(self, pretrained: str, **arguments: Any) -> None:
        self.scored: list[tuple[str, list[int], list[int]]] = []
        self.continued: list[str] = []
        super().__init__(pretrained, **arguments)

    def connect_processes(self) -> None:
        """Run in one process, which counts for all."""

    def _create_model(self, *_pretrained: str, **how: Any) -> None:
        code = bool(how.get("trust_remote_code"))
        model: Any = meta_model(self.config, trust_remote_code=code)
        model.to = lambda *_args, **_options: model  # HFLM moves it to a GPU
        self._model = model

    def loglikelihood(self, requests: list[Any], *_: Any, **__: Any) -> list[tuple[float, bool]]:
        """Count the tokens of texts to score."""
        pairs = self.token_pairs(requests)
        self.check_pairs(requests, pairs)
        self.scored += [(r.task_name, *pair) for r, pair in zip(requests, pairs, strict=True)]
        return [TokenLogLikelihood(0.0, False, len(scored)) for _, scored in pairs]

    def loglikelihood_rolling(self, requests: list[Any], *_: Any, **__: Any) -> list[float]:
        """Count the tokens of rolling texts, in windows without overlap."""
        start = self.prefix_token_id
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            windows = [
                tokens[n : n + self.max_length] for n in range(0, len(tokens), self.max_length)
            ]
            self.scored += [(request.task_name, [start], window) for window in windows]
        return [0.0] * len(requests)

    def generate_until(self, requests: list[Any], *_: Any, **__: Any) -> list[str]:
        """Count texts to continue."""
        self.continued += [request.task_name for request in requests]
        return [""] * len(requests)

    def count(self, task: str | None = None) -> tuple[int, int]:
        """Return the input tokens of one task, or of all together.

        Returns:
            Tokens that lm-eval's own scorer runs, without padding, and distinct prefixes.
        """
        pairs = [(before, after) for name, before, after in self.scored if task in (None, name)]
        sequences = to_sequences(pairs, self.max_length)
        return count_harness_tokens(sequences), count_distinct_tokens(sequences)

    def weights(self) -> int:
        """Return the number of weights per token: all but the embeddings and the head."""
        ends = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        left_out = {id(p) for module in ends if module is not None for p in module.parameters()}
        return sum(p.numel() for p in self.model.parameters() if id(p) not in left_out)
