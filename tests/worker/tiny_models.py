"""Tiny models with random weights, of kinds that no package of the project contains."""

import json
import shutil
import warnings
from pathlib import Path

__all__ = ["make_bert", "make_whisper"]

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def make_bert(folder: Path, tokenizer: Path, architecture: str, labels: int) -> Path:
    """``BertForSequenceClassification`` or ``BertForTokenClassification`` with two layers.

    ``tokenizer``: the folder of a BERT model, whose tokenizer is copied.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch and transformers warn while they are imported
        import torch
        import transformers

        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=30522,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=256,
            num_labels=labels,
        )
        getattr(transformers, architecture)(config).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, folder / name)
    return folder


def make_whisper(folder: Path) -> Path:
    """A model that only transcribes: the configuration, without the weights that vLLM would load."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import WhisperConfig

        config = WhisperConfig(
            d_model=64,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
        ).to_dict()
    config["architectures"] = ["WhisperForConditionalGeneration"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
