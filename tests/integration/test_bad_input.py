"""Every kind of bad input through the real `gks-eval`: one sentence, its exit code, no traceback.

One table, a row a case. A row spoils something in a fresh folder and says the command line, the
exit code and what the sentence must name. Unless a row says otherwise, the base model's weights
must not have been read by then.
"""

from __future__ import annotations

import functools
import logging
import math
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_input import (
    CONFIG,
    PREPARED,
    WEIGHTS,
    Case,
    aliases,
    all_adapters,
    both,
    clustered,
    config,
    cut_short,
    edit_json,
    faulty_piqa,
    first_entry,
    header_length,
    linked_outside,
    manifest,
    narrower,
    pickled,
    prepared,
    recipe,
    runs,
    tensors,
    text,
    unequal_ranks,
    without_layer,
)

from gks_eval.cli.main import main
from gks_eval.errors import (
    CompatibilityError,
    ConfigError,
    DataError,
    HubError,
    LibraryError,
    ResourceError,
    ResultsError,
    UsageError,
)

# ---------------------------------------------------------------------- the table
ITEMS = "grid --library library --tasks gks_demo_goals_en --output out --settings base --samples "
GRID = "grid --library library --tasks gks_demo_goals_en --limit 2 --output out --settings "
CONTROLS = "controls --library library --tasks gks_demo_goals_en --output out --treatment "
TRAIN = "train recipe.yaml --output made"
COMPARE = "compare old new"
GATE = "gate --baseline old --candidate new --policy gate.yaml"

LIBRARIES = {
    "no such library": ("grid --library librari --tasks x --output out --settings arrow",
        LibraryError, ["library 'librari' is neither a folder, nor bundled", "known: "]),
    "no library.yaml": (GRID + "arrow", LibraryError, ["library has no library.yaml", "write one"],
        lambda f: (f / "library/library.yaml").unlink()),
    "not YAML": (GRID + "arrow", ConfigError, ["library/library.yaml", "not valid YAML: line 3"],
        text("library/library.yaml", "base_model: x\nexperts: {a: b\n")),
    "all faults at once": (GRID + "arrow", ConfigError,
        ["2 faults", "line 1: base_model: ", "line 3: expert is not a known key; did you mean",
         "'experts'"],
        text("library/library.yaml", "base_model: 7\nexperts: {a: b}\nexpert: {a: b}\n")),
    "a key twice": (GRID + "arrow", ConfigError, ["line 2: the key 'a' occurs twice", "keep one"],
        text("library/library.yaml", "base_model: x\nexperts: {a: b, a: c}\n")),
    "an alias bomb": (GRID + "arrow", ConfigError, ["library.yaml", "with its aliases"],
        text("library/library.yaml", aliases())),
    "nested without end": (GRID + "arrow", ConfigError, ["library.yaml", "deeply"],
        text("library/library.yaml", "base_model: " + "[" * 5000)),
    "a huge file": (GRID + "arrow", ConfigError, ["library.yaml is larger than 128 KiB"],
        text("library/library.yaml", "#" * (1 << 18))),
    "not UTF-8": (GRID + "arrow", ConfigError, ["library.yaml is not UTF-8 (byte 12)"],
        text("library/library.yaml", b"base_model: \xff")),
    "a misused tag": (GRID + "arrow", ConfigError, ["line 2", "is not a valid value", "quote it"],
        text("library/library.yaml", "base_model: x\nrevision: !!timestamp soon\n")),
    "a control character": (GRID + "arrow", ConfigError, [r"\x1b[31m", "not a known key"],
        text("library/library.yaml", 'base_model: x\nexperts: {a: b}\n"\\e[31m": 1\n')),
    "a path out of the folder": (GRID + "arrow", LibraryError,
        ["library.yaml: experts/beta points outside its folder (../outside)"],
        manifest(experts={"beta": "../outside"})),
    "a link out of the folder": (GRID + "arrow", LibraryError, ["experts/beta points outside"],
        linked_outside),
    "a hub id with dots": (GRID + "arrow", LibraryError, ["org/repo@..", "does not exist"],
        manifest(experts={"beta": "org/repo@.."})),
    "adapters not made yet": ("grid --library phi2 --tasks x --output out --settings arrow",
        LibraryError, ["does not exist yet", "gks-eval convert mttl", "gks-eval train phi2"]),
    "the hub is offline": ("grid --library phi3-mini --tasks x --output out --settings arrow",
        HubError, ["TahaBa/phi3-mini-clustered-flan", "hub cannot be reached", "local folder"]),
    "a hub library, offline": ("grid --library org/lib --tasks x --output out --settings arrow",
        HubError, ["org/lib is not in the local cache", "local folder"]),
    "other weights than their hash": (GRID + "arrow", LibraryError, ["experts/beta", "SHA-256"],
        manifest(hashes={"experts/beta": "0" * 64})),
    "one tied layer": (GRID + "arrow", ConfigError, ["tied_prototypes.0.layers", "at least 2"],
        manifest(tied_prototypes=[{"layers": ["o_proj"]}])),
    "tied layers that are not there": (GRID + "arrow", LibraryError,
        ["tied_prototypes a, b", "update no two such layers"],
        manifest(tied_prototypes=[{"layers": ["a", "b"]}])),
    "tied layers of unequal shape": (GRID + "arrow", LibraryError,
        ["(64, 64)", "(192, 64)", "tie other layers"],
        manifest(tied_prototypes=[{"layers": ["o_proj", "qkv_proj"], "op": "sum"}])),
    "layers tied twice": (GRID + "arrow", LibraryError, ["in two groups; name it in one"],
        manifest(tied_prototypes=[{"layers": ["o_proj", "qkv_proj"]}] * 2)),
    "library show": ("library show nowhere", LibraryError, ["library 'nowhere'", "known: "]),
    "routes": ("routes --library nowhere --task gks_demo_goals_en", LibraryError,
        ["library 'nowhere'", "known: "]),
}  # fmt: skip

ADAPTERS = {
    "no config": (LibraryError, ["experts/beta", "has no adapter_config.json", "save_pretrained"],
        lambda f: (f / CONFIG).unlink()),
    "config no JSON": (LibraryError, ["adapter_config.json is broken or only", "copy it again"],
        text(CONFIG, '{"r": 4,')),
    "config a list": (LibraryError, ["adapter_config.json holds no JSON object"],
        text(CONFIG, "[1]")),
    "rank a word": (LibraryError, ["r is '4'", "finite number"], config(r="4")),
    "scaling none": (LibraryError, ["lora_alpha is None"], config(lora_alpha=None)),
    "a malformed pattern": (LibraryError, ["rank_pattern '('", "malformed"],
        config(rank_pattern={"(": 4})),
    "pickled .bin": (LibraryError,
        ["adapter_model.bin", "is a pickle", "gks-eval convert bin"], pickled("adapter_model.bin")),
    "pickled .pt": (LibraryError,
        ["adapter_model.pt", "is a pickle", "gks-eval convert bin"], pickled("adapter_model.pt")),
    "weights cut short": (LibraryError, ["not a readable safetensors file", "copy it again"],
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-7])),
    "header too long": (LibraryError, ["not a readable safetensors file"], header_length(2**62)),
    "header too short": (LibraryError, ["not a readable safetensors file"], header_length(3)),
    "wrong shape": (LibraryError, ["factors of shape", "(rank, in) and (out, rank)"],
        tensors(lambda t: t.update({k: v.T for k, v in t.items() if "lora_A" in k}))),
    "NaN": (LibraryError, ["holds NaN or Inf", "train it again"], first_entry(math.nan)),
    "Inf": (LibraryError, ["holds NaN or Inf", "train it again"], first_entry(math.inf)),
    "half an adapter": (LibraryError, ["has no lora_B", "incomplete"],
        tensors(lambda t: [t.pop(k) for k in list(t) if "lora_B" in k])),
    "DoRA": (LibraryError, ["'beta' uses DoRA (use_dora)", "trained without it"],
        config(use_dora=True)),
    "trained biases": (LibraryError, ["bias='all'", "bias='none'"], lambda f: (
        config(bias="all")(f),
        tensors(lambda t: t.update({"m.bias": next(iter(t.values()))[0].clone()}))(f))),
    "saved modules": (LibraryError, ["(modules_to_save)", "trained without it"],
        config(modules_to_save=["lm_head"])),
    "another method": (LibraryError, ["of kind IA3", "only LORA"], config(peft_type="IA3")),
    "a start that changes the base": (LibraryError, ["started from pissa", "plain LoRA"],
        config(init_lora_weights="pissa")),
    "unequal ranks": (CompatibilityError, ["'beta' and 'alpha'", "rank", "preset=exact"],
        unequal_ranks),
    "unequal layers": (CompatibilityError, ["which 'beta' does not update", "preset=exact"],
        lambda f: without_layer(f / WEIGHTS)),
    "unequal widths": (CompatibilityError, ["a layer of shape", "different base models"],
        lambda f: narrower(f / WEIGHTS)),
    "fewer layers than the base": (CompatibilityError, ["leaves out model.layers.1", "fewer"],
        all_adapters(without_layer)),
    "another width than the base": (CompatibilityError, ["does not fit", "were made for"],
        all_adapters(narrower)),
}  # fmt: skip

ARGUMENTS = {
    "top_k of 0": (GRID + "arrow;top_k=0", UsageError, ["top_k=0", "at least 1"]),
    "top_k above the experts": (GRID + "arrow;top_k=99", UsageError, ["top_k=99", "the 4 experts"]),
    "top_k a word": (GRID + "arrow;top_k=few", UsageError, ["top_k=few", "whole number"]),
    "temperature 0": (GRID + "norm;temperature=0", UsageError, ["temperature=0", "above 0"]),
    "temperature below 0": (GRID + "lag;temperature=-1", UsageError, ["temperature=-1"]),
    "an unknown norm": (GRID + "arrow;input_norm=x", UsageError, ["input_norm=x", "id, layer"]),
    "temperature nan": (GRID + "arrow;temperature=nan", UsageError, ["temperature=nan"]),
    "unknown language": (GRID + "gks:en+xx", UsageError, ["subtract=xx", "known: en, de, fr"]),
    "a language twice": (GRID + "gks:en+en", UsageError, ["en+en", "twice"]),
    "no general adapters": (GRID + "gks:avg", UsageError, ["subtract=avg", "subtract=none"],
        manifest(general={})),
    "unknown expert": (GRID + "expert:alpa", UsageError, ["router=alpa", "did you mean 'alpha'"]),
    "no such include path": (GRID + "arrow --include-path nowhere", UsageError,
        ["--include-path nowhere is not a folder", "task YAMLs"]),
    "unknown setting": (GRID + "gsk:en", UsageError, ["'gsk' is unknown", "did you mean 'gks'"]),
    "a treatment that subtracts nothing": (CONTROLS + "arrow", UsageError,
        ["--treatment 'arrow' subtracts no general adapter", "such as gks:avg"]),
    "a treatment that is a control": (CONTROLS + "gks:avg;general=random", UsageError,
        ["is itself a control"]),
    "a treatment of an unknown language": (CONTROLS + "gks:xx", UsageError,
        ["subtract=xx", "known: en, de, fr"]),
    "no draws": (CONTROLS + "gks:avg --seeds 0", UsageError, ["--seeds", "1"]),
    "a margin in points": (CONTROLS + "gks:avg --margin 2", UsageError, ["--margin", "0.9"]),
    "a broken question": (CONTROLS + "gks:avg", ResultsError, ["controls.json", "delete it"],
        text("out/controls.json", "{")),
    "unknown rule": (GRID + "gks:en;rule=delat", UsageError, ["rule=delat", "'delta'"]),
    "unknown preset": (GRID + "gks:en;preset=papr", UsageError, ["preset=papr", "'paper'"]),
    "unknown scoring": (GRID + "arrow --model-args scoring=pakced", UsageError, ["'packed'"]),
    "unknown argument": (GRID + "arrow --model-args dtpye=float32", UsageError,
        ["unknown argument dtpye;", "did you mean 'dtype'"]),
    "4 and 8 bits": (GRID + "arrow --model-args load_in_4bit=True,load_in_8bit=True", UsageError,
        ["load_in_4bit and load_in_8bit", "choose one"]),
    "neither true nor false": (GRID + "arrow --model-args load_in_4bit=maybe", UsageError,
        ["load_in_4bit=maybe", "neither True nor False"]),
    "model-args without =": (GRID + "arrow --model-args dtype", UsageError, ["name=value"]),
    "no such device": (GRID + "arrow --device gpu", UsageError, ["device=gpu", "cpu, cuda"]),
    "no batch": (GRID + "arrow --batch-size 0", UsageError, ["batch_size=0", "above 0"]),
    "no such base": (GRID + "arrow --pretrained nowhere/model", HubError,
        ["nowhere/model", "folder"]),
    "no embedded base": (GRID + "arrow --pretrained embedded:smollm3", UsageError,
        ["'smollm3'", "smollm2-135m-instruct"]),
    "an argument twice": (GRID + "arrow;top_k=2;top_k=3", UsageError, ["top_k is given twice"]),
    "a batch size of one setting": (GRID + "base,arrow;batch_size=0", UsageError,
        ["setting arrow;batch_size=0", "above 0"]),
    "an endless batch size": (GRID + "arrow;batch_size=" + "9" * 4400, UsageError, ["above 0"]),
    "the scoring of one setting": (GRID + "base,arrow;scoring=pakced", UsageError,
        ["setting arrow;scoring=pakced", "'packed'"]),
    "no tasks": (GRID.replace("gks_demo_goals_en", ",") + "base", UsageError,
        ["--tasks names nothing"]),
    "an unknown level": (GRID + "arrow;level=word", UsageError, ["level=word", "token, sequence"]),
    "density above 1": (GRID + "merge:ties;density=2", UsageError, ["density=2", "at most 1"]),
    "an unknown inner merge": (GRID + "merge:knots;inner=x", UsageError, ["inner=x", "ties"]),
    "rank 0 of a merge": (GRID + "merge:svd;rank=0", UsageError, ["rank=0", "at least 1"]),
    "an unknown stand-in": (GRID + "gks:avg;general=rotted", UsageError,
        ["general=rotted", "rotated"]),
    "an unknown expert as stand-in": (GRID + "gks:avg;general=expert:x", UsageError,
        ["general=expert:x", "no such expert"]),
    "a seed below 0": (GRID + "gks:avg;general=random;seed=-1", UsageError, ["seed=-1"]),
    "an infinite scale": (GRID + "gks:avg;scale=inf", UsageError, ["scale=inf", "a number"]),
    "no target language": (GRID + "gks:avg;rule=cross_lingual", UsageError, ["target=de"]),
    "a joint rule that subtracts": (GRID + "gks:en;rule=pico", UsageError, ["subtract=none"]),
    "a short name out of the folder": (GRID + "../x=arrow", UsageError, ["'../x' cannot be"]),
    "a short name of Windows": (GRID + "con=arrow", UsageError, ["'con' cannot be"]),
    "a setting twice": (GRID + "arrow,arrow", UsageError, ["arrow"]),
    "no such command": ("gird", UsageError, ["No such command 'gird'", "gks-eval --help"]),
    "a missing option": ("grid --settings base", UsageError, ["'--tasks'", "gks-eval grid --help"]),
    "an unknown option": (GRID + "base --limti 3", UsageError, ["--limti", "--limit"]),
    "no number": (GRID + "base --limit few", UsageError, ["--limit", "number"]),
    "items and a limit": (GRID + "base --samples {}", UsageError, ["--samples", "--limit"]),
    "items that are no JSON": (ITEMS + "goals_en", UsageError, ["--samples 'goals_en'", "JSON"]),
    "items below the first": (ITEMS + '{"a":[-1]}', UsageError, ["--samples: a", "counted from 0"]),
    "an item twice": (ITEMS + '{"a":[3,3]}', UsageError, ["--samples: a", "distinct"]),
    "output cannot be made": (GRID.replace("out ", "recipe.txt/out ") + "base", ResourceError,
        ["recipe.txt"], text("recipe.txt", "a file")),
}  # fmt: skip

VECTORS = {
    "not prepared": (LibraryError, ["no prepared vectors for router=phatgoose", "make them with"],
        lambda f: shutil.rmtree(f / "library/prepared")),
    "cut short": (LibraryError, ["vectors.safetensors cannot be read", "prepare` again"],
        cut_short("library/prepared/phatgoose/*.safetensors")),
    "a folder": (LibraryError, ["vectors.safetensors cannot be read", "Is a directory"],
        lambda f: ((f / PREPARED).unlink(), (f / PREPARED).mkdir())),
    "a link to itself": (LibraryError, ["vectors.safetensors cannot be read", "symbolic links"],
        lambda f: ((f / PREPARED).unlink(), (f / PREPARED).symlink_to("vectors.safetensors"))),
    "no record": (LibraryError, ["no prepared vectors for router=phatgoose"],
        lambda f: (f / PREPARED).with_name("prepared.json").unlink()),
    "half a record": (LibraryError, ["prepared.json is broken or only half", "prepare` again"],
        cut_short("library/prepared/phatgoose/*.json")),
    "another router's": (LibraryError, ["holds the vectors of router=mean_activation"],
        lambda f: edit_json((f / PREPARED).with_name("prepared.json"), router="mean_activation")),
    "another file than recorded": (LibraryError, ["is not the file that prepared.json"],
        lambda f: edit_json((f / PREPARED).with_name("prepared.json"), sha256="0" * 64)),
}  # fmt: skip

PREPARE = "prepare library --router phatgoose"
ROWS = "".join(f" --data {name}=rows.jsonl" for name in ("alpha", "beta", "gamma"))
RECORDS = {
    "half a record of a setting": (GRID + "base", ResultsError,
        ["cell.json is broken or only half", "delete out/base to run it again"],
        text("out/base/cell.json", '{"request": ')),
    "a record of another form": (GRID + "base", ResultsError,
        ["cell.json is no record of a finished setting: request.tasks", "delete out/base"],
        text("out/base/cell.json", '{"label": "base", "request": {"setting": {}, "arguments": {},'
             '"library": null, "base": {}, "model_arguments": {}, "tasks": 7, "evaluation": {}}}')),
    "a folder without a record": (GRID + "base", ResultsError, ["holds no finished setting"],
        text("out/base/notes.txt", "x")),
    "a broken overlap in a report": ("report old new", ResultsError, ["overlap.json", "n: "],
        both(runs(), text("old/overlap.json", '{"schema": "gks_eval.overlap/1", "library": "l",'
                          '"n": 0, "tasks": {}}'))),
    "controls of another version in a report": ("report old new", ResultsError,
        ["controls.json is no file of controls: schema", "delete it"],
        both(runs(), text("old/controls.json", '{"schema": "gks_eval.controls/9"}'))),
    "half the looks of a gate in a report": ("report old new", ResultsError,
        ["looks.json is broken or only half written"], both(runs(), text("old/looks.json", "{"))),
    "a setting's profile in a report": ("report old new", ResultsError,
        ["profile.json is no profile of a setting: seconds"],
        both(runs(), text("old/profile.json", '{"seconds": -1}'))),
    "a gate of no tasks": (
        "gate --run arrow --library library --baseline old --output out --tasks ,", 2,
        ["could not judge: --tasks names nothing"], runs()),
    "a baseline's results are a folder": (
        "cite library/results_1.json", ResultsError, ["results_1.json", "holds no results_"],
        lambda f: (f / "library/results_1.json").mkdir()),
    "prepare for a router that needs nothing": ("prepare library --router arrow" + ROWS,
        UsageError, ["--router arrow prepares nothing", "known: mean_activation, phatgoose"],
        text("rows.jsonl", '{"source": "a", "target": "b"}\n')),
    "prepare without data": (PREPARE, UsageError, ["no recipe.yaml", "--data"]),
    "prepare for some experts": (PREPARE + ROWS, UsageError, ["no rows for delta"],
        text("rows.jsonl", '{"source": "a", "target": "b"}\n')),
    "prepare from a folder": (PREPARE + ROWS + " --data delta=library", DataError,
        ["library cannot be read: Is a directory"],
        text("rows.jsonl", '{"source": "a", "target": "b"}\n')),
    "prepare at a huge rate": (PREPARE + " --learning-rate 1e38", UsageError, ["10000"]),
    "prepare with a huge seed": (PREPARE + " --seed 99999999999", UsageError, ["2147483647"]),
}  # fmt: skip

EXPORT = "export library --output new --setting "
EXPORTS = {
    "the base alone": (EXPORT + "base", UsageError, ["base has no adapter", "such as gks:avg"]),
    "no such setting": (EXPORT + "arow", UsageError, ["'arow' is unknown", "did you mean 'arrow'"]),
    "an argument of the model": (EXPORT + "arrow;dtype=float32", UsageError, ["dtype", "leave it"]),
    "no such library": ("export librari --output new --setting arrow", LibraryError,
        ["'librari'", "known: "]),
    "rank 0": (EXPORT + "arrow --rank 0", UsageError, ["'--rank'", "export --help"]),
    "no output": ("export library --setting arrow", UsageError, ["--output"]),
    "a folder with something else": (EXPORT + "arrow", LibraryError,
        ["new is not empty and holds no export", "another folder"], text("new/notes.txt", "x")),
    "a file": (EXPORT + "arrow", UsageError, ["new is a file", "name a folder"], text("new", "x")),
    "a name of Windows": (EXPORT + "arrow", LibraryError, ["'nul'", "Windows", "another name"],
        manifest(experts={"nul": "experts/alpha"})),
    "names that differ in case": (EXPORT + "arrow", LibraryError, ["'Beta'", "ignore case"],
        manifest(experts={"beta": "experts/beta", "Beta": "experts/alpha"})),
    "another licence": (EXPORT + "arrow --license mit", UsageError,
        ["license=mit", "apache-2.0", "leave it out"], manifest(license="apache-2.0")),
    "unequal ranks": (EXPORT + "gks:en", CompatibilityError, ["needs one rank"], unequal_ranks),
}  # fmt: skip

TASKS = {
    "unknown task": (GRID.replace("goals_en", "goals_eng") + "base", UsageError,
        ["gks_demo_goals_eng", "did you mean 'gks_demo_goals_en'"]),
    "data are nowhere": (GRID.replace("gks_demo_goals_en", "gks_xnli_de") + "base", HubError,
        ["'facebook/xnli', subset 'de'", "go online"]),
    "examples where there are none": (GRID + "base --num-fewshot 2", UsageError,
        ["--num_fewshot 2", "no split besides"]),
    "unknown task in lint": ("lint gks_piqqa", UsageError,
        ["'gks_piqqa'", "did you mean 'gks_piqa'?"]),
    "faulty items": ("lint gks_piqa", DataError, ["faulty items: 1", "1 of 1 tasks"], faulty_piqa),
    "run with a folder that is none": ("run --tasks x --include_path nowhere", UsageError,
        ["--include_path nowhere is not a folder"]),
    "overlap without a recipe": ("library overlap library --tasks gks_demo_goals_en", UsageError,
        ["library library has no recipe.yaml", "--recipe"]),
    "accuracy without a recipe": ("routes --library library --accuracy", UsageError,
        ["library library has no recipe.yaml", "--recipe"]),
    "routes with a folder that is none": (
        "routes --library library --task x --include-path nowhere", UsageError,
        ["--include-path nowhere is not a folder"]),
    "items that are not there": (
        'run --model dummy --tasks gks_demo_goals_en --samples {"gks_demo_goals_en":[999]}',
        UsageError, ["lm-eval stopped: ", "--samples", "LMEVAL_LOG_LEVEL=DEBUG"]),
    "run without a folder": ("run --tasks x --include_path", UsageError, ["needs a folder"]),
}  # fmt: skip

RECIPES = {
    "no such recipe": ("train nowhere", UsageError, ["nowhere is not a recipe", "smollm2-demo"]),
    "faults of a recipe": (TRAIN, ConfigError,
        ["recipe.yaml has 2 faults", "adapter.rnak is not a known key; did you mean 'rank'",
         "seed: "],
        recipe(adapter={"targets": ["o_proj"], "rnak": 4}, seed=-1)),
    "nothing to train": (TRAIN, ConfigError, ["recipe.yaml", "experts"], recipe(experts=None)),
    "no such data file": (TRAIN, DataError, ["nowhere.jsonl", "check the path"],
        recipe(experts={"members": {"one": {"file": "nowhere.jsonl"}}})),
    "a column that is missing": (TRAIN, DataError, ["rows.jsonl", "target", "question"],
        both(text("rows.jsonl", '{"source": "a", "question": "b"}\n'), recipe())),
    "no rows": (TRAIN, DataError, ["rows.jsonl"], both(text("rows.jsonl", ""), recipe())),
    "rows that are no JSON": (TRAIN, DataError, ["rows.jsonl", "line 2"],
        both(text("rows.jsonl", '{"source": "a", "target": "b"}\n{"sour\n'), recipe())),
    "another encoding": (TRAIN, DataError, ["rows.jsonl", "UTF-8"],
        both(text("rows.jsonl", b'{"source": "\xff", "target": "b"}\n'), recipe())),
    "only what is not there": (TRAIN + " --only two", UsageError, ["two", "one"], recipe()),
    "nothing to convert": ("convert bin nowhere", LibraryError, ["nowhere", "check the path"]),
    "a pickle that runs code": ("convert bin bad", LibraryError, ["bad/adapter_model.bin"],
        both(text("bad/adapter_model.bin", pickle.dumps(print)),
             text("bad/adapter_config.json", '{"peft_type": "LORA"}'))),
    "no experts to convert": ("convert mttl nowhere made --base-model x", LibraryError,
        ["nowhere", "check the path"]),
    "no cluster file": (TRAIN, ConfigError, ["clusters.yaml does not exist", "check the path"],
        clustered()),
    "an empty cluster": (TRAIN, ConfigError, ["clusters.yaml: b has no tasks; remove it"],
        both(clustered(), text("clusters.yaml", "clusters: {a: [x], b: []}\n"))),
    "clusters of another recipe": (TRAIN, DataError,
        ["no row for experts/b with task_name = y; take it out of"],
        both(clustered(), text("clusters.yaml", "clusters: {a: [x], b: [x1, y]}\n"))),
    "clusters and a where of one column": (TRAIN, ConfigError,
        ["experts.data.where.task_name", "take it out of `where`"],
        clustered(where={"task_name": "x"})),
    "a manifest in the place of clusters": ("cluster library library/library.yaml --k 2",
        UsageError, ["library.yaml is no cluster file and would be lost"]),
    "more clusters than experts": ("cluster library found.yaml --k 9", UsageError, ["9", "4"]),
}  # fmt: skip

RESULTS = {
    "no such run": ("compare nowhere new", ResultsError, ["nowhere does not exist", "path"]),
    "no results in a folder": ("report library", ResultsError, ["library"]),
    "nothing to cite": ("cite library", ResultsError, ["library holds no results_"]),
    "half a file to cite": ("cite library", ResultsError, ["results_1.json", "half written"],
        text("library/results_1.json", "{")),
    "half a results file": (COMPARE, ResultsError, ["new/results_", "half written (line "],
        runs(cut_short("results_*"))),
    "half a samples file": (COMPARE, ResultsError, ["new/samples_a_"],
        runs(cut_short("samples_*"))),
    "results of something else": (COMPARE, ResultsError, ["new/results_"],
        runs(lambda f: next(f.glob("results_*")).write_text('{"a": 1}'))),
    "other versions of a task": (COMPARE, ResultsError, ["version", "--force"], runs(version=2.0)),
    "another number of shots": (COMPARE, ResultsError, ["shots", "--force"], runs(shots=5)),
    "no such baseline": (COMPARE + " --baseline nwe", UsageError,
        ["--baseline", "'nwe'", "did you mean 'new'"], runs()),
    "no such baseline in a report": ("report old new --baseline nwe", UsageError,
        ["--baseline", "'nwe'", "did you mean 'new'"], runs()),
    "no such metric": (COMPARE + " --metric acd", UsageError,
        ["--metric", "'acd'", "did you mean 'acc'"], runs()),
    "no such task in the runs": (COMPARE + " --tasks bb", UsageError,
        ["--tasks", "'bb'", "known: a."], runs()),
    "no such table": ("paper --plan phi3_englsh", UsageError, ["'phi3_englsh'", "phi3_english"]),
    "nothing of the paper": ("paper --results arrow=old", ResultsError, ["gks_paper_", "--family"],
        runs()),
    "an unknown format": (COMPARE + " --format pdf", UsageError, ["'pdf'", "markdown"], runs()),
}  # fmt: skip

POLICIES = {
    "no such policy": (GATE, 2, ["could not judge", "gate.yaml does not exist"], runs()),
    "faults of a policy": (GATE, 2,
        ["could not judge", "gate.yaml has 2 faults", "line 1: alhpa is not a known key",
         "did you mean 'alpha'", "line 2: max_drop: "],
        both(runs(), text("gate.yaml", "alhpa: 0.1\nmax_drop: much\n"))),
    "alpha above a half": (GATE, 2, ["could not judge", "line 1: alpha: "],
        both(runs(), text("gate.yaml", "alpha: 0.7\n"))),
    "a policy that is a bomb": (GATE, 2, ["could not judge", "aliases"],
        both(runs(), text("gate.yaml", aliases()))),
    "a verdict that cannot be written": (GATE.replace("--policy gate.yaml", "--json old/x/y/z"), 2,
        ["could not judge", "old/x"], both(runs(), text("old/x", "a file"))),
}  # fmt: skip


def _cases() -> dict[str, Case]:
    adapters = {name: (GRID + "gks:avg", *row) for name, row in ADAPTERS.items()}
    vectors = {
        name: (GRID + "phatgoose", error, parts, both(prepared, spoil))
        for name, (error, parts, spoil) in VECTORS.items()
    }
    wings: dict[str, dict[str, Any]] = {
        "libraries": LIBRARIES, "adapters": adapters, "arguments": ARGUMENTS, "tasks": TASKS,
        "vectors": vectors, "records": RECORDS, "exports": EXPORTS, "recipes": RECIPES,
        "results": RESULTS, "policies": POLICIES,
    }  # fmt: skip
    return {
        f"{wing}: {name}": Case(wing, command, kind, tuple(parts), *spoil)
        for wing, rows in wings.items()
        for name, (command, kind, parts, *spoil) in rows.items()
    }


CASES = _cases()
# What shows only when lm-eval builds a task, which it does with the model at hand.
LATE = [CASES["tasks: data are nowhere"], CASES["tasks: examples where there are none"]]


def test_the_table_is_large_and_spans_all_wings_and_errors() -> None:
    assert len(CASES) >= 100
    wings = [case.wing for case in CASES.values()]
    assert min(wings.count(wing) for wing in set(wings)) >= 5
    assert len(set(wings)) == 10
    assert {case.exit_code for case in CASES.values()} == set(range(2, 10))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models whose weights were read."""
    from transformers import AutoModelForCausalLM

    read: list[str] = []
    load = AutoModelForCausalLM.from_pretrained

    def from_pretrained(name: Any, *args: Any, **options: Any) -> Any:
        if options.get("device_map") != "meta":
            read.append(str(name))
        return load(name, *args, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    return read


# The libraries' own warnings; what counts here is what is printed.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_bad_input(
    case: Case,
    tmp_path: Path,
    tiny_library: Callable[..., Path],
    loads: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from lm_eval import tasks

    pack_only = functools.partial(tasks.TaskManager, include_defaults=False)
    shutil.copytree(tiny_library("phi3"), tmp_path / "library")
    case.spoil(tmp_path)
    loads.clear()  # the fixture and the spoiling may have read a tiny base
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    # lm-eval's own thousands of tasks take seconds to read, and no row needs them.
    monkeypatch.setattr(tasks, "TaskManager", pack_only)
    # lm-eval's log handlers keep the stderr of the row that made them, which is closed by now.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.setattr(sys, "argv", ["gks-eval", *re.split(r" +", case.command)])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr().err
    sentences = [line for line in printed.splitlines() if line.startswith("gks-eval: error: ")]
    assert len(sentences) == 1, printed
    assert printed.endswith(sentences[0] + "\n")
    assert "Traceback" not in printed
    assert sentences[0].isprintable()
    for part in case.parts:
        assert part in sentences[0], sentences[0]
    assert ended.value.code == case.exit_code, sentences[0]
    assert not loads or case in LATE, "the base's weights were read before the sentence"
