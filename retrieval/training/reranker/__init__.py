"""Training of a reranker for an encoder: features once, then a small model over and over."""
