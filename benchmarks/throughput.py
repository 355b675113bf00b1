"""Texts a second, latency and share of the machine's limit: skmft against what one would use instead, in one run.

Same weights, texts, batch size and longest text on every side, batches padded to their longest row. The methods take turns,
and the median of the repeats is told. The limit is the best rate of a matrix product of the same type in the same run;
operations count the encoder's products on real tokens (attention included), three times for training.

    python benchmarks/throughput.py                           # CPU, about half an hour on two cores
    python benchmarks/throughput.py --tasks reviews --quick   # 5 minutes
    python benchmarks/throughput.py --device cuda --encoder base --batch 32 256

Writes results/throughput.md and .json (with the name of the device, unless that is the CPU).
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from skorch import NeuralNet
from skorch.callbacks import Callback, EpochTimer
from tasks import CODE, HERE, load, machine, paper, text_columns

from skmft import MetaFineTunedClassifier
from skmft.networks import DEFAULT_MODEL, find_encoder, load_tokenizer, reads_token_types
from skmft.training import has_native_bfloat16

MAX_LENGTH = 128
TASKS = {"reviews": "amazon", "tweets": "snippets", "pairs": "mnli"}


class Stopped(Exception):
    """Raised where stage 1 is done."""


class Stop(Callback):
    """Ends a fit at the start of stage 2."""

    def on_train_begin(self, net, **kwargs):
        raise Stopped


class EpochClock(transformers.TrainerCallback):
    """Seconds of the Trainer's epoch alone, as skorch's timer counts them: what comes before the first step is left out."""

    def on_epoch_begin(self, args, state, control, **kwargs):
        synchronize()
        self.start = time.perf_counter()

    def on_epoch_end(self, args, state, control, **kwargs):
        synchronize()
        self.seconds = time.perf_counter() - self.start


# ------------------------------------------------------------------ what is run


class Bench:
    """Rows of a task, an encoder, and the ways to run one through the other."""

    def __init__(self, task: str, n_texts: int, n_train: int, folder: str, batch: int, device: str) -> None:
        rows = load(TASKS[task])
        if task == "tweets":
            rows = rows[rows["domain"] == "tweets"]
        rows = rows.sample(max(n_texts, n_train), random_state=0)
        columns = text_columns(rows)
        self.y = rows["y"].to_numpy()
        self.domains = rows["domain"].to_numpy() if task != "tweets" else np.arange(len(rows)) % 4
        self.X: list[Any] = rows["text"].tolist() if len(columns) == 1 else list(zip(*(rows[c] for c in columns)))
        self.n_texts, self.n_train, self.batch, self.device, self.folder = n_texts, n_train, batch, device, folder
        self.labels = np.unique(self.y, return_inverse=True)[1].tolist()
        self.dtype = torch.bfloat16 if has_native_bfloat16(torch.device(device)) else torch.float32
        self.fitted = self.ours(meta_epochs=1, adaptation=None)
        self.fitted.fit(self.X[:64], self.y[:64], domains=self.domains[:64])
        self.lengths = self.fitted._tokenize(self.X)[0].lengths

    def ours(self, **params: Any) -> MetaFineTunedClassifier:
        return paper(
            self.folder, max_length=MAX_LENGTH, random_state=0, batch_size=self.batch, device=self.device, **params
        )

    def operations(self, n: int) -> float:
        """Floating-point operations of a forward pass over the first n texts."""
        config = transformers.AutoConfig.from_pretrained(self.folder)
        h, f, tokens = config.hidden_size, config.intermediate_size, self.lengths[:n].astype(float)
        return float((config.num_hidden_layers * tokens * (2 * (4 * h * h + 2 * h * f) + 4 * tokens * h)).sum())

    # --- inference: callables, and how many texts they run (the slow pipelines a quarter)

    def sentence_transformer(self, dtype: torch.dtype, batch: int, n: int) -> Callable[[], Any]:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(self.folder, device=self.device, model_kwargs={"dtype": dtype})
        model.max_seq_length = MAX_LENGTH
        model.tokenizer.backend_tokenizer.no_padding()
        return lambda: model.encode(self.X[:n], batch_size=batch)

    def inference(self, best_batch: int) -> dict[str, tuple[Callable[[], Any], int]]:
        n, X = self.n_texts, self.X[: self.n_texts]

        def pipeline(dtype: torch.dtype) -> Callable[[], Any]:
            model = transformers.AutoModelForSequenceClassification.from_pretrained(self.folder, dtype=dtype)
            tokenizer = load_tokenizer(find_encoder(self.folder), MAX_LENGTH)
            pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device=self.device)
            some: list[Any] = X[: n // 4]
            some = [dict(zip(("text", "text_pair"), x)) for x in some] if isinstance(X[0], tuple) else some
            return lambda: pipe(some, batch_size=self.batch, truncation=True, max_length=MAX_LENGTH)

        def in_float32(call: Callable[[], Any]) -> Callable[[], Any]:
            def run() -> None:
                self.fitted.set_params(precision="float32")
                call()
                self.fitted.set_params(precision="auto")

            return run

        calls = {
            "sentence-transformers encode, float32": self.sentence_transformer(torch.float32, self.batch, n),
            "sentence-transformers encode, bfloat16": self.sentence_transformer(torch.bfloat16, self.batch, n),
            "sentence-transformers encode, bfloat16, its best batch": self.sentence_transformer(
                torch.bfloat16, best_batch, n
            ),
            "pipeline text-classification, float32": pipeline(torch.float32),
            "pipeline text-classification, bfloat16": pipeline(torch.bfloat16),
            "skmft transform": lambda: self.fitted.transform(X),
            "skmft predict": lambda: self.fitted.predict(X),
            "skmft stage 1 (fit up to stage 2)": self.stage1,
            "skmft transform, float32": in_float32(lambda: self.fitted.transform(X)),
        }
        quarter = {name: n // (4 if name.startswith("pipeline") else 1) for name in calls}
        skipped = "bfloat16" if self.dtype == torch.float32 else "no such name"
        return {name: (call, quarter[name]) for name, call in calls.items() if skipped not in name}

    def stage1(self) -> None:
        n = self.n_texts
        try:
            clf = self.ours(meta_epochs=1, adaptation=None, callbacks=[Stop()])
            clf.fit(self.X[:n], self.y[:n], domains=self.domains[:n])
        except Stopped:
            return

    # --- training: callables that return seconds of one epoch over the first n_train texts, nothing else counted

    def training(self, workers: int) -> dict[str, Callable[[], float]]:
        best = {"train_sampling_strategy": "group_by_length", "dataloader_num_workers": workers}
        if self.dtype == torch.bfloat16:
            best["bf16"] = True
        return {
            "Trainer, its defaults": self.trainer,
            "Trainer at its best": lambda: self.trainer(**best),
            "Trainer at its best, no dropout in attention": lambda: self.trainer(attention_dropout=0.0, **best),
            "plain skorch loop": self.skorch_loop,
            "skmft stage 2": self.stage2,
            "skmft stage 3": self.stage3,
            "skmft stage 2, float32": lambda: self.stage2(precision="float32"),
        }

    def stage2(self, **params: Any) -> float:
        n = self.n_train
        clf = self.ours(meta_epochs=1, adaptation=None, **params).fit(self.X[:n], self.y[:n], domains=self.domains[:n])
        return next(h["seconds"] for h in clf.history_ if h["stage"] == "meta")

    def stage3(self) -> float:
        n, name = self.n_train, self.domains[0]
        self.fitted.set_params(adaptation="full", adaptation_epochs=1)
        self.fitted.net_.module_.to(self.device)  # where `fit` leaves it; other methods' memory does not hold it
        self.fitted.adapt(self.X[:n], self.y[:n], domain=name)
        self.fitted.net_.module_.to("cpu")
        return self.fitted.history_[-1]["seconds"]

    def model_and_rows(self, **config: Any) -> tuple[Any, Any, list[dict[str, Any]]]:
        n = self.n_train
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            self.folder, num_labels=len(set(self.labels)), dtype=torch.float32, **config
        )
        tokenizer = load_tokenizer(find_encoder(self.folder), MAX_LENGTH)
        parts = [list(part) for part in zip(*self.X[:n])] if isinstance(self.X[0], tuple) else [self.X[:n]]
        encoded = tokenizer(
            *parts, truncation=True, max_length=MAX_LENGTH, return_token_type_ids=reads_token_types(model.base_model)
        )
        return model, tokenizer, [{**{k: v[i] for k, v in encoded.items()}, "labels": self.labels[i]} for i in range(n)]

    def trainer(self, attention_dropout: float | None = None, **arguments: Any) -> float:
        """The Hugging Face Trainer; nothing evaluated, saved or reported."""
        config = {} if attention_dropout is None else {"attention_probs_dropout_prob": attention_dropout}
        model, tokenizer, rows = self.model_and_rows(**config)
        with tempfile.TemporaryDirectory() as folder:
            trainer = transformers.Trainer(
                model,
                transformers.TrainingArguments(
                    output_dir=folder,
                    per_device_train_batch_size=self.batch,
                    num_train_epochs=1,
                    save_strategy="no",
                    logging_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                    use_cpu=self.device == "cpu",
                    **arguments,
                ),
                train_dataset=rows,
                data_collator=transformers.DataCollatorWithPadding(tokenizer),
            )
            trainer.remove_callback(transformers.PrinterCallback)
            clock = EpochClock()
            trainer.add_callback(clock)
            trainer.train()
            return clock.seconds

    def skorch_loop(self) -> float:
        """A skorch net around a transformers model, as one writes it: float32, shuffled rows, AdamW."""
        model, tokenizer, rows = self.model_and_rows()

        class Logits(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, **batch: torch.Tensor) -> torch.Tensor:
                return self.model(**batch).logits

        class Rows(torch.utils.data.Dataset):
            def __len__(self) -> int:
                return len(rows)

            def __getitem__(self, i: int) -> dict[str, Any]:
                return rows[i]

        def collate(some: list[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
            batch = dict(tokenizer.pad(some, return_tensors="pt"))
            return batch, batch.pop("labels")

        net = NeuralNet(
            Logits,
            criterion=torch.nn.CrossEntropyLoss,
            optimizer=torch.optim.AdamW,
            lr=5e-5,
            max_epochs=1,
            batch_size=self.batch,
            iterator_train__shuffle=True,
            iterator_train__collate_fn=collate,
            train_split=None,
            callbacks=[("timer", EpochTimer())],
            device=self.device,
            verbose=0,
        )
        net.fit(Rows(), y=None)
        return net.history[-1, "dur"]


# ------------------------------------------------------------------ how it is measured


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start


def matrix_product_limit(device: str, dtype: torch.dtype) -> float:
    """Best rate of a matrix product, in operations a second."""
    best = 0.0
    for n in (1024, 2048, 4096) if device == "cpu" else (4096, 8192):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        times = [seconds(partial(torch.mm, a, b)) for _ in range(8)]
        best = max(best, 2 * n**3 / min(times))
    return best


def in_turn(calls: dict[str, Callable[[], Any]], repeats: int, timed: bool) -> tuple[dict, dict]:
    """Seconds of every call (its own answer if not `timed` here), the calls taking turns after a round that is not counted;

    and the most GPU memory of each in bytes, over what was held before it.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    memory: dict[str, int] = {}
    for repeat in range(-1, repeats):
        for name, call in calls.items():
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated()
            took = seconds(call) if timed else call()
            if torch.cuda.is_available():
                memory[name] = torch.cuda.max_memory_allocated() - held
            if repeat >= 0:
                times[name].append(took)
    return times, memory


def best_workers(bench: Bench, batch: int) -> int:
    """Number of the Trainer's data loader workers that is fastest here, of 0, 1, 2."""
    n, bench.n_train = bench.n_train, min(4 * batch, bench.n_train)
    bf16 = {"bf16": True} if bench.dtype == torch.bfloat16 else {}
    took = {
        w: min(
            bench.trainer(train_sampling_strategy="group_by_length", dataloader_num_workers=w, **bf16) for _ in range(2)
        )
        for w in (0, 1, 2)
    }
    bench.n_train = n
    return min(took, key=took.get)


def best_batch(bench: Bench, batch: int) -> int:
    """Batch with which sentence-transformers is fastest here in its narrow type: the asked one, its half or its quarter."""
    n = min(bench.n_texts, 16 * batch)
    calls = {b: bench.sentence_transformer(bench.dtype, b, n) for b in (batch, batch // 2, batch // 4) if b}
    times, _ = in_turn(calls, 3, timed=True)
    return min(times, key=lambda b: statistics.median(times[b]))


def latency(bench: Bench, repeats: int) -> dict[str, list[float]]:
    """Median and 99th percentile of `predict`, in milliseconds: one row and 32, meta-learner and a domain's model."""
    name = bench.domains[0]
    bench.fitted.set_params(adaptation="full", adaptation_epochs=1).adapt(bench.X[:64], bench.y[:64], domain=name)
    out = {}
    for rows, domain in ((1, None), (1, name), (32, None), (32, name)):
        took = [
            1000 * seconds(partial(bench.fitted.predict, bench.X[i : i + rows], domains=domain))
            for i in range(repeats if rows == 1 else max(20, repeats // 5))
        ]
        who = "meta-learner" if domain is None else "a domain's own model"
        out[f"{rows} row{'s' * (rows > 1)}, {who}"] = [float(np.quantile(took, q)) for q in (0.5, 0.99)]
    return out


def measure(task: str, args: argparse.Namespace, folder: str, batch: int) -> dict[str, Any]:
    n_texts, n_train = args.texts, args.steps * batch
    bench = Bench(task, n_texts, n_train, folder, batch, args.device)
    dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, bench.dtype)}
    limit = {name: matrix_product_limit(args.device, dtype) for name, dtype in dtypes.items()}
    workers, smaller = best_workers(bench, batch), best_batch(bench, batch)
    calls = bench.inference(smaller)
    inference, _ = in_turn({name: call for name, (call, _) in calls.items()}, args.repeats, timed=True)
    sizes = {name: n for name, (_, n) in calls.items()}
    del calls  # the peers' models
    bench.fitted.net_.module_.to("cpu")
    training, memory = in_turn(bench.training(workers), args.repeats, timed=False)
    result: dict[str, Any] = {
        "task": task, "batch": batch, "texts": n_texts, "training_texts": n_train, "workers": workers, "limit": limit,
        "best_batch": smaller, "tokens": float(bench.lengths.mean()),
        "latency_ms": latency(bench, args.latency_repeats), "rows": [],
    }  # fmt: skip
    sizes |= dict.fromkeys(training, n_train)
    for kind, table in (("inference", inference), ("training", training)):
        for name, took in table.items():
            n = sizes[name]
            operations = bench.operations(n) * (3 if kind == "training" else 1)
            low = "float32" in name or name in ("Trainer, its defaults", "plain skorch loop")
            precision = "float32" if low else str(bench.dtype).removeprefix("torch.")
            median = statistics.median(took)
            row = {
                "kind": kind,
                "name": name,
                "texts": n,
                "texts_a_second": n / median,
                "precision": precision,
                "seconds": took,
            }
            row["share_of_limit"] = operations / median / limit[precision]
            if kind == "training" and memory:
                row["peak_memory_bytes"] = memory[name]
            result["rows"].append(row)
    return result


# ------------------------------------------------------------------ what is told

BASES = {
    "inference": [
        "sentence-transformers encode, float32",
        "sentence-transformers encode, bfloat16",
        "sentence-transformers encode, bfloat16, its best batch",
    ],
    "training": ["Trainer, its defaults", "Trainer at its best"],
}


def report(results: list[dict[str, Any]], args: argparse.Namespace, where: str) -> str:
    lines = [
        "# Throughput",
        "",
        f"`{args.command}`. Encoder: {args.encoder}. Longest text {MAX_LENGTH} tokens, padding to the longest of a batch on "
        f"every side; median (least to most) of {args.repeats} runs in turn. Training: one epoch over the texts named, "
        "tokenizing, loading and setting up not counted on any side. Inference: tokenizing counted on all; the pipelines run a "
        "quarter of the texts; stage 1 also counts loading the weights. skmft without mention of a precision runs in bfloat16 "
        "where the device multiplies it; its batches in inference hold tokens, not rows (2,048 on a CPU), so "
        "sentence-transformers is also shown with the batch that is fastest here, of the asked one, its half and its quarter. "
        "The Trainer at its best: bf16, batches of similar length, fused AdamW (its default), the fastest of 0, 1, 2 workers; "
        "skmft trains without dropout inside attention, so the Trainer is also shown without. Training has the paper's losses, "
        "without the contrastive one of the defaults. "
        f"Machine: {where}.",
    ]
    for r in results:
        limits = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s ({name})" for name, rate in r["limit"].items())
        lines += [
            "",
            f"## {r['task']}, batch {r['batch']}",
            "",
            f"{r['texts']} texts of {r['tokens']:.0f} tokens on average, {r['training_texts']} of them in training; the "
            f"Trainer's workers: {r['workers']}; best batch of sentence-transformers: {r['best_batch']} rows. "
            f"Best matrix product: {limits}.",
        ]
        for kind, bases in BASES.items():
            rows = {row["name"]: row for row in r["rows"] if row["kind"] == kind}
            bases = [b for b in bases if b in rows]
            has_memory = any("peak_memory_bytes" in row for row in rows.values())
            header = [
                kind,
                "texts/s",
                *(f"against {b}" for b in bases),
                "share of the limit",
                *["peak GiB"] * has_memory,
            ]
            lines += ["", f"| {' | '.join(header)} |", "| --- " * len(header) + "|"]
            for name, row in rows.items():
                n, rate, took = row["texts"], row["texts_a_second"], row["seconds"]
                cells = [name, f"{rate:.1f} ({n / max(took):.1f} to {n / min(took):.1f})"]
                cells += [f"{rate / rows[b]['texts_a_second']:.2f}" for b in bases]
                cells += [f"{row['share_of_limit']:.0%} of {row['precision']}"]
                cells += [f"{row['peak_memory_bytes'] / 2**30:.2f}"] if has_memory else []
                lines.append(f"| {' | '.join(cells)} |")
        lines += ["", "| `predict`, latency | p50, ms | p99, ms |", "| --- | --- | --- |"]
        lines += [f"| {name} | {p50:.1f} | {p99:.1f} |" for name, (p50, p99) in r["latency_ms"].items()]
    return "\n".join(lines) + "\n"


def bert_base_shape() -> str:
    """Folder of an encoder of BERT-base's shape with random weights and MiniLM's tokenizer (speed needs no more)."""
    folder = Path(tempfile.gettempdir()) / "skmft-bert-base-shape"
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        transformers.BertModel(transformers.BertConfig()).save_pretrained(folder)
        load_tokenizer(find_encoder(DEFAULT_MODEL), MAX_LENGTH).save_pretrained(folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument(
        "--encoder", default="minilm", help="minilm, base (BERT-base's shape, random weights), or a folder"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=12, help="optimiser steps of a training run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--latency-repeats", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="500 texts, 8 steps, 3 repeats; writes no result")
    args = parser.parse_args()
    if args.quick:
        args.texts, args.steps, args.repeats, args.latency_repeats = 500, 8, 3, 30
    shown = "" if args.device == "cpu" else f" --device {args.device} --encoder {args.encoder}"
    shown = f"--tasks {' '.join(args.tasks)}{shown} --batch {' '.join(map(str, args.batch))}"
    args.command = f"python benchmarks/throughput.py {shown}"
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # the Trainer's, of more workers than cores
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    folder = {"minilm": find_encoder(DEFAULT_MODEL).folder}.get(args.encoder, args.encoder)
    folder = bert_base_shape() if args.encoder == "base" else folder
    where = machine()

    results = []
    for task in args.tasks:
        for batch in args.batch:
            results.append(measure(task, args, folder, batch))
            text = report(results, args, where)
            print(text, flush=True)
            if not args.quick:
                name = "throughput" + ("" if args.device == "cpu" else f"_{args.device.split(':')[0]}")
                (HERE / "results" / f"{name}.md").write_text(text)
                whole = {
                    "command": args.command,
                    "machine": where,
                    "code": CODE,
                    "encoder": args.encoder,
                    "results": results,
                }
                (HERE / "results" / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
