"""lm-eval's requests as tokens, and checks that the model can score them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import has_bos_prefix

from gks_eval.errors import DataError
from gks_eval.scoring.unscorable import beyond_embeddings, too_long, warn_of
from gks_eval.scoring.whole_text_protocol import (
    is_whole_text,
    max_tokens,
    scores_choice,
    split_tokens,
)
from gks_eval.util.process_group import ProcessGroup

__all__ = ["TokenPair", "TokenRequest", "TokenizingLM"]

TOKENIZED_AT_ONCE = 2048

TokenRequest = tuple[Any, list[int], list[int]]
TokenPair = tuple[Sequence[int], Sequence[int]]


class TokenizingLM(HFLM):  # type: ignore[misc]
    """HFLM that tokenises many requests at once, and refuses those that the model cannot score.

    Attributes:
        group: The processes that share the work; None for a single process.
        keeps_requests: Whether the tokens and the plan of the last requests are kept for a next
            run of the same requests, as by the next setting of a grid.
    """

    group: ProcessGroup | None = None
    keeps_requests: bool = False
    _kept: tuple[list[Any], list[tuple[list[int], list[int]]]] | None = None
    _known: dict[str, list[int]]

    def token_pairs(self, requests: list[Any]) -> list[tuple[list[int], list[int]]]:
        """Return each request's (context, continuation) tokens, as `loglikelihood` scores them.

        They are lm-eval's, except if lm-eval finds nothing to score and ends the run:

        - A continuation that merges into the context's last token is tokenised separately, after
          the whole context. A warning counts these.
        - A continuation without text has no tokens. A warning counts these, too.
        - A context of white space counts as an empty one.
        """
        asked = [self.max_length, *(request.args for request in requests)]
        if self._kept is None or self._kept[0] != asked:
            pairs = self._tokenized(requests)
            if not self.keeps_requests:
                return pairs
            self._kept = asked, pairs
        return self._kept[1]

    def _tokenized(self, requests: list[Any]) -> list[tuple[list[int], list[int]]]:
        pairs = []
        merged: list[Any] = []
        for start in range(0, len(requests), TOKENIZED_AT_ONCE):
            block = requests[start : start + TOKENIZED_AT_ONCE]
            self._known = self._encode_many([request.args for request in block])
            for request in block:
                context, text = self._token_pair(request.args)
                if not text and (text := self._alone(request.args)):
                    merged.append(request)
                pairs.append((context, text))
        self._known = {}
        warn_of(
            merged,
            "Continuations that merge into the last token of their context are scored by their own "
            "tokens after the whole context",
        )
        warn_of(
            [request for request, (_, text) in zip(requests, pairs, strict=True) if not text],
            "Continuations without tokens get the log-likelihood -inf, so that any other choice is "
            "better",
        )
        return pairs

    def _token_pair(self, arguments: tuple[Any, ...]) -> tuple[list[int], list[int]]:
        if is_whole_text(arguments):
            return self._whole_text_request(arguments)[1:]
        context, continuation = arguments
        if context:
            pair: tuple[list[int], list[int]] = self._encode_pair(context, continuation)
            if pair[0]:
                return pair
        # lm-eval conditions on the prefix token alone, unless the text starts with it.
        tokens = self.tok_encode(context + continuation, add_special_tokens=False)
        start = 1 if tokens[:1] == [self.prefix_token_id] else 0
        return [self.prefix_token_id], tokens[start:]

    def _alone(self, arguments: tuple[Any, ...]) -> list[int]:
        # The tokens of a continuation, with the spaces that lm-eval moves to it.
        context, continuation = arguments[:2]
        if is_whole_text(arguments):
            return []
        return self.tok_encode(
            context[len(context.rstrip()) :] + continuation, add_special_tokens=False
        )

    def _encode_many(self, block: list[tuple[Any, ...]]) -> dict[str, list[int]]:
        # The texts that `_token_pair` will ask for: the tokenizer takes many at once in a fraction
        # of the time, and choices of one item share their context.
        texts = {arguments[0] + arguments[1]: None for arguments in block}
        texts |= {arguments[0].rstrip(): None for arguments in block if len(arguments) == 2}
        texts |= {arguments[0]: None for arguments in block if scores_choice(arguments)}
        beginning = self.tokenizer.decode(self.prefix_token_id)
        special = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
        known: dict[str, list[int]] = {}
        for begins, how in ((False, special), (True, {"add_special_tokens": False})):
            chosen = [text for text in texts if text and has_bos_prefix(text, beginning) is begins]
            if chosen:
                known |= zip(chosen, self.tokenizer(chosen, **how)["input_ids"], strict=True)
        return known

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **options: Any,
    ) -> list[int]:
        """Return the tokens of a text, as HFLM does."""
        if add_special_tokens is None and left_truncate_len is None and string in self._known:
            return list(self._known[string])
        tokens: list[int] = super().tok_encode(
            string, add_special_tokens, left_truncate_len, **options
        )
        return tokens

    def _whole_text_request(self, arguments: tuple[Any, ...]) -> TokenRequest:
        limit = min(max_tokens(arguments), self.max_length + 1)
        tokens = self.tok_encode(arguments[0] + arguments[1])
        alone = len(self.tok_encode(arguments[0])) if scores_choice(arguments) else 0
        context, scored = split_tokens(tokens, limit, alone)
        return arguments, context, scored

    def check_pairs(
        self, requests: list[Any], pairs: Sequence[TokenPair], *, pools: bool = False
    ) -> None:
        """Check that the model can score the requests.

        Args:
            requests: lm-eval's requests.
            pairs: Their tokens, as `token_pairs` returns them.
            pools: Whether all processes call this, and all are to fail if one does.

        Raises:
            DataError: It cannot score one; the sentence names task, item and text.
        """
        fault = too_long(requests, pairs, self.max_length)
        fault = fault or self._beyond(requests, ([*context, *text] for context, text in pairs))
        fault = fault or self.context_fault(requests)
        faults = self.group.gather(fault) if pools and self.group is not None else [fault]
        for sentence in filter(None, faults):
            raise DataError(sentence)

    def context_fault(self, requests: list[Any]) -> str | None:
        """Return why a request's context does not suit the setting; None if all do."""
        del requests
        return None

    def _check_texts(self, requests: list[Any]) -> None:
        fault = self._beyond(requests, (self.tok_encode(request.args[0]) for request in requests))
        fault = fault or self.context_fault(requests)
        if fault is not None:
            raise DataError(fault)

    @cached_property
    def _largest_token(self) -> int:
        largest: int = max(self.tokenizer.get_vocab().values())
        return largest

    def _beyond(self, requests: list[Any], tokens: Iterable[list[int]]) -> str | None:
        embeddings = self.model.get_input_embeddings()
        rows = getattr(embeddings, "num_embeddings", None) or embeddings.weight.shape[0]
        # A larger tokenizer, such as one with tokens for images, is no fault by itself.
        if self._largest_token < rows:
            return None
        return beyond_embeddings(requests, list(tokens), rows)
