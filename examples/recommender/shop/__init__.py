"""A small shop that recommends products by their pictures: an example of embedding mmsearch."""
