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
import copy
import gc
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lib import engine
from lib import report as lib_report
from lib.cells import code, machine, parser, start
from lib.methods import QUIET
from lib.report import table, write_page
from lib.tasks import load, text_columns

MAX_LENGTH = 128
ENCODE = [f"sentence-transformers encode, {how}" for how in ("float32", "bfloat16", "bfloat16, its best batch")]
BASES = {"inference": ENCODE, "training": ["Trainer, its defaults", "Trainer at its best"]}
TASKS = {"reviews": "amazon", "tweets": "snippets", "pairs": "mnli"}


class Stopped(Exception):
    """Raised at the end of stage 1."""


# ------------------------------------------------------------------ what is run


class Bench:
    """Rows of a task, an encoder, and the ways to run one through the other."""

    def __init__(self, task: str, n_texts: int, n_train: int, folder: str, batch: int, device: str) -> None:
        import torch

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
        self.dtype = torch.bfloat16 if engine.has_native_bfloat16(torch.device(device)) else torch.float32
        self.fitted = self.ours(meta_epochs=1, adaptation=None)
        self.fitted.fit(self.X[:64], self.y[:64], domains=self.domains[:64])
        self.lengths = engine.tokens_of(self.fitted, self.X).lengths

    def ours(self, **params: Any) -> Any:
        own = {"max_length": MAX_LENGTH, "random_state": 0, "batch_size": self.batch, "device": self.device}
        return engine.paper(self.folder, **own, **params)

    def operations(self, n: int) -> float:
        """Floating-point operations of a forward pass over the first n texts."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self.folder)
        h, f, tokens = config.hidden_size, config.intermediate_size, self.lengths[:n].astype(float)
        return float((config.num_hidden_layers * tokens * (2 * (4 * h * h + 2 * h * f) + 4 * tokens * h)).sum())

    # --- inference: callables, and how many texts they run (the slow pipelines a quarter)

    def sentence_transformer(self, dtype: Any, batch: int, n: int) -> Callable[[], Any]:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(self.folder, device=self.device, model_kwargs={"dtype": dtype})
        model.max_seq_length = MAX_LENGTH
        model.tokenizer.backend_tokenizer.no_padding()
        return lambda: model.encode(self.X[:n], batch_size=batch)

    def inference(self, best_batch: int) -> dict[str, tuple[Callable[[], Any], int]]:
        import torch
        import transformers

        n, X = self.n_texts, self.X[: self.n_texts]

        def pipeline(dtype: Any) -> Callable[[], Any]:
            model = transformers.AutoModelForSequenceClassification.from_pretrained(self.folder, dtype=dtype)
            tokenizer = engine.load_tokenizer(engine.find_encoder(self.folder), MAX_LENGTH)
            pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device=self.device)
            some: list[Any] = X[: n // 4]
            some = [dict(zip(("text", "text_pair"), x)) for x in some] if isinstance(X[0], tuple) else some
            return lambda: pipe(some, batch_size=self.batch, truncation=True, max_length=MAX_LENGTH)

        in_float32 = copy.copy(self.fitted).set_params(precision="float32")
        calls = {
            ENCODE[0]: self.sentence_transformer(torch.float32, self.batch, n),
            ENCODE[1]: self.sentence_transformer(torch.bfloat16, self.batch, n),
            ENCODE[2]: self.sentence_transformer(torch.bfloat16, best_batch, n),
            "pipeline text-classification, float32": pipeline(torch.float32),
            "pipeline text-classification, bfloat16": pipeline(torch.bfloat16),
            "skmft transform": lambda: self.fitted.transform(X),
            "skmft predict": lambda: self.fitted.predict(X),
            "skmft stage 1 (fit up to stage 2)": self.stage1,
            "skmft transform, float32": lambda: in_float32.transform(X),
        }
        return {
            name: (call, n // 4 if name.startswith("pipeline") else n)
            for name, call in calls.items()
            if self.bf16 or "bfloat16" not in name
        }

    def stage1(self) -> None:
        from skorch.callbacks import Callback

        class Stop(Callback):
            def on_train_begin(self, net: Any, **kwargs: Any) -> None:
                raise Stopped

        n = self.n_texts
        try:
            clf = self.ours(meta_epochs=1, adaptation=None, callbacks=[Stop()])
            clf.fit(self.X[:n], self.y[:n], domains=self.domains[:n])
        except Stopped:
            return

    @property
    def bf16(self) -> dict[str, bool]:
        """What the Trainer is told of the narrow type."""
        return {"bf16": True} if "bfloat16" in str(self.dtype) else {}

    # --- training: callables that return seconds of one epoch over the first n_train texts, nothing else counted

    def training(self, workers: int) -> dict[str, Callable[[], float]]:
        best = {"train_sampling_strategy": "group_by_length", "dataloader_num_workers": workers, **self.bf16}
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
        self.fitted.meta_learner_.to(self.device)  # where `fit` leaves it; other methods' memory does not hold it
        self.fitted.adapt(self.X[:n], self.y[:n], domain=name)
        self.fitted.meta_learner_.to("cpu")
        return self.fitted.history_[-1]["seconds"]

    def model_and_rows(self, **config: Any) -> tuple[Any, Any, list[dict[str, Any]]]:
        import torch
        import transformers

        n = self.n_train
        config |= {"num_labels": len(set(self.labels)), "dtype": torch.float32}
        model = transformers.AutoModelForSequenceClassification.from_pretrained(self.folder, **config)
        tokenizer = engine.load_tokenizer(engine.find_encoder(self.folder), MAX_LENGTH)
        parts = [list(part) for part in zip(*self.X[:n])] if isinstance(self.X[0], tuple) else [self.X[:n]]
        types = engine.reads_token_types(model.base_model)
        encoded = tokenizer(*parts, truncation=True, max_length=MAX_LENGTH, return_token_type_ids=types)
        return model, tokenizer, [{**{k: v[i] for k, v in encoded.items()}, "labels": self.labels[i]} for i in range(n)]

    def trainer(self, attention_dropout: float | None = None, **arguments: Any) -> float:
        """The Hugging Face Trainer; nothing evaluated, saved or reported."""
        import transformers

        class EpochClock(transformers.TrainerCallback):
            """Seconds of the epoch alone, as skorch's timer counts them: what comes before the first step is left out."""

            def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                synchronize()
                self.start = time.perf_counter()

            def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                synchronize()
                self.seconds = time.perf_counter() - self.start

        config = {} if attention_dropout is None else {"attention_probs_dropout_prob": attention_dropout}
        model, tokenizer, rows = self.model_and_rows(**config)
        with tempfile.TemporaryDirectory() as folder:
            arguments |= {
                "per_device_train_batch_size": self.batch,
                "num_train_epochs": 1,
                "use_cpu": self.device == "cpu",
            }
            settings = transformers.TrainingArguments(output_dir=folder, disable_tqdm=True, **QUIET, **arguments)
            collate = transformers.DataCollatorWithPadding(tokenizer)
            trainer = transformers.Trainer(model, settings, train_dataset=rows, data_collator=collate)
            trainer.remove_callback(transformers.PrinterCallback)
            clock = EpochClock()
            trainer.add_callback(clock)
            trainer.train()
            return clock.seconds

    def skorch_loop(self) -> float:
        """A skorch net around a transformers model, as one writes it: float32, shuffled rows, AdamW."""
        import torch
        from skorch import NeuralNet
        from skorch.callbacks import EpochTimer

        model, tokenizer, rows = self.model_and_rows()

        class Loss(torch.nn.CrossEntropyLoss):
            def forward(self, output: Any, y: Any) -> Any:
                return super().forward(output[0], y)  # logits come first

        class Rows(torch.utils.data.Dataset):
            def __len__(self) -> int:
                return len(rows)

            def __getitem__(self, i: int) -> dict[str, Any]:
                return rows[i]

        def collate(some: list[dict[str, Any]]) -> tuple[dict[str, Any], Any]:
            batch = dict(tokenizer.pad(some, return_tensors="pt"))
            return batch, batch.pop("labels")

        net = NeuralNet(
            model,
            criterion=Loss,
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
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start


def matrix_product_limit(device: str, dtype: Any) -> float:
    """Best rate of a matrix product, in operations a second."""
    import torch

    best = 0.0
    for n in (1024, 2048, 4096) if device == "cpu" else (4096, 8192):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        times = [seconds(partial(torch.mm, a, b)) for _ in range(8)]
        best = max(best, 2 * n**3 / min(times))
    return best


def in_turn(calls: dict[str, Callable[[], Any]], repeats: int, timed: bool) -> tuple[dict, dict]:
    """Seconds of every call, and the most GPU memory of each in bytes, over what was held before it.

    The calls take turns after a round that is not counted. A call's own answer are its seconds, if it is not `timed` here.
    """
    import torch

    cuda = torch.cuda if torch.cuda.is_available() else None
    times: dict[str, list[float]] = {name: [] for name in calls}
    memory: dict[str, int] = {}
    for repeat in range(-1, repeats):
        for name, call in calls.items():
            gc.collect()
            if cuda:
                cuda.empty_cache()
                cuda.reset_peak_memory_stats()
                held = cuda.memory_allocated()
            took = seconds(call) if timed else call()
            if cuda:
                memory[name] = cuda.max_memory_allocated() - held
            if repeat >= 0:
                times[name].append(took)
    return times, memory


def best_workers(bench: Bench, batch: int) -> int:
    """Number of the Trainer's data loader workers that is fastest here, of 0, 1, 2."""
    n, bench.n_train = bench.n_train, min(4 * batch, bench.n_train)
    settings = {"train_sampling_strategy": "group_by_length", **bench.bf16}
    took = {w: min(bench.trainer(dataloader_num_workers=w, **settings) for _ in range(2)) for w in (0, 1, 2)}
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
        parts = [bench.X[i : i + rows] for i in range(repeats if rows == 1 else max(20, repeats // 5))]
        took = [1000 * seconds(partial(bench.fitted.predict, part, domains=domain)) for part in parts]
        who = "meta-learner" if domain is None else "a domain's own model"
        out[f"{rows} row{'s' * (rows > 1)}, {who}"] = [float(np.quantile(took, q)) for q in (0.5, 0.99)]
    return out


def measure(task: str, args: argparse.Namespace, folder: str, batch: int) -> dict[str, Any]:
    import torch

    n_texts, n_train = args.texts, args.steps * batch
    bench = Bench(task, n_texts, n_train, folder, batch, args.device)
    dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, bench.dtype)}
    limit = {name: matrix_product_limit(args.device, dtype) for name, dtype in dtypes.items()}
    workers, smaller = best_workers(bench, batch), best_batch(bench, batch)
    calls = bench.inference(smaller)
    inference, _ = in_turn({name: call for name, (call, _) in calls.items()}, args.repeats, timed=True)
    sizes = {name: n for name, (_, n) in calls.items()}
    del calls  # the peers' models
    bench.fitted.meta_learner_.to("cpu")
    training, memory = in_turn(bench.training(workers), args.repeats, timed=False)
    result: dict[str, Any] = {
        "task": task, "batch": batch, "texts": n_texts, "training_texts": n_train, "workers": workers, "limit": limit,
        "best_batch": smaller, "tokens": float(bench.lengths.mean()),
        "latency_ms": latency(bench, args.latency_repeats), "rows": [],
    }  # fmt: skip
    sizes |= dict.fromkeys(training, n_train)
    for kind, times in (("inference", inference), ("training", training)):
        for name, took in times.items():
            n = sizes[name]
            operations = bench.operations(n) * (3 if kind == "training" else 1)
            low = "float32" in name or name in ("Trainer, its defaults", "plain skorch loop")
            precision = "float32" if low else str(bench.dtype).removeprefix("torch.")
            median = statistics.median(took)
            row = {"kind": kind, "name": name, "texts": n, "texts_a_second": n / median, "precision": precision}
            row |= {"seconds": took, "share_of_limit": operations / median / limit[precision]}
            if kind == "training" and memory:
                row["peak_memory_bytes"] = memory[name]
            result["rows"].append(row)
    return result


# ------------------------------------------------------------------ report


def report(results: list[dict[str, Any]], args: argparse.Namespace, where: str) -> list[str]:
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
            head = [kind, "texts/s", *(f"against {b}" for b in bases), "share of the limit", *["peak GiB"] * has_memory]
            body = []
            for name, row in rows.items():
                n, rate, took = row["texts"], row["texts_a_second"], row["seconds"]
                cells = [name, f"{rate:.1f} ({n / max(took):.1f} to {n / min(took):.1f})"]
                cells += [f"{rate / rows[b]['texts_a_second']:.2f}" for b in bases]
                cells += [f"{row['share_of_limit']:.0%} of {row['precision']}"]
                cells += [f"{row['peak_memory_bytes'] / 2**30:.2f}"] if has_memory else []
                body.append(cells)
            lines += ["", *table(head, body)]
        latencies = [[name, f"{p50:.1f}", f"{p99:.1f}"] for name, (p50, p99) in r["latency_ms"].items()]
        lines += ["", *table(["`predict`, latency", "p50, ms", "p99, ms"], latencies)]
    return lines


def bert_base_shape() -> str:
    """Folder of an encoder of BERT-base's shape with random weights and MiniLM's tokenizer (speed needs no more)."""
    import torch
    import transformers

    folder = Path(tempfile.gettempdir()) / "skmft-bert-base-shape"
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        transformers.BertModel(transformers.BertConfig()).save_pretrained(folder)
        engine.load_tokenizer(engine.find_encoder(engine.DEFAULT_MODEL), MAX_LENGTH).save_pretrained(folder)
    return str(folder)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    options.add_argument("--encoder", default="minilm", help="minilm, base (BERT-base's shape, random), or a folder")
    options.add_argument("--device", default="cpu")
    options.add_argument("--batch", type=int, nargs="+", default=[32])
    options.add_argument("--texts", type=int, default=2000)
    options.add_argument("--steps", type=int, default=12, help="optimiser steps of a training run")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--latency-repeats", type=int, default=200)
    options.add_argument("--quick", action="store_true", help="500 texts, 8 steps, 3 repeats; writes no result")
    args = options.parse_args()
    if args.quick:
        args.texts, args.steps, args.repeats, args.latency_repeats = 500, 8, 3, 30
    shown = "" if args.device == "cpu" else f" --device {args.device} --encoder {args.encoder}"
    shown = f"--tasks {' '.join(args.tasks)}{shown} --batch {' '.join(map(str, args.batch))}"
    args.command = f"python benchmarks/throughput.py {shown}"
    start()
    import transformers

    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")  # the Trainer's, of more workers than cores
    minilm = engine.find_encoder(engine.DEFAULT_MODEL)
    folder = bert_base_shape() if args.encoder == "base" else {"minilm": minilm.folder}.get(args.encoder, args.encoder)
    where, results = machine(), []
    name = "throughput" + ("" if args.device == "cpu" else f"_{args.device.split(':')[0]}")
    for task in args.tasks:
        for batch in args.batch:
            results.append(measure(task, args, folder, batch))
            lines = report(results, args, where)
            if args.quick:
                print(*lines, sep="\n", flush=True)
                continue
            write_page(name, lines)
            whole = {"command": args.command, "machine": where, "code": code(), "encoder": args.encoder}
            text = json.dumps({**whole, "results": results}, indent=1)
            (lib_report.RESULTS / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
