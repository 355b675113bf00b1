"""Texts a second: skmft against sentence-transformers and the Hugging Face Trainer, in one run.

Same weights, texts, batch size, maximum length; batches padded to their longest row on every side. The methods take turns,
and the median of the repeats is told.

    python benchmarks/throughput.py                  # 2,000 Amazon reviews, writes results/throughput.md
    python benchmarks/throughput.py --data snippets  # where the Amazon archive is not at hand
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time

import numpy as np
import torch
from tasks import HERE, load, machine

from skmft import MetaFineTunedClassifier
from skmft.networks import find_encoder


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def trainer(folder: str, texts: list[str], labels: list[int], batch: int, steps: int):
    """The Hugging Face Trainer at its defaults, but for the batch size; nothing evaluated, saved or reported."""
    import transformers

    transformers.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.no_padding()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    encoded = tokenizer(texts, truncation=True, max_length=128)
    rows = [
        {"input_ids": ids, "attention_mask": mask, "labels": label}
        for ids, mask, label in zip(encoded["input_ids"], encoded["attention_mask"], labels)
    ]
    arguments = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=batch,
        max_steps=steps,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    collator = transformers.DataCollatorWithPadding(tokenizer)
    return transformers.Trainer(model, arguments, train_dataset=rows, data_collator=collator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["amazon", "snippets"], default="amazon")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps of a training run")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"

    rows = load(args.data).sample(args.texts, random_state=0)
    X, y, d = rows["text"].tolist(), rows["y"].to_numpy(), rows["domain"].to_numpy()
    n_train = args.steps * args.batch
    folder = find_encoder("sentence-transformers/all-MiniLM-L6-v2").folder

    from sentence_transformers import SentenceTransformer

    st = SentenceTransformer(folder)
    st.max_seq_length = 128
    st.tokenizer.backend_tokenizer.no_padding()
    fitted = MetaFineTunedClassifier(meta_epochs=1, adaptation=None, random_state=0, batch_size=args.batch)
    fitted.fit(X[:64], y[:64], domains=d[:64])
    train_rates: dict[str, list[float]] = {"skmft": [], "skmft, float32": [], "Trainer, its defaults": []}

    def typicality() -> float:
        clf = MetaFineTunedClassifier(
            meta_epochs=1, adaptation=None, random_state=0, batch_size=args.batch, callbacks=[Stop()]
        )
        try:
            clf.fit(X, y, domains=d)
        except Stopped:
            return

    def ours(precision: str) -> float:
        clf = MetaFineTunedClassifier(
            meta_epochs=1, adaptation=None, random_state=0, batch_size=args.batch, precision=precision
        ).fit(X[:n_train], y[:n_train], domains=d[:n_train])
        return n_train / next(h["seconds"] for h in clf.history_ if h["stage"] == "meta")

    def theirs() -> float:
        t = trainer(folder, X[:n_train], (y[:n_train] == "positive").astype(int).tolist(), args.batch, args.steps)
        return n_train / seconds(t.train)

    inference = {
        "sentence-transformers encode, float32": lambda: st.encode(X, batch_size=args.batch),
        "skmft transform": lambda: fitted.transform(X),
        "skmft transform, float32": lambda: fitted.set_params(precision="float32").transform(X),
        "skmft predict": lambda: fitted.predict(X),
        "skmft stage 1 (fit up to stage 2)": typicality,
    }
    rates: dict[str, list[float]] = {name: [] for name in inference}
    for call in inference.values():  # warm up
        call()
        fitted.set_params(precision="auto")
    for _ in range(args.repeats):
        for name, call in inference.items():
            rates[name].append(len(X) / seconds(call))
            fitted.set_params(precision="auto")
        train_rates["Trainer, its defaults"].append(theirs())
        train_rates["skmft"].append(ours("auto"))
        train_rates["skmft, float32"].append(ours("float32"))

    lines = [
        "# Throughput",
        "",
        f"`python benchmarks/throughput.py --data {args.data}`: {len(X)} texts ({args.data}), all-MiniLM-L6-v2, max length "
        f"128, batch {args.batch}, padding to the longest of a batch; median (least to most) of {args.repeats} runs in "
        f"turn. Training: {args.steps} steps on {n_train} texts, tokenizing not counted on either side; inference: "
        f"tokenizing counted on both; stage 1 also counts loading the weights. skmft without mention of a precision ran in "
        f"{fitted.net_.dtype}. Machine: {machine()}.",
        "",
        "| | texts/s | ratio |",
        "| --- | --- | --- |",
    ]
    for table, base in ((rates, "sentence-transformers encode, float32"), (train_rates, "Trainer, its defaults")):
        for name, values in table.items():
            median = statistics.median(values)
            ratio = median / statistics.median(table[base])
            prefix = "training: " if table is train_rates else ""
            lines.append(f"| {prefix}{name} | {median:.1f} ({min(values):.1f} to {max(values):.1f}) | {ratio:.2f} |")
    agreement = np.abs(
        fitted.set_params(precision="float32").transform(X[:200])
        - MetaFineTunedClassifier.transform(fitted.set_params(precision="auto"), X[:200])
    ).max()
    lines += ["", f"Largest difference of an embedding's entry between the two precisions: {agreement:.3f}."]
    text = "\n".join(lines) + "\n"
    name = "throughput.md" if args.data == "amazon" else f"throughput_{args.data}.md"
    (HERE / "results" / name).write_text(text)
    print(text)


from skorch.callbacks import Callback  # noqa: E402


class Stopped(Exception):
    """Raised where stage 1 is done."""


class Stop(Callback):
    """Ends a fit at the start of stage 2."""

    def on_train_begin(self, net, **kwargs):
        raise Stopped


if __name__ == "__main__":
    main()
