"""Make `speech.safetensors` beside this script with Meta's own package (sonar-space 0.5.0).

    python tests/parity/make_golden_speech.py [FOLDER]

in an environment with `pip install -e ".[sonar]"`. A tiny speech encoder of random weights (`weights:` before fairseq2's
names), two waveforms (int16), and what fairseq2 and sonar-space make of them: filter banks and, both in one padded batch,
vectors. Weights are rounded to float16 first, so the file holds exactly what was run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn


def meta_encoder(seed: int = 0) -> Any:
    """Meta's speech encoder at a tiny size, with random weights and batch statistics, in evaluation mode."""
    from fairseq2.models.transformer import TransformerNormOrder
    from fairseq2.models.w2vbert import W2VBertConfig
    from sonar.models.sonar_speech import SonarSpeechEncoderConfig, SonarSpeechEncoderFactory

    body = W2VBertConfig().w2v2_config.encoder_config
    body.model_dim, body.num_encoder_layers, body.num_encoder_attn_heads, body.ffn_inner_dim = 32, 2, 4, 48
    body.max_seq_len, body.depthwise_conv_kernel_size = 512, 7
    config = SonarSpeechEncoderConfig(
        w2v2_encoder_config=body,
        final_dropout_p=0.1,
        model_dim=32,
        max_seq_len=64,
        pad_idx=1,
        bos_idx=2,
        num_decoder_layers=2,
        num_decoder_attn_heads=4,
        decoder_norm_order=TransformerNormOrder.POST,
        ffn_inner_dim=40,
        dropout_p=0.1,
    )
    torch.manual_seed(seed)
    model = SonarSpeechEncoderFactory(config).create_model().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter)).copy_(parameter.half().float())
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_().copy_(module.running_mean.half().float())
                module.running_var.uniform_(0.5, 2).copy_(module.running_var.half().float())
    return model


def meta_features(waveform: Tensor) -> Tensor:
    """(n,) -> (L, 80) by fairseq2's converter, as sonar-space's speech pipelines set it."""
    from fairseq2.data.audio import WaveformToFbankConverter

    convert = WaveformToFbankConverter(
        num_mel_bins=80, waveform_scale=2**15, channel_last=True, standardize=True, dtype=torch.float32
    )
    return convert({"waveform": waveform[:, None], "sample_rate": 16_000.0, "format": -1})["fbank"]


def meta_vectors(model: Any, features: list[Tensor]) -> Tensor:
    """(N, D) of all in one padded batch."""
    from fairseq2.nn import BatchLayout

    padded = nn.utils.rnn.pad_sequence(features, batch_first=True)
    with torch.inference_mode():
        return model(padded, BatchLayout.of(padded, [len(f) for f in features])).sentence_embeddings.clone()


def waveforms() -> list[Tensor]:
    """(n,) int16: noise whose loudness changes, of lengths that give an odd and an even number of frames."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for seconds in (0.4, 0.73):
        count = round(16_000 * seconds)
        loudness = 0.1 + 0.1 * torch.sin(torch.arange(count) / 900)
        found.append((torch.randn(count, generator=generator) * loudness * 2**13).clamp(-(2**15), 2**15 - 1).short())
    return found


def main(folder: Path) -> None:
    model, sounds = meta_encoder(), waveforms()
    features = [meta_features(sound.float() / 2**15) for sound in sounds]
    tensors = {f"weights:{k}": v.half() for k, v in model.state_dict().items() if v.is_floating_point()}
    tensors |= {f"waveform:{i}": sound for i, sound in enumerate(sounds)}
    tensors |= {f"features:{i}": f.contiguous() for i, f in enumerate(features)}
    save_file({**tensors, "vectors": meta_vectors(model, features)}, folder / "speech.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
