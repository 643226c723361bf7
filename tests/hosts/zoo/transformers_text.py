"""Tiny models of transformers that take a text or, in one case, sound."""

from typing import Any

from tests.hosts.zoo.entry import NUM_TOKENS, VOCAB_SIZE, normal, token_ids
from tests.hosts.zoo.transformers_common import BERT, TEXT, WIDE, add_model


def text_inputs(**more) -> dict[str, Any]:
    return {"input_ids": token_ids(), **more}


add_model("llama", "LlamaForCausalLM", "LlamaConfig", TEXT, text_inputs)
add_model("mistral", "MistralForCausalLM", "MistralConfig", TEXT, text_inputs, sliding_window=6)
add_model("qwen2", "Qwen2ForCausalLM", "Qwen2Config", WIDE, text_inputs)
add_model("qwen3", "Qwen3ForCausalLM", "Qwen3Config", TEXT, text_inputs)
add_model("gemma", "GemmaForCausalLM", "GemmaConfig", TEXT, text_inputs)
add_model("gemma2", "Gemma2ForCausalLM", "Gemma2Config", TEXT, text_inputs, sliding_window=6, query_pre_attn_scalar=16)
add_model(
    "gemma3 text",
    "Gemma3ForCausalLM",
    "Gemma3TextConfig",
    TEXT,
    text_inputs,
    sliding_window=6,
    query_pre_attn_scalar=16,
    layer_types=["sliding_attention", "full_attention"],
)
add_model("phi", "PhiForCausalLM", "PhiConfig", WIDE, text_inputs, partial_rotary_factor=0.5, qk_layernorm=True)
add_model("phi3", "Phi3ForCausalLM", "Phi3Config", WIDE, text_inputs)
add_model("phi3 partial", "Phi3ForCausalLM", "Phi3Config", WIDE, text_inputs, partial_rotary_factor=0.5)
add_model(
    "gpt-neox", "GPTNeoXForCausalLM", "GPTNeoXConfig", BERT, text_inputs, rotary_pct=0.5, bos_token_id=1, eos_token_id=2
)
add_model("olmo2", "Olmo2ForCausalLM", "Olmo2Config", WIDE, text_inputs)
add_model("smollm3", "SmolLM3ForCausalLM", "SmolLM3Config", WIDE, text_inputs, no_rope_layers=[1, 0])
add_model("mixtral", "MixtralForCausalLM", "MixtralConfig", TEXT, text_inputs, num_local_experts=4, sliding_window=6)
add_model(
    "gpt2",
    "GPT2LMHeadModel",
    "GPT2Config",
    {"vocab_size": VOCAB_SIZE, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    text_inputs,
    bos_token_id=1,
    eos_token_id=2,
)
add_model("bert", "BertModel", "BertConfig", BERT, text_inputs)
add_model("roberta", "RobertaModel", "RobertaConfig", BERT, text_inputs, pad_token_id=1, bos_token_id=0, eos_token_id=2)
add_model(
    "modernbert",
    "ModernBertModel",
    "ModernBertConfig",
    BERT,
    text_inputs,
    global_attn_every_n_layers=2,
    local_attention=8,
    bos_token_id=1,
    eos_token_id=2,
    cls_token_id=1,
    sep_token_id=2,
)
add_model(
    "whisper encoder",
    "whisper.modeling_whisper.WhisperEncoder",
    "WhisperConfig",
    {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "vocab_size": VOCAB_SIZE},
    lambda: {"input_features": normal(2, 8, 2 * NUM_TOKENS)},
    num_mel_bins=8,
    max_source_positions=NUM_TOKENS,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
)
add_model(
    "t5 encoder",
    "T5EncoderModel",
    "T5Config",
    {"vocab_size": VOCAB_SIZE, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
    text_inputs,
    gain=0.75,
)
add_model(
    "falcon",
    "FalconForCausalLM",
    "FalconConfig",
    {key: value for key, value in BERT.items() if key not in ("intermediate_size", "max_position_embeddings")},
    text_inputs,
    bos_token_id=1,
    eos_token_id=2,
)
add_model(
    "falcon grouped",
    "FalconForCausalLM",
    "FalconConfig",
    {key: value for key, value in BERT.items() if key not in ("intermediate_size", "max_position_embeddings")},
    text_inputs,
    hidden_size=64,
    num_attention_heads=4,
    num_kv_heads=2,
    new_decoder_architecture=True,
    bos_token_id=1,
    eos_token_id=2,
)
add_model(
    "bloom",
    "BloomForCausalLM",
    "BloomConfig",
    {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "n_layer": 2, "n_head": 2},
    text_inputs,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
add_model(
    "opt",
    "OPTForCausalLM",
    "OPTConfig",
    {key: value for key, value in BERT.items() if key != "intermediate_size"},
    text_inputs,
    ffn_dim=64,
    word_embed_proj_dim=32,
    bos_token_id=1,
    eos_token_id=2,
)
