"""Make tests/golden/evidence/: result folders written by the real `lm_eval` command.

Run:  python tests/golden/make_evidence_runs.py
Made: lm-eval 0.4.13, transformers 5.23, torch 2.13 (CPU); about a minute.

Two tiny random Llama models (seeds 0 and 1) and lm-eval's dummy model score three invented tasks:
two of multiple choice under a weighted group inside an unweighted one, and, by a second command
into the same folder, one generated with two filters. `ev_maths` holds one item twice, so that
pairing by hash alone would be ambiguous.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

OUT = Path(__file__).parent / "evidence"

CHOICE = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {data}}}}}
output_type: multiple_choice
validation_split: validation
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
GENERATE = """task: ev_copy
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {data}}}}}
output_type: generate_until
validation_split: validation
doc_to_text: "Repeat: {{{{question}}}}\\n"
doc_to_target: "{{{{question}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4, do_sample: false}}
filter_list:
  - {{name: strict, filter: [{{function: take_first}}]}}
  - name: letters
    filter: [{{function: regex, regex_pattern: "([a-z]+)"}}, {{function: take_first}}]
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 2.0}}
"""
GROUP = """group: {name}
task: {members}
aggregate_metric_list:
  - {{metric: acc, weight_by_size: {weighted}}}
metadata: {{version: 1.0}}
"""


def _rows() -> dict[str, list[dict[str, object]]]:
    maths = [
        {
            "question": f"What is {a} plus {b}?",
            "choices": [str(a + b + d) for d in (-1, 0, 1)],
            "answer": 1,
        }
        for a in range(1, 4)
        for b in range(2, 5)
    ]
    maths.append(dict(maths[0]))
    birds = [
        {"question": f"Which of these is a {kind}?", "choices": list(options), "answer": answer}
        for kind, options, answer in [
            ("bird", ("wren", "trout", "oak", "chalk"), 0),
            ("fish", ("wren", "trout", "oak", "chalk"), 1),
            ("tree", ("wren", "trout", "oak", "chalk"), 2),
            ("stone", ("wren", "trout", "oak", "chalk"), 3),
            ("river", ("Rhine", "Paris", "Etna", "Mars"), 0),
            ("city", ("Rhine", "Paris", "Etna", "Mars"), 1),
        ]
    ]
    copy = [{"question": word} for word in ("aa", "wren", "oak", "12")]
    return {"ev_maths": maths, "ev_birds": birds, "ev_copy": copy}


def _write_tasks(folder: Path) -> None:
    for name, rows in _rows().items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        template = GENERATE if name == "ev_copy" else CHOICE
        (folder / f"{name}.yaml").write_text(template.format(name=name, data=data))
    for name, members, weighted in (
        ("ev_weighted", "[ev_maths, ev_birds]", "true"),
        ("ev_unweighted", "[ev_weighted]", "false"),
    ):
        text = GROUP.format(name=name, members=members, weighted=weighted)
        (folder / f"{name}.yaml").write_text(text)


def _write_model(folder: Path, seed: int) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{letter: i + 2 for i, letter in enumerate(letters)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def _lm_eval(*arguments: str) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "lm_eval", *arguments], check=True, env=environment)


def main() -> None:
    """Run lm_eval three times and keep what it wrote."""
    shutil.rmtree(OUT, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="gks-golden-") as temporary:
        work = Path(temporary)
        tasks, written = work / "tasks", work / "out"
        tasks.mkdir()
        _write_tasks(tasks)
        for seed in (0, 1):
            _write_model(work / f"tiny-llama-{seed}", seed)
        common = ["--include_path", str(tasks), "--log_samples", "--device", "cpu"]
        for seed in (0, 1):
            model = ["--model", "hf", "--model_args", f"pretrained={work}/tiny-llama-{seed}"]
            for tasks_run in ("ev_unweighted", "ev_copy"):
                target = ["--tasks", tasks_run, "--output_path", str(written / f"llama-{seed}")]
                _lm_eval(*model, *target, *common)
        _lm_eval(
            *("--model", "dummy", "--tasks", "ev_weighted", *common),
            *("--limit", "5", "--output_path", str(written / "dummy")),
        )
        for path in written.rglob("*.json*"):
            text = path.read_text(encoding="utf-8").replace(str(work), "/golden")
            if path.suffix == ".json":
                results = json.loads(text)
                results["pretty_env_info"] = "left out"
                text = json.dumps(results, indent=1, ensure_ascii=False)
            target = OUT / path.relative_to(written).parts[0] / "model" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
