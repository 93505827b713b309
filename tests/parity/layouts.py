"""Meta's tensors under the names of other packages, to test with."""

from __future__ import annotations

import re

from torch import Tensor


def fairseq_layout(tensors: dict[str, Tensor], side: str) -> dict[str, Tensor]:
    """One side in fairseq2's names under fairseq's, which are Hugging Face's M2M100's too; the first four rows likewise."""
    renamed = {}
    for key, value in tensors.items():
        for ours, theirs in (
            (r"^(en|de)coder\.layers", "layers"),
            (r"self_attn\.output_proj", "self_attn.out_proj"),
            (r"encoder_decoder_attn\.output_proj", "encoder_attn.out_proj"),
            (r"encoder_decoder_attn", "encoder_attn"),
            (r"ffn\.inner_proj", "fc1"),
            (r"ffn\.output_proj", "fc2"),
            (r"ffn_layer_norm", "final_layer_norm"),
            (rf"^{side}_frontend\.embed", "embed_tokens"),
            (r"^decoder\.layer_norm", "layer_norm"),
        ):
            key = re.sub(ours, theirs, key)
        renamed[key] = value
    table = renamed["embed_tokens.weight"].clone()
    table[[1, 3, 0, 2]] = table[:4].clone()
    return {**renamed, "embed_tokens.weight": table}
