"""Public multi-domain text data sets, read from local copies or downloaded once, and a synthetic one."""

from ._fetchers import fetch_amazon_reviews, fetch_fdu_mtl, fetch_mnli_genres, fetch_rated_snippets
from ._synthetic import make_multi_domain_texts

__all__ = ["fetch_amazon_reviews", "fetch_fdu_mtl", "fetch_mnli_genres", "fetch_rated_snippets"]
__all__ += ["make_multi_domain_texts"]
