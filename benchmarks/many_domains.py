"""What many domains cost: size, speed and device memory with 16 domains; and LoRA's accuracy against full adaptation.

    python benchmarks/many_domains.py cost             # 16 domains; --device cuda for a GPU
    python benchmarks/many_domains.py accuracy         # 200 labelled reviews a domain, 8 seeds
    python benchmarks/many_domains.py report           # writes results/many_domains.md

The 16 domains are the four of the Amazon reviews, each cut in four by the hash of the text. Finished cells are skipped, so
that a stop loses nothing.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lib import engine
from lib.cells import Content, distinct, parser, start
from lib.report import plus_minus, table, write_report
from lib.statistics import half_interval
from lib.tasks import adapt, draw, fit, rows_of

METHODS = {"lora": 1.15, "head": 1.02, "full": None}  # most bytes in encoders
REPEATS = 5
COMPARED = ("full", "lora")


# ----------------------------------------------------------------------- cost


def sixteen(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with 16 domains in place of four."""
    return frame.assign(domain=[f"{d} {int(h[-1], 16) % 4}" for d, h in zip(frame["domain"], frame["hash"])])


def held_bytes(tensors: Iterable[Any]) -> int:
    """Bytes of the storages of tensors, each once, however many share it."""
    return sum({s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors)}.values())


def places(tensors: Iterable[Any]) -> dict[int, int]:
    """Bytes of every tensor, whatever else its storage holds: what goes to a device, without the rest of a domain's block."""
    return {t.data_ptr(): t.nbytes for t in tensors}


def tensors_of(module: Any) -> list[Any]:
    return [*module.parameters(), *module.buffers()]


def own_tensors(clf: Any) -> list[Any]:
    """Those of all domains' models."""
    return [tensor for own in clf.adapted_weights_.values() for tensor in own.values()]


def peak_memory(clf: Any, X: list[str], domains: Any) -> dict[str, int]:
    """Bytes while rows of these domains are predicted.

    ``weights``: of the meta-learner and of the encoder that answers, at most, shared tensors once: what a device has to
    hold. ``more``: on the CPU the peak of what torch's allocator gives out beside that (activations, and the copies that
    autocast makes of weights). ``peak``: on CUDA the peak of all allocated memory; on the CPU the sum of the two.
    """
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook
    from transformers import PreTrainedModel

    clf.predict(X[:1])  # the meta-learner is on its device
    resting = places([*tensors_of(clf.meta_learner_), *own_tensors(clf)])
    most = made = 0  # made for one domain's network: counted as weights, and given out by the allocator

    def look(module: Any, inputs: Any) -> None:
        nonlocal most, made
        if isinstance(module, PreTrainedModel):
            used = {**places(tensors_of(clf.meta_learner_)), **places(tensors_of(module))}
            most = max(most, sum(used.values()))
            made = max(made, sum(size for place, size in used.items() if place not in resting))

    with register_module_forward_pre_hook(look):
        if torch.cuda.is_available() and clf.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            clf.predict(X, domains=domains)
            return {"weights": most, "peak": torch.cuda.max_memory_allocated()}
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            clf.predict(X, domains=domains)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    given_out = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    more = int(given_out.max()) - made
    return {"weights": most, "more": more, "peak": most + more}


def by_peft(clf: Any, tensors: dict[str, Any]) -> Any:
    """The network of one domain with peft's layers in it, not merged."""
    module = copy.deepcopy(clf.meta_learner_)
    names = engine.adapted_layers(tensors)
    rank = len(tensors[names[0] + ".lora_A"])
    targets = [name.removeprefix("encoder.") for name in names]
    engine.add_adapters(module.encoder, {"r": rank, "lora_alpha": rank, "target_modules": targets})
    state = {n: t for n, t in tensors.items() if n.startswith("label_head.")}
    for name in names:
        state |= {f"{name}.{part}.default.weight": tensors[f"{name}.{part}"] for part in ("lora_A", "lora_B")}
    assert not module.load_state_dict(state, strict=False).unexpected_keys
    return module.eval()


def throughput(clf: Any, X: list[str]) -> dict[str, list[float]]:
    """Rows a second, tokenizing not counted; the same rows each time, only their domains differ."""
    clf.predict(X[:1])  # the meta-learner is on its device
    module, tokens = clf.meta_learner_, engine.tokens_of(clf, X)
    models = list(clf.adapted_weights_.values())
    mixed = np.random.default_rng(0).permutation(np.arange(len(X)) % len(models))
    unmerged = by_peft(clf, models[0])
    groups = [np.flatnonzero(mixed == i) for i in range(len(models))]
    run = partial(engine.run_texts, clf)
    calls = {
        "one, peft": lambda: run(unmerged.label_logits, tokens),
        "one, merged": lambda: run(engine.domain_model(module, models[0]).label_logits, tokens),
        "mixed, by domain": lambda: [
            run(engine.domain_model(module, m).label_logits, tokens.subset(g)) for m, g in zip(models, groups)
        ],
        "meta-learner": lambda: run(module.label_logits, tokens),
    }
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(REPEATS + 1):  # the first is the warm-up
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if repeat:
                rates[name].append(len(X) / (time.perf_counter() - start))
    return rates


@cache
def sixteen_domains(device: str, n_texts: int) -> tuple[pd.DataFrame, list[str], Any]:
    """Training rows, texts to predict, and a meta-learner."""
    train, rest = draw(sixteen(rows_of("amazon")[0]), 8, 0)
    clf = engine.paper(adaptation=None, meta_epochs=2, device=device, random_state=0)
    texts = rest.sample(n_texts, random_state=0)["text"].tolist()
    return train, texts, fit(clf, train)


def cost(device: str, method: str, n_texts: int) -> Content:
    train, texts, base = sixteen_domains(device, n_texts)
    clf = copy.copy(base).set_params(adaptation=method, adaptation_epochs=2)
    adapt(clf, train)
    assert len(clf.adapted_weights_) == 16
    if method == "lora":
        assert all(tensor.any() for tensor in own_tensors(clf)), "an adapter is zero"
    with tempfile.TemporaryDirectory() as folder:
        clf.save(Path(folder) / "model")
        on_disk = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
        encoder_on_disk = sum(p.stat().st_size for p in Path(folder).rglob("encoder/*.safetensors"))
    arrays = sum(array.nbytes for array in vars(clf).values() if isinstance(array, np.ndarray))
    cell = {"on_disk": on_disk, "encoder_on_disk": encoder_on_disk, "precision": f"torch.{engine.precision(device)}"}
    cell["encoder"] = held_bytes(tensors_of(clf.meta_learner_.encoder))
    cell["held"] = held_bytes([*tensors_of(clf.meta_learner_), *own_tensors(clf)]) + arrays
    if method == "full":
        domains = np.resize(list(clf.adapted_weights_), len(texts))
        cell["memory"] = peak_memory(clf, texts, domains)
        cell["memory_of_meta"] = peak_memory(clf, texts[: len(texts) // 16], [None] * (len(texts) // 16))
    if method == "lora":
        cell |= {"rows": len(texts), "throughput": throughput(clf, texts)}
    return cell


def run_cost(args: argparse.Namespace) -> None:
    for method in METHODS:
        keys = {"device": args.device, "method": method}
        args.cells.complete(partial(cost, n_texts=args.texts), keys, name=f"cost-{args.device}-{method}")


# ------------------------------------------------------------------- accuracy


def accuracy(shots: int, further: int, seed: int) -> Content:
    pool, test = rows_of("amazon")
    more = pool.sort_values("hash").groupby(["domain", "y"]).head(further // 2)  # never trained on, in any seed
    train, _ = draw(pool.drop(index=more.index).reset_index(drop=True), shots, seed)
    scored = pd.concat([test, more], ignore_index=True)
    clf = fit(engine.paper(adaptation=None, random_state=seed), train)
    right = {"meta": scored["y"] == clf.predict(scored["text"])}
    seconds = {}
    for method in COMPARED:
        begin = time.perf_counter()
        adapt(clf.set_params(adaptation=method), train)
        seconds[method] = time.perf_counter() - begin
        right[method] = scored["y"] == clf.predict(scored["text"], domains=scored["domain"])
    found = {m: r.groupby(scored["domain"]).mean().to_dict() for m, r in right.items()}
    return {"rows": len(scored), "accuracy": found, "seconds": seconds, "epochs": clf.history_[-1]["epochs"]}


def run_accuracy(args: argparse.Namespace) -> None:
    for seed in args.only or range(args.seeds):
        keys = {"shots": args.shots, "further": args.further, "seed": seed}
        args.cells.complete(accuracy, keys, name=f"accuracy-{args.shots}-{args.further}-{seed}")


# --------------------------------------------------------------------- report

NAMES = {
    "one, peft": "one domain, peft's layers, unmerged",
    "one, merged": "one domain, merged (what `predict` does)",
    "mixed, by domain": "16 domains mixed, merged, one after the other (what `predict` does)",
    "meta-learner": "meta-learner, no adapter",
}


def cost_lines(cells: dict[str, Content], device: str) -> list[str]:
    """Of the cells of one device, by method."""
    if not cells:
        return []
    rows = []
    for method, c in cells.items():
        held, disk = c["held"] / c["encoder"], c["on_disk"] / c["encoder_on_disk"]
        rows.append([method, f"{held:.3f}", f"{disk:.3f}", METHODS[method] or ""])
    lines = [
        "",
        f"## 16 domains, {device}",
        "",
        f"Machine: {distinct(cells.values(), 'machine', '; ')}.",
        "",
        *table(["adaptation", "tensors in memory / encoder", "folder on disk / encoder", "at most"], rows),
        "",
        "In memory: the tensors and arrays of the fitted estimator, each storage once, over those of its encoder. On disk: all "
        "files that `save` writes, over the encoder's weights.",
    ]
    if "lora" in cells:
        rates = cells["lora"]["throughput"]
        median, mixed = {name: statistics.median(values) for name, values in rates.items()}, "mixed, by domain"
        rows = [
            [title, f"{median[n]:.1f} ({min(rates[n]):.1f} to {max(rates[n]):.1f})", f"{median[mixed] / median[n]:.2f}"]
            for n, title in NAMES.items()
        ]
        lines += [
            "",
            *table(["prediction with adapters", "rows/s", "mixed / this"], rows),
            "",
            f"{cells['lora']['rows']} reviews, tokenizing not counted, {cells['lora']['precision']}; median (least to most) of "
            f"{REPEATS} runs in turn. Asked for: mixed / one domain unmerged at least 0.80, which held (0.99) while rows of "
            "several domains shared batches.",
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


def accuracy_lines(cells: list[Content], shots: int) -> list[str]:
    if len(cells) < 2:
        return []
    scores = {m: pd.DataFrame([c["accuracy"][m] for c in cells]) * 100 for m in ("meta", *COMPARED)}
    rows = []
    for method, own in scores.items():
        seconds = "" if method == "meta" else f"{statistics.median(c['seconds'][method] for c in cells):.0f}"
        rows.append([method, *(f"{v:.1f}" for v in own.mean()), plus_minus(own.mean(axis=1), digits=2), seconds])
    lines = [
        "",
        f"## Accuracy, {shots} labelled reviews a domain",
        "",
        f"Seeds {cells[0]['seed']} to {cells[-1]['seed']} ({len(cells)}), each its own draw and one stage 2 (the paper's "
        "losses under the optimisation of our defaults), from whose "
        f"meta-learner each domain is adapted by both methods at the defaults ({cells[0]['epochs']} epochs). Scored on "
        f"{cells[0]['rows']} rows that no seed trains on: the frozen test rows and a fixed further sample. Percent; ± is "
        f"half of a 95% t interval over seeds. Machine: {distinct(cells, 'machine', '; ')}.",
        "",
        *table([None, *scores["meta"].columns, "mean", "seconds to adapt, median"], rows),
    ]
    for one, other in (("lora", "full"), ("full", "meta"), ("lora", "meta")):
        change = scores[one].mean(axis=1) - scores[other].mean(axis=1)
        low, high = (change.mean() + sign * half_interval(change) for sign in (-1, 1))
        asked = " Asked for: the lower end above -1.5." if other == "full" else ""
        lines += [
            "",
            f"{one} less {other}, points, paired by seed: {change.mean():+.2f}, 95% interval {low:+.2f} to {high:+.2f} "
            f"({', '.join(f'{v:+.2f}' for v in change)}).{asked}",
        ]
    return lines


def report(cells: list[Content], args: argparse.Namespace) -> list[str]:
    lines = [
        "# Many domains",
        "",
        "`python benchmarks/many_domains.py cost`, `accuracy`, `report`: all-MiniLM-L6-v2, batch 32, adapters of rank 8 at the "
        "query and value projections. The 16 domains are the four of the Amazon reviews, each cut in four.",
    ]
    for device in ("cpu", "cuda"):
        found = {c["method"]: c for c in cells if c.get("device") == device}
        lines += cost_lines({m: found[m] for m in METHODS if m in found}, device)
    some = [
        c for c in cells if c["cell"].startswith(f"accuracy-{args.shots}-{args.further}-") and c["seed"] < args.seeds
    ]
    return lines + accuracy_lines(sorted(some, key=lambda c: c["seed"]), args.shots)


def main() -> None:
    options = parser(__doc__, "many_domains")
    options.add_argument("what", choices=["cost", "accuracy", "report"])
    options.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options.add_argument("--texts", type=int, default=512, help="reviews that cost predicts")
    options.add_argument("--shots", type=int, default=200, help="training rows per domain, for accuracy")
    options.add_argument(
        "--further", type=int, default=400, help="rows per domain that are scored beside the test rows"
    )
    options.add_argument("--seeds", type=int, default=8)
    options.add_argument("--only", type=int, nargs="+", help="run these seeds only (to share the work among processes)")
    args = options.parse_args()
    if args.what == "report":
        return write_report("many_domains", args.cells, partial(report, args=args))
    start()
    return {"cost": run_cost, "accuracy": run_accuracy}[args.what](args)


if __name__ == "__main__":
    main()
