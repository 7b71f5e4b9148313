"""Filters over what is known of a picture: `taken >= '2023-06' AND width > height`.

A text becomes a tree of frozen values (`tree`), which `retrieval.catalog.filtering` turns into SQL
with bound parameters. `parse_where` reads the language with SQL's semantics, `split_inline` the
short form within a question (`sunset after:2023-06 camera:fuji`). Both give the same trees, and
`str` of a tree is a text that `parse_where` reads back as the same tree.
"""

from __future__ import annotations

from mmsearch.retrieval.filters.inline import split_inline
from mmsearch.retrieval.filters.tree import Column, Filter
from mmsearch.retrieval.filters.where import parse_where

__all__ = ["Column", "Filter", "parse_where", "split_inline"]
