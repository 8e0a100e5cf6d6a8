"""Networks for text and speech: Hugging Face transformers and its adapters, and what others have."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.third_party.problem import (
    OUTPUTS,
    SAMPLES,
    WORDS,
    Network,
    Problem,
    images,
    mean_over_positions,
    words,
)

# The sizes of most configurations, of those that name them as DistilBERT or GPT-2 do, and of decoders since Llama.
ENCODER = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "num_labels": OUTPUTS,
    "pad_token_id": 0,
}
DECODER = ENCODER | {"num_key_value_heads": 1, "head_dim": 8}
DISTILBERT = {"vocab_size": WORDS, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "num_labels": OUTPUTS}
GPT2 = {
    "vocab_size": WORDS,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "num_labels": OUTPUTS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
T5 = {"vocab_size": WORDS, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
MAMBA = {"vocab_size": WORDS, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2}
MIXTRAL = DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2}
SWIN = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [1, 2],
    "window_size": 4,
    "num_labels": OUTPUTS,
}
CONVNEXT = {"num_stages": 2, "hidden_sizes": [8, 12], "depths": [1, 1], "num_labels": OUTPUTS}
WAV2VEC2 = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (16, 16),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
    "num_labels": OUTPUTS,
}
WHISPER = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_mel_bins": 8,
    "max_source_positions": 16,
    "classifier_proj_size": 16,
    "num_labels": OUTPUTS,
}


def tokens() -> dict[str, Tensor]:
    """Words with a mask, the last ones of the first sample filled up."""
    ids, mask = words(), torch.ones(SAMPLES, 8, dtype=torch.long)
    ids[0, -3:], mask[0, -3:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def batch() -> Any:
    """Words as a tokenizer gives them."""
    import transformers

    return transformers.BatchEncoding(tokens())


def hugging_face(
    kind: str, head: str, sizes: dict[str, Any], output: Callable[[Any], Tensor] | None = None, x: str = "words"
) -> Problem:
    """A network with this head, such as "Bert" and "ForSequenceClassification"."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(**sizes)
    model = getattr(transformers, f"{kind}{head}")(config)
    inputs = {"words": batch, "images": pixels, "sound": sound, "spectrogram": spectrogram}[x]()
    return Problem(model, inputs, output)


def pixels() -> dict[str, Tensor]:
    """Images under the name that networks for images have for them."""
    return {"pixel_values": images()}


def sound() -> dict[str, Tensor]:
    """Sound under the name that networks for waves have for it."""
    return {"input_values": torch.randn(SAMPLES, 400)}


def spectrogram() -> dict[str, Tensor]:
    """A spectrogram under the name that Whisper has for it."""
    return {"input_features": torch.randn(SAMPLES, 8, 32)}


def classifier(kind: str, sizes: dict[str, Any], x: str = "words") -> Callable[[], Problem]:
    """Builds a classifier of sequences, or of images."""
    head = "ForImageClassification" if x == "images" else "ForSequenceClassification"
    return partial(hugging_face, kind, head, sizes, x=x)


def next_word(found: Any) -> Tensor:
    """The logits of some words at the last position."""
    return found.logits[:, -1, :OUTPUTS]


def mean_state(found: Any) -> Tensor:
    """The first numbers of the last hidden state, averaged over positions."""
    return mean_over_positions(found.last_hidden_state)


def adapted(**options: Any) -> Problem:
    """BERT with adapters of low rank, none of which begins at 0."""
    import peft

    base = hugging_face("Bert", "ForSequenceClassification", ENCODER)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False, **options)
    return Problem(peft.get_peft_model(base.model, config), base.x)


def rescaled() -> Problem:
    """BERT with activations that are rescaled by learned vectors."""
    import peft

    base = hugging_face("Bert", "ForSequenceClassification", ENCODER)
    return Problem(peft.get_peft_model(base.model, peft.IA3Config(task_type="SEQ_CLS")), base.x)


def sentence_transformer() -> Problem:
    """A sentence encoder of BERT, a mean over words, and a dense layer; it takes a dict as its one argument."""
    import sentence_transformers
    import transformers
    from sentence_transformers import models

    with tempfile.TemporaryDirectory() as folder:
        hugging_face("Bert", "Model", ENCODER).model.save_pretrained(folder)
        vocabulary = Path(folder) / "vocab.txt"
        vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(WORDS - 5))]))
        transformers.BertTokenizer(str(vocabulary)).save_pretrained(folder)
        encoder = models.Transformer(folder)
    modules = [encoder, models.Pooling(16), models.Dense(16, OUTPUTS)]
    model = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")
    return Problem(model, (tokens(),), lambda found: found["sentence_embedding"])


def x_transformers_decoder() -> Problem:
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=16, depth=2, heads=2, attn_dim_head=8, rotary_pos_emb=True, ff_glu=True, use_rmsnorm=True)
    model = TransformerWrapper(num_tokens=WORDS, max_seq_len=16, attn_layers=layers)
    return Problem(model, words(), lambda found: found[:, -1, :OUTPUTS])


def x_transformers_encoder() -> Problem:
    from x_transformers import ContinuousTransformerWrapper, Encoder

    layers = Encoder(dim=16, depth=2, heads=2, attn_dim_head=8, rel_pos_bias=True)
    model = ContinuousTransformerWrapper(dim_in=6, dim_out=OUTPUTS, max_seq_len=16, attn_layers=layers)
    return Problem(model, torch.randn(SAMPLES, 8, 6), mean_over_positions)


def performer() -> Problem:
    from performer_pytorch import PerformerLM

    model = PerformerLM(num_tokens=WORDS, max_seq_len=8, dim=16, depth=2, heads=2, dim_head=8, causal=False)
    return Problem(model, words(), mean_over_positions)


NETWORKS = [
    Network("transformers", "BERT", classifier("Bert", ENCODER)),
    Network("transformers", "DistilBERT", classifier("DistilBert", DISTILBERT)),
    Network("transformers", "RoBERTa", classifier("Roberta", ENCODER)),
    Network("transformers", "ALBERT", classifier("Albert", ENCODER | {"embedding_size": 8})),
    Network("transformers", "DeBERTa", classifier("DebertaV2", ENCODER | {"relative_attention": True})),
    Network("transformers", "GPT-2", classifier("GPT2", GPT2)),
    Network("transformers", "Llama", classifier("Llama", DECODER)),
    Network("transformers", "Gemma", classifier("Gemma2", DECODER)),
    Network("transformers", "Qwen", classifier("Qwen3", DECODER)),
    Network("transformers", "Mixtral", classifier("Mixtral", MIXTRAL)),
    Network("transformers", "Mamba", partial(hugging_face, "Mamba", "ForCausalLM", MAMBA, next_word)),
    Network("transformers", "T5 encoder", partial(hugging_face, "T5", "EncoderModel", T5, mean_state)),
    Network("transformers", "ViT", classifier("ViT", ENCODER | {"image_size": 32, "patch_size": 8}, "images")),
    Network(
        "transformers",
        "Swin",
        classifier("Swin", SWIN, "images"),
    ),
    Network(
        "transformers",
        "ConvNeXt",
        classifier("ConvNext", CONVNEXT, "images"),
    ),
    Network(
        "transformers",
        "wav2vec 2.0",
        partial(hugging_face, "Wav2Vec2", "ForSequenceClassification", WAV2VEC2, x="sound"),
    ),
    Network(
        "transformers",
        "Whisper",
        partial(hugging_face, "Whisper", "ForAudioClassification", WHISPER, x="spectrogram"),
    ),
    Network("peft", "LoRA on BERT", adapted, ("transformers",)),
    Network("peft", "DoRA on BERT", partial(adapted, use_dora=True), ("transformers",)),
    Network("peft", "IA3 on BERT", rescaled, ("transformers",)),
    Network("sentence-transformers", "sentence BERT", sentence_transformer, ("transformers",)),
    Network("x-transformers", "decoder", x_transformers_decoder),
    Network("x-transformers", "encoder", x_transformers_encoder),
    Network("performer-pytorch", "Performer", performer),
]
