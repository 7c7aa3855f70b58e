"""Count the predictions that details of the authors' evaluation code change.

``python docs/study/departures.py ITEMS`` takes the first ITEMS items of every task of
``gks_paper_*`` whose data set is there, on SmolLM2-135M-Instruct in float32, one forward per text.
"""

from __future__ import annotations

import sys
from collections import Counter

import torch
from lm_eval.tasks import TaskManager
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from gks_eval import embedded_model, tasks_dir
from gks_eval.errors import HubError
from gks_eval.tasklib.whole_text import MAX_TOKENS, whole_text

VARIANTS = ("authors", "all tokens", "float16 logits", "answer only")


def losses_of(logits: torch.Tensor, tokens: torch.Tensor, prompt: int) -> dict[str, float]:
    """Return the loss of a text by every variant.

    Args:
        logits: (T, V), float32.
        tokens: (T,).
        prompt: Number of tokens of the prompt.
    """
    each = cross_entropy(logits[:-1], tokens[1:], reduction="none")
    half = cross_entropy(logits[:-1].half(), tokens[1:], reduction="none")
    return {
        "authors": float(each.sum() / each.count_nonzero().clamp_min(1)),
        "all tokens": float(each.mean()),
        "float16 logits": float(half.sum() / half.count_nonzero().clamp_min(1)),
        "answer only": float(each[max(0, prompt - 1) :].mean()),
        "zero": len(each) - int(each.count_nonzero()),
        "zero in float16": len(half) - int(half.count_nonzero()),
        "tokens": len(each),
    }


@torch.no_grad()
def main(items: int) -> None:
    """Print the counts per task and in all."""
    folder = embedded_model("smollm2-135m-instruct")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
    total: Counter[str] = Counter()
    for name in manager.all_subtasks:
        if not name.startswith("gks_paper_"):
            continue
        try:
            task = manager.load([name])["tasks"][name]
        except HubError:
            continue
        counts: Counter[str] = Counter()
        for doc in task.eval_docs.select(range(min(items, len(task.eval_docs)))):
            found = []
            for choice in task.doc_to_choice(doc):
                prompt, answer = whole_text(task.doc_to_text(doc), choice)
                ids = tokenizer(prompt + answer, truncation=True, max_length=MAX_TOKENS)
                tokens = torch.tensor(ids["input_ids"])
                logits = model(tokens[None]).logits[0]
                found.append(losses_of(logits, tokens, len(tokenizer(prompt)["input_ids"])))
            counts["items"] += 1
            counts["texts"] += len(found)
            counts["tokens"] += int(sum(one["tokens"] for one in found))
            counts["zero"] += int(sum(one["zero"] for one in found))
            counts["zero in float16"] += int(sum(one["zero in float16"] for one in found))
            counts["texts of 512 tokens"] += sum(one["tokens"] == MAX_TOKENS - 1 for one in found)
            best = {v: min(one[v] for one in found) for v in VARIANTS}
            first = {v: [one[v] for one in found].index(best[v]) for v in VARIANTS}
            for variant in VARIANTS[1:]:
                counts[f"changed by {variant}"] += first[variant] != first["authors"]
            ties = sum(one["float16 logits"] == best["float16 logits"] for one in found)
            counts["ties in float16"] += ties > 1
        print(name, dict(counts), flush=True)
        total += counts
    print("all", dict(total))


if __name__ == "__main__":
    main(int(sys.argv[1]))
