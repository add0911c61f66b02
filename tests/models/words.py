"""A tokenizer of a few words, made without any file."""

from typing import Any


def word_tokenizer() -> Any:
    """cat 3, dog 4, sky 5; padded with 1, `</s>`."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<s>": 0, "</s>": 1, "<unk>": 2, "cat": 3, "dog": 4, "sky": 5}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )
