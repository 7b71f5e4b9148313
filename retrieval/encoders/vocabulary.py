"""A vocabulary of one's own: WordPiece learned from captions.

Wu et al. 2016, "Google's Neural Machine Translation System", section 4.1. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

__all__ = ["train_tokenizer"]

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def train_tokenizer(texts: Sequence[str], size: int = 8000) -> Tokenizer:
    """Return a tokenizer of about `size` lower-cased word pieces; `[PAD]` has the id 0.

    The same texts give the same ids. Chinese characters stand alone, as BERT has them.
    """
    learner = _tokenizer(models.WordPiece(unk_token="[UNK]"))
    # The trainer numbers what it finds inside words in an order that changes from run to run, and
    # breaks ties by number: so these get theirs beforehand.
    inner = [f"##{letter}" for letter in _inner_letters(learner, texts)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=_SPECIAL + inner, min_frequency=2, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    # As a model of its own, in which those letters are not special.
    tokenizer = _tokenizer(models.WordPiece(vocab=learner.get_vocab(), unk_token="[UNK]"))
    tokenizer.add_special_tokens(_SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _tokenizer(model: models.WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, lowercase=True
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _inner_letters(tokenizer: Tokenizer, texts: Sequence[str]) -> list[str]:
    """Return, sorted, the letters that stand anywhere but at the beginning of a word."""
    letters: set[str] = set()
    for word in {word for text in texts for word in text.split()}:
        plain = tokenizer.normalizer.normalize_str(word)
        for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(plain):
            letters.update(piece[1:])
    return sorted(letters)
