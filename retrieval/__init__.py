"""Everything between a picture on disk and an answer to a question."""
