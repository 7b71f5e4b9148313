"""Libraries over HTTP: a typed API, a page, and tools for language models (extra `serve`)."""
