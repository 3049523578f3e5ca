"""What stands for llama.cpp's converter in tests: a Llama's tensors as GGUF, by the package `gguf`; no tokenizer.

python llama_gguf.py FOLDER --outfile FILE --outtype f32
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.torch import load_file

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(name: str) -> str:
    """Return how GGUF calls a tensor of a Llama."""
    if name in WHOLE:
        return WHOLE[name]
    _, _, layer, *inner, last = name.split(".")
    return f"blk.{layer}.{NAMES['.'.join(inner)]}.{last}"


def turned(name: str, tensor: Any, config: dict[str, Any]) -> Any:
    """Return a tensor in llama.cpp's order of rotary pairs."""
    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config["num_key_value_heads"],
    }
    of = next((n for key, n in heads.items() if key in name), None)
    if of is None:
        return tensor
    rows, width = tensor.shape
    return tensor.reshape(of, 2, rows // of // 2, width).swapaxes(1, 2).reshape(rows, width)


def main() -> None:
    """Convert a folder as the converter does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--outfile", required=True)
    parser.add_argument("--outtype", choices=("f32", "bf16"), required=True)
    told = parser.parse_args()
    config = json.loads((told.folder / "config.json").read_text("utf-8"))
    writer = gguf.GGUFWriter(told.outfile, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    for name, tensor in load_file(told.folder / "model.safetensors").items():
        data = turned(name, tensor.float().numpy(), config)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
