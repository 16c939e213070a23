"""Training of byte-level BPE tokenizers (Sennrich et al. 2016; bytes as in GPT-2).

Bytes as the alphabet mean that no text is out of vocabulary, in any language.
"""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

END_OF_TEXT = "<|endoftext|>"  # begins and separates documents, and ends an answer
PADDING = "[PAD]"


def train_generation_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Case-preserving BPE whose encodings begin with END_OF_TEXT, which has id 0."""
    tokenizer = _train(documents, vocab_size, END_OF_TEXT)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
    )
    return tokenizer


def train_classification_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Lower-casing BPE without special tokens in its encodings; PADDING has id 0."""
    return _train(texts, vocab_size, PADDING, normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]))


def _train(
    texts: Iterable[str], vocab_size: int, special: str, normalizer: normalizers.Normalizer | None = None
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=normalizer is not None)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(special, special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
