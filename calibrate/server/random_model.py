"""Writes a Llama of random weights with a word-level tokenizer, for servers to load; run by the server's Python.

    python random_model.py DIRECTORY WEIGHTS HIDDEN LAYERS HEADS KV_HEADS MLP VOCAB

WEIGHTS: float32, bfloat16, or none for servers that make up weights themselves. Needs transformers. The generation
config has no end token, so that answers are as long as asked for.
"""

from __future__ import annotations

import sys

SYLLABLES = ("ba", "de", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu")


def write_model(directory: str, weights: str, shape: tuple[int, int, int, int, int, int]) -> None:
    """Config, weights (fixed seed) and tokenizer, in the form that ``from_pretrained`` reads."""
    hidden, layers, heads, kv_heads, mlp, vocab = shape
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers  # type: ignore[import-not-found, unused-ignore]
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    # the words that `plan calibrate endpoint` makes prompts of are tokens of their own: else all prompts would be equal
    spoken = [first + second for first in SYLLABLES for second in SYLLABLES]
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {word: 3 + i for i, word in enumerate(spoken)}
    words |= {f"w{i}": i for i in range(len(words), vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    fast.save_pretrained(directory)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
    )
    if weights == "none":
        config.save_pretrained(directory)
        GenerationConfig(bos_token_id=1, pad_token_id=2).save_pretrained(directory)
        return
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, weights))
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = None
    model.save_pretrained(directory)


if __name__ == "__main__":
    hidden, layers, heads, kv_heads, mlp, vocab = map(int, sys.argv[3:9])
    write_model(sys.argv[1], sys.argv[2], (hidden, layers, heads, kv_heads, mlp, vocab))
