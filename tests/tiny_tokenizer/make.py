"""Makes the tokenizer beside this file: `python tests/tiny_tokenizer/make.py`.

For tests and the smoke demo with the tiny encoder of the goldens (vocabulary 300, picture tokens 288 to 291): ids 0 to 255 are the
256 bytes, 256 to 284 merges of frequent English pairs, then the special tokens. It has no normaliser: every text comes back as it was.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

FOLDER = Path(__file__).parent
# Frequent pairs of English text, each of pieces that exist before it; a space is written Ġ in byte-level vocabularies.
MERGES = [
    *("t h", "th e", "i n", "e r", "a n", "o n", "r e", "Ġ t", "Ġt h", "Ġth e", "Ġ a", "Ġ s", "Ġ w", "Ġ c", "Ġ b", "Ġ o", "Ġ m", "Ġ i"),
    *("a t", "o r", "e n", "i s", "i t", "e d", "in g", "u s", "us er", "o u", "a r"),
]
SPECIALS = {
    "<|endoftext|>": 285,
    "<|im_start|>": 286,
    "<|im_end|>": 287,
    "<|vision_start|>": 288,
    "<|vision_end|>": 289,
    "<|image_pad|>": 290,
    "<|video_pad|>": 291,
}


def make(folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json into `folder`."""
    vocabulary = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [(left, right) for left, right in map(str.split, MERGES)]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    vocabulary |= SPECIALS
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 4096,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    make(FOLDER)
