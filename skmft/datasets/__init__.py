"""Public multi-domain text data sets, read from local copies or downloaded once, and a synthetic one."""

from ._amazon_reviews import fetch_amazon_reviews
from ._fdu_mtl import fetch_fdu_mtl
from ._mnli_genres import fetch_mnli_genres
from ._rated_snippets import fetch_rated_snippets
from ._synthetic import make_multi_domain_texts

__all__ = [
    "fetch_amazon_reviews",
    "fetch_fdu_mtl",
    "fetch_mnli_genres",
    "fetch_rated_snippets",
    "make_multi_domain_texts",
]
