"""Trains a byte-level BPE for encoders that are trained from scratch: a small vocabulary, with Qwen's special tokens and template."""

import json
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from dim_jax.processing.chat import END_OF_TEXT, IM_END, SPECIALS, VIDEO_PAD
from dim_jax.storage.folders import Kind, new_folder
from dim_jax.storage.paths import AnyPath

TOKENIZER = Kind("tokenizer", lambda folder: (folder / "tokenizer.json").is_file())


def train_tokenizer(texts: Iterable[str], vocabulary: int, folder: AnyPath) -> None:
    """Train a tokenizer on `texts` and write it to a folder, in place of one that is there. At most `vocabulary` ids, special tokens last.

    Byte pairs as in Sennrich et al. (arXiv 1508.07909), over bytes: no text is unknown, and every text comes back as it was.

    Raises:
        InputError: the folder exists and has something else in it, or the disk is full.
    """
    added = (*SPECIALS, VIDEO_PAD)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(added), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {"eos_token": IM_END, "pad_token": END_OF_TEXT, "model_max_length": 4096}
    with new_folder(folder, overwrite=True, kind=TOKENIZER) as scratch:
        (scratch / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")  # its own `save` raises no OSError
        (scratch / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
