"""A tiny Florence-2 of random weights, with a tokenizer made in code: the real classes, for tests and dry runs."""

from typing import Any

import torch

from penstock.models.protocols import PictureTransform

_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<sep>", "<poly>", "</poly>")
TINY_TRANSFORM = PictureTransform(size_hw=(64, 64), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def tiny_network(seed: int) -> Any:
    """A `Florence2ForConditionalGeneration` of about 0.2 million weights, for pictures of 64 x 64 and `tiny_tokenizer`."""
    from transformers import Florence2Config, Florence2ForConditionalGeneration

    size = len(tiny_tokenizer())
    config = Florence2Config(
        vision_config={
            "depths": (1, 1, 1, 1), "embed_dim": (16, 16, 32, 32), "num_heads": (2, 2, 2, 2), "num_groups": (2, 2, 2, 2),
            "window_size": 4, "projection_dim": 32, "drop_path_rate": 0.0,
        },
        text_config={
            "model_type": "bart", "vocab_size": size + 1, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
            "max_position_embeddings": 1024, "dropout": 0.0, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
            "decoder_start_token_id": 2, "forced_eos_token_id": 2,
        },
        image_token_id=size,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Florence2ForConditionalGeneration(config)
    network.generation_config.forced_bos_token_id = 0
    return network


def tiny_tokenizer() -> Any:
    """Bytes as words, and the words that Florence-2 answers masks with: `<loc_0>` to `<loc_999>` and the separators."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(_SPECIAL)}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        words[letter] = len(words)
    made = Tokenizer(models.BPE(words, [], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in _SPECIAL])
    made.add_tokens([AddedToken(f"<loc_{number}>", normalized=False) for number in range(1000)])
    wrapped: Any = PreTrainedTokenizerFast
    return wrapped(tokenizer_object=made, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
