"""What many domains cost: size, speed and device memory with 16 domains; and LoRA's accuracy against full adaptation.

    python benchmarks/many_domains.py cost             # 16 domains; --device cuda for a GPU
    python benchmarks/many_domains.py accuracy         # 200 labelled reviews a domain, 8 seeds
    python benchmarks/many_domains.py report           # writes results/many_domains.md

The 16 domains are the four of the Amazon reviews, each cut in four by the hash of the text. One JSON file a cell; finished
cells are skipped, so that a stop loses nothing.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from tasks import CODE, HERE, draw, machine, paper, split

from skmft import MetaFineTunedClassifier
from skmft.adaptation import domain_logits, domain_model
from skmft.lora import LoraSettings, adapted_layers, add_adapters, rowwise_logits
from skmft.stages import Run

CELLS = HERE / "cells" / "many_domains"
METHODS = {"lora": 1.15, "head": 1.02, "full": None}  # most bytes in encoders
REPEATS = 5
COMPARED = ("full", "lora")


def save(name: str, cell: dict) -> None:
    CELLS.mkdir(parents=True, exist_ok=True)
    (CELLS / f"{name}.json").write_text(json.dumps({**cell, "machine": machine(), "code": CODE}))
    print(name, cell, flush=True)


# ----------------------------------------------------------------------- cost


def sixteen(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with 16 domains in place of four."""
    return frame.assign(domain=[f"{d} {int(h[-1], 16) % 4}" for d, h in zip(frame["domain"], frame["hash"])])


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Bytes of every storage, however many tensors share it."""
    return {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors)}


def places(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Bytes of every tensor, whatever else its storage holds: what goes to a device, without the rest of a domain's block."""
    return {t.data_ptr(): t.nbytes for t in tensors}


def tensors_of(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def held_bytes(clf: MetaFineTunedClassifier) -> int:
    """Bytes of all tensors and arrays of a fitted estimator, shared ones once; not its tokenizer and history."""
    module, optimizer = clf.net_.module_, clf.net_.optimizer_
    tensors = tensors_of(module) + [p.grad for p in module.parameters() if p.grad is not None]
    tensors += [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    tensors += [t for own in clf.adapted_weights_.values() for t in own.values()]
    return sum(storages(tensors).values()) + sum(a.nbytes for a in vars(clf).values() if isinstance(a, np.ndarray))


def peak_memory(clf: MetaFineTunedClassifier, X: list[str], domains: Any) -> dict[str, int]:
    """Bytes while rows of these domains are predicted.

    ``weights``: of the meta-learner and of the network that answers, at most, shared tensors once: what a device has to
    hold. ``more``: on the CPU the peak of what torch's allocator gives out beside that (activations, and the copies that
    autocast makes of weights). ``peak``: on CUDA the peak of all allocated memory; on the CPU the sum of the two.
    """
    run = Run.start(clf, clf.seed_)
    tokens, _ = clf._tokenize(X)
    module = clf.net_.module_.to(run.device)
    resting = places([*tensors_of(module), *(t for own in clf.adapted_weights_.values() for t in own.values())])
    most = made = 0  # made for one domain's network: counted as weights, and given out by the allocator

    def batches(forward: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal most, made
        used = {**places(tensors_of(module)), **places(tensors_of(forward.__self__))}
        most = max(most, sum(used.values()))
        made = max(made, sum(size for place, size in used.items() if place not in resting))
        return run.batches(forward, *args, **kwargs)

    def predict() -> None:
        domain_logits(batches, module, tokens, list(domains), clf.adapted_weights_, len(clf.classes_), run.dtype)

    if run.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(run.device)
        predict()
        return {"weights": most, "peak": torch.cuda.max_memory_allocated(run.device)}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        predict()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    given_out = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    more = int(given_out.max()) - made
    return {"weights": most, "more": more, "peak": most + more}


def by_peft(clf: MetaFineTunedClassifier, tensors: dict[str, torch.Tensor]) -> Any:
    """The network of one domain with peft's layers in it, not merged."""
    module = copy.deepcopy(clf.net_.module_)
    names = adapted_layers(tensors)
    rank = len(tensors[names[0] + ".lora_A"])
    add_adapters(module.encoder, LoraSettings(rank, rank, [n.removeprefix("encoder.") for n in names]))
    state = {n: t for n, t in tensors.items() if n.startswith("label_head.")}
    for name in names:
        state |= {f"{name}.{part}.default.weight": tensors[f"{name}.{part}"] for part in ("lora_A", "lora_B")}
    assert not module.load_state_dict(state, strict=False).unexpected_keys
    return module.eval()


def throughput(clf: MetaFineTunedClassifier, X: list[str]) -> dict[str, list[float]]:
    """Rows a second, tokenizing not counted; the same rows each time, only their domains differ."""
    run = Run.start(clf, clf.seed_)
    tokens, _ = clf._tokenize(X)
    module = clf.net_.module_.to(run.device)
    names = list(clf.adapted_weights_)
    models = [clf.adapted_weights_[name] for name in names]
    mixed = np.random.default_rng(0).permutation(np.arange(len(X)) % len(models))
    one = np.zeros_like(mixed)
    unmerged = by_peft(clf, models[0])
    groups = [np.flatnonzero(mixed == i) for i in range(len(models))]
    calls = {
        "mixed": lambda: run.batches(rowwise_logits(module, models), tokens, 2, columns={"model": mixed}),
        "one": lambda: run.batches(rowwise_logits(module, models[:1]), tokens, 2, columns={"model": one}),
        "one, peft": lambda: run.batches(unmerged.label_logits, tokens, 2),
        "one, merged": lambda: run.batches(domain_model(module, models[0]).label_logits, tokens, 2),
        "mixed, by domain": lambda: [
            run.batches(domain_model(module, m).label_logits, tokens.subset(g), 2) for m, g in zip(models, groups)
        ],
        "meta-learner": lambda: run.batches(module.label_logits, tokens, 2),
    }
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(REPEATS + 1):  # the first is the warm-up
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if repeat:
                rates[name].append(len(X) / (time.perf_counter() - start))
    return rates


def run_cost(args: argparse.Namespace) -> None:
    pool, _ = split("amazon")
    pool = sixteen(pool)
    train, rest = draw(pool, 8, 0)
    texts = rest.sample(args.texts, random_state=0)["text"].tolist()
    base = None
    for method in METHODS:
        name = f"cost-{args.device}-{method}"
        if (CELLS / f"{name}.json").exists():
            continue
        if base is None:
            base = paper(adaptation=None, meta_epochs=2, device=args.device, random_state=0)
            base.fit(train["text"], train["y"], domains=train["domain"])
        clf = copy.copy(base).set_params(adaptation=method, adaptation_epochs=2)
        for domain, own in train.groupby("domain"):
            clf.adapt(own["text"], own["y"], domain)
        assert len(clf.adapted_weights_) == 16
        if method == "lora":
            ups = [t for own in clf.adapted_weights_.values() for n, t in own.items() if n.endswith(".lora_B")]
            assert all(t.any() for t in ups), "an adapter is zero"
        encoder = sum(storages(tensors_of(clf.net_.module_.encoder)).values())
        with tempfile.TemporaryDirectory() as folder:
            clf.save(Path(folder) / "model")
            on_disk = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
            encoder_on_disk = sum(p.stat().st_size for p in Path(folder).rglob("encoder/*.safetensors"))
        cell = {
            "method": method,
            "device": args.device,
            "encoder": encoder,
            "held": held_bytes(clf),
            "on_disk": on_disk,
            "encoder_on_disk": encoder_on_disk,
            "precision": str(clf.net_.dtype),
        }
        if method == "full":
            domains = np.resize(list(clf.adapted_weights_), args.texts)
            cell["memory"] = peak_memory(clf, texts, domains)
            cell["memory_of_meta"] = peak_memory(clf, texts[: args.texts // 16], [None] * (args.texts // 16))
        if method == "lora":
            cell["rows"] = len(texts)
            cell["throughput"] = throughput(clf, texts)
        save(name, cell)


# ------------------------------------------------------------------- accuracy


def run_accuracy(args: argparse.Namespace) -> None:
    pool, test = split("amazon")
    further = pool.sort_values("hash").groupby(["domain", "y"]).head(args.further // 2)  # never trained on, in any seed
    pool = pool.drop(index=further.index).reset_index(drop=True)
    scored = pd.concat([test, further], ignore_index=True)
    for seed in args.only or range(args.seeds):
        name = f"accuracy-{args.shots}-{args.further}-{seed}"
        if (CELLS / f"{name}.json").exists():
            continue
        train, _ = draw(pool, args.shots, seed)
        clf = paper(adaptation=None, random_state=seed)
        clf.fit(train["text"], train["y"], domains=train["domain"])
        right = {"meta": scored["y"] == clf.predict(scored["text"])}
        seconds = {}
        for method in COMPARED:
            start = time.perf_counter()
            clf.set_params(adaptation=method)
            for domain, own in train.groupby("domain"):
                clf.adapt(own["text"], own["y"], domain)
            seconds[method] = time.perf_counter() - start
            right[method] = scored["y"] == clf.predict(scored["text"], domains=scored["domain"])
        accuracy = {m: r.groupby(scored["domain"]).mean().to_dict() for m, r in right.items()}
        cell = {"seed": seed, "shots": args.shots, "rows": len(scored), "accuracy": accuracy, "seconds": seconds}
        save(name, {**cell, "epochs": clf.history_[-1]["epochs"]})


# --------------------------------------------------------------------- report


def cost_lines(device: str) -> list[str]:
    cells = {m: json.loads(p.read_text()) for m in METHODS if (p := CELLS / f"cost-{device}-{m}.json").exists()}
    if not cells:
        return []
    lines = [
        "",
        f"## 16 domains, {device}",
        "",
        f"Machine: {'; '.join(sorted({c['machine'] for c in cells.values()}))}.",
        "",
    ]
    lines += ["| adaptation | tensors in memory / encoder | folder on disk / encoder | at most |", "| --- " * 4 + "|"]
    for method, c in cells.items():
        held, disk = c["held"] / c["encoder"], c["on_disk"] / c["encoder_on_disk"]
        lines.append(f"| {method} | {held:.3f} | {disk:.3f} | {METHODS[method] or ''} |")
    lines += [
        "",
        "In memory: the tensors and arrays of the fitted estimator, each storage once, over those of its encoder. On disk: all "
        "files that `save` writes, over the encoder's weights.",
    ]
    if "lora" in cells:
        rates = cells["lora"]["throughput"]
        median = {name: statistics.median(values) for name, values in rates.items()}
        lines += ["", "| prediction with adapters | rows/s | mixed / this |", "| --- " * 3 + "|"]
        lines += [
            f"| {NAMES[n]} | {median[n]:.1f} ({min(v):.1f} to {max(v):.1f}) | {median['mixed'] / median[n]:.2f} |"
            for n, v in rates.items()
        ]
        lines += [
            "",
            f"{cells['lora']['rows']} reviews, tokenizing not counted, {cells['lora']['precision']}; median (least to most) of "
            f"{REPEATS} runs in turn; asked for: mixed / one domain unmerged at least 0.80.",
        ]
    if "full" in cells:
        c = cells["full"]
        memory, meta = c["memory"], c["memory_of_meta"]
        lines += [
            "",
            "Memory in use while rows of 16 domains with encoders of their own are predicted, over one encoder: "
            f"weights {memory['weights'] / c['encoder']:.2f}, with activations and copies "
            f"{memory['peak'] / c['encoder']:.2f} (asked for: at most 2.2); for the meta-learner alone "
            f"{meta['weights'] / c['encoder']:.2f} and {meta['peak'] / c['encoder']:.2f}. "
            + (
                "Counted: torch's peak of allocated CUDA memory."
                if device == "cuda"
                else "Counted on the CPU as a device would hold it: the tensors of the meta-learner and of the network that "
                "answers; the other domains' rest. Activations and copies: the peak of what torch's allocator gave out beside "
                "them."
            ),
        ]
    return lines


NAMES = {
    "mixed": "16 domains mixed, one batch of many adapters",
    "one": "one domain, the same code",
    "one, peft": "one domain, peft's layers, unmerged",
    "one, merged": "one domain, merged (what `predict` does)",
    "mixed, by domain": "16 domains mixed, merged, one after the other",
    "meta-learner": "meta-learner, no adapter",
}


def accuracy_lines(shots: int, further: int, seeds: int) -> list[str]:
    cells = [json.loads(p.read_text()) for p in CELLS.glob(f"accuracy-{shots}-{further}-*.json")]
    cells = sorted((c for c in cells if c["seed"] < seeds), key=lambda c: c["seed"])
    if len(cells) < 2:
        return []
    table = {m: pd.DataFrame([c["accuracy"][m] for c in cells]) * 100 for m in ("meta", *COMPARED)}
    lines = [
        "",
        f"## Accuracy, {shots} labelled reviews a domain",
        "",
        f"Seeds {cells[0]['seed']} to {cells[-1]['seed']} ({len(cells)}), each its own draw and one stage 2 (the paper's "
        "losses under the optimisation of our defaults), from whose "
        f"meta-learner each domain is adapted by both methods at the defaults ({cells[0]['epochs']} epochs). Scored on "
        f"{cells[0]['rows']} rows that no seed trains on: the frozen test rows and a fixed further sample. Percent; ± is "
        f"half of a 95% t interval over seeds. Machine: {'; '.join(sorted({c['machine'] for c in cells}))}.",
        "",
        "| | " + " | ".join(table["meta"].columns) + " | mean | seconds to adapt, median |",
        "| --- " * 7 + "|",
    ]
    for method, scores in table.items():
        mean = scores.mean(axis=1)
        seconds = "" if method == "meta" else f"{statistics.median(c['seconds'][method] for c in cells):.0f}"
        values = " | ".join(f"{v:.1f}" for v in scores.mean())
        lines.append(f"| {method} | {values} | {mean.mean():.2f} ± {half(mean):.2f} | {seconds} |")
    for one, other in (("lora", "full"), ("full", "meta"), ("lora", "meta")):
        change = table[one].mean(axis=1) - table[other].mean(axis=1)
        low, high = change.mean() - half(change), change.mean() + half(change)
        asked = " Asked for: the lower end above -1.5." if other == "full" else ""
        lines += [
            "",
            f"{one} less {other}, points, paired by seed: {change.mean():+.2f}, 95% interval {low:+.2f} to {high:+.2f} "
            f"({', '.join(f'{v:+.2f}' for v in change)}).{asked}",
        ]
    return lines


def half(values: pd.Series) -> float:
    return stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))


def report(args: argparse.Namespace) -> None:
    lines = [
        "# Many domains",
        "",
        "`python benchmarks/many_domains.py cost`, `accuracy`, `report`: all-MiniLM-L6-v2, batch 32, adapters of rank 8 at the "
        "query and value projections. The 16 domains are the four of the Amazon reviews, each cut in four.",
    ]
    for device in ("cpu", "cuda"):
        lines += cost_lines(device)
    lines += accuracy_lines(args.shots, args.further, args.seeds)
    text = "\n".join(lines) + "\n"
    (HERE / "results" / "many_domains.md").write_text(text)
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "accuracy", "report"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--texts", type=int, default=512, help="reviews that cost predicts")
    parser.add_argument("--shots", type=int, default=200, help="training rows a domain, for accuracy")
    parser.add_argument("--further", type=int, default=400, help="rows a domain that are scored beside the test rows")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--only", type=int, nargs="+", help="run these seeds only (to share the work among processes)")
    args = parser.parse_args()
    {"cost": run_cost, "accuracy": run_accuracy, "report": report}[args.what](args)


if __name__ == "__main__":
    main()
