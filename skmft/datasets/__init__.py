"""Public multi-domain text data sets, read from local copies or fetched once and cached."""

from ._amazon_reviews import fetch_amazon_reviews
from ._rated_snippets import fetch_rated_snippets

__all__ = ["fetch_amazon_reviews", "fetch_rated_snippets"]
