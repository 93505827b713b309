"""The same codec run by Meta's own package, sonar-space: the reference that ours is compared with.

`Sonar.from_pretrained(name, backend="sonar-space")` gives one of these for any codec, `mini` too: our tensors are handed
to Meta's modules under Meta's names, without a copy.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sonarkit.codec.config import CodecConfig
from sonarkit.codec.weights import Side, meta_tensors
from sonarkit.core.loss import LossSum
from sonarkit.text.languages import per_text

if TYPE_CHECKING:
    from sonarkit.codec.pipeline import Sonar

_ACTIVATIONS = {"relu": "ReLU", "gelu": "GELU", "silu": "SiLU"}


class ReferenceSonar:
    """`encode`, `decode`, `translate` and `token_loss` of `Sonar`, each done by sonar-space 0.5.0 in float32.

    ImportError with the line to install when sonar-space is missing. Meta's pipelines differ from ours in two things:
    a sentence above the maximum is cut with its `</s>`, and a pipeline takes one language a call.
    """

    def __init__(self, sonar: Sonar) -> None:
        try:
            from fairseq2.models.nllb.tokenizer import NllbTokenizerConfig, load_nllb_tokenizer
            from sonar.inference_pipelines.text import EmbeddingToTextModelPipeline, TextToEmbeddingModelPipeline
            from sonar.models.sonar_text.factory import SonarTextDecoderFactory, SonarTextEncoderFactory
        except ImportError as error:
            raise ImportError(
                f'the backend "sonar-space" needs Meta\'s package ({error}): pip install "sonarkit[sonar]", in an environment of '
                "its own since it pins torch, and Debian's libsndfile1"
            ) from error
        self.config, self.name, self.languages = sonar.config, sonar.name, sonar.languages
        encoder_config, decoder_config = meta_configs(sonar.config)
        with torch.device("meta"):
            self.encoder = SonarTextEncoderFactory(encoder_config).create_model()
            self.decoder = SonarTextDecoderFactory(decoder_config).create_model()
        self.decoder.normalize_emb = sonar.config.decoder.normalize_vector
        sides: tuple[tuple[Side, Any], ...] = (("encoder", self.encoder), ("decoder", self.decoder))
        for side, module in sides:
            module.load_state_dict({k: v.float() for k, v in meta_tensors(sonar, sonar.config, side).items()}, assign=True)
            for part in module.modules():  # sinusoidal tables are no weights: computed anew
                if hasattr(part, "freqs"):
                    part.freqs = torch.empty(part.freqs.shape)
                    part.reset_non_persistent_buffers()
            module.eval()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "sentencepiece.model"
            file.write_bytes(sonar.tokenizer.model)
            self.tokenizer = load_nllb_tokenizer(
                file, NllbTokenizerConfig(langs=list(self.languages), default_lang=self.languages[0])
            )
        self._to_vector = TextToEmbeddingModelPipeline(self.encoder, self.tokenizer)
        self._to_text = EmbeddingToTextModelPipeline(self.decoder, self.tokenizer)

    def encode(
        self, texts: Sequence[str], lang: str | Sequence[str] = "eng_Latn", *, batch_size: int = 32, progress: bool = False
    ) -> Tensor:
        """Sentences -> (n, D) float32 vectors on the CPU."""
        vectors = torch.empty(len(texts), self.config.width)
        for code, rows in _by_language(per_text(lang, len(texts), self.languages)):
            found = self._to_vector.predict(
                [texts[i] for i in rows], source_lang=code, batch_size=batch_size, progress_bar=progress
            )
            vectors[rows] = found.float().clone()  # out of inference mode: gradients may start from it
        return vectors

    def decode(
        self,
        z: Tensor,
        lang: str | Sequence[str] = "eng_Latn",
        *,
        beam_size: int = 5,
        max_tokens: int = 512,
        batch_size: int = 32,
        progress: bool = False,
    ) -> list[str]:
        """(n, D) vectors -> n sentences, by Meta's beam search.

        Meta counts the given language token among those of a sentence. For a codec that has not learned to predict it,
        as `mini`, its chance is noise that would decide between short and long sentences: of the sentences that Meta's
        search found the best is then chosen without it.
        """
        limit = min(max_tokens + 3, self.config.max_tokens)  # Meta counts `</s> __lang__` and the end
        texts = [""] * len(z)
        for code, rows in _by_language(per_text(lang, len(z), self.languages)):
            if self.config.decoder.predicts_language:
                found = self._to_text.predict(
                    z[rows],
                    target_lang=code,
                    batch_size=batch_size,
                    progress_bar=progress,
                    beam_size=beam_size,
                    max_seq_len=limit,
                )
            else:
                batches = z[rows].split(batch_size)
                found = [text for batch in batches for text in self._best_without_language(batch, code, beam_size, limit)]
            for row, text in zip(rows, found):
                texts[row] = text
        return texts

    @torch.inference_mode()
    def _best_without_language(self, z: Tensor, lang: str, beam_size: int, limit: int) -> list[str]:
        from fairseq2.generation.beam_search.generator import BeamSearchSeq2SeqGenerator
        from fairseq2.nn import BatchLayout

        generator = BeamSearchSeq2SeqGenerator(
            self._to_text.model, self.tokenizer.vocab_info, beam_size=beam_size, max_seq_len=limit, echo_prompt=True
        )
        prefix = self.tokenizer.create_encoder(lang=lang, mode="target").prefix_indices.expand(len(z), -1)
        found = generator(z, BatchLayout.of(z), prefix, BatchLayout.of(prefix)).hypotheses
        best = [max(hypotheses, key=lambda h: float(h.step_scores[2:].mean())) for hypotheses in found]
        decoder = self.tokenizer.create_decoder()
        return [decoder(hypothesis.seq) for hypothesis in best]

    def translate(
        self, texts: Sequence[str], source_lang: str | Sequence[str], target_lang: str | Sequence[str], **options: Any
    ) -> list[str]:
        """Encode in one language, decode in another. `options` go to `decode`."""
        return self.decode(self.encode(texts, source_lang), target_lang, **options)

    def token_loss(self, z: Tensor, texts: Sequence[str], lang: str | Sequence[str] = "eng_Latn") -> LossSum:
        """Cross-entropy of each text given its vector, in nats, through Meta's decoder; differentiable in `z` (n, D)."""
        from fairseq2.nn import BatchLayout

        total, count = torch.zeros(()), 0
        for vector, text, code in zip(z, texts, per_text(lang, len(texts), self.languages), strict=True):
            ids = self.tokenizer.create_encoder(lang=code, mode="target")(text)
            source, target = vector[None, None], ids[None, :-1]
            logits = self.decoder(source, BatchLayout.of(source), target, BatchLayout.of(target))[0]
            total = total + torch.nn.functional.cross_entropy(logits[1:], ids[2:], reduction="sum")
            count += len(ids) - 2
        return LossSum(total, count, {})


def meta_configs(config: CodecConfig) -> tuple[Any, Any]:
    """The configuration of a codec in Meta's two classes, of the encoder and of the decoder."""
    from fairseq2.data.tokenizers import VocabularyInfo
    from sonar.models.sonar_text.config import SonarTextDecoderConfig, SonarTextEncoderConfig

    shared = {
        "max_seq_len": config.max_tokens,
        "vocab_info": VocabularyInfo(
            size=config.vocab_size, unk_idx=1, bos_idx=2, eos_idx=3, pad_idx=config.encoder.first_position - 1
        ),
        "emb_dropout_p": config.encoder.dropout,
        "attention_dropout_p": config.encoder.dropout,
        "activation_dropout_p": config.encoder.dropout,
    }
    encoder, decoder, pooler = config.encoder, config.decoder, config.encoder.pooler
    reading = SonarTextEncoderConfig(
        model_dim=encoder.width,
        num_encoder_layers=encoder.layers,
        num_decoder_layers=pooler.layers if pooler else 0,
        num_encoder_attn_heads=encoder.heads,
        num_decoder_attn_heads=pooler.heads if pooler else 0,
        ffn_inner_dim=encoder.ffn,
        pooling=encoder.pooling,
        embedding_dim=pooler.width if pooler else None,
        decoder_ffn_inner_dim=pooler.ffn if pooler else None,
        activation_fn=_ACTIVATIONS[encoder.activation],
        no_scale_embedding=not encoder.scale_embedding,
        no_token_positional_embeddings=encoder.positions == "none",
        learned_pos=encoder.positions == "learned",
        normalize_before=bool(pooler and pooler.norm == "pre"),
        **shared,
    )
    speaking = SonarTextDecoderConfig(
        model_dim=decoder.width,
        activation_fn=_ACTIVATIONS[decoder.activation],
        no_scale_embedding=not decoder.scale_embedding,
        no_token_positional_embeddings=False,
        learned_pos=False,
        normalize_before=True,
        num_encoder_layers=decoder.layers,
        num_decoder_layers=decoder.layers,
        num_encoder_attn_heads=decoder.heads,
        num_decoder_attn_heads=decoder.heads,
        ffn_inner_dim=decoder.ffn,
        input_dim=config.width,
        **shared,
    )
    return reading, speaking


def _by_language(codes: Sequence[str]) -> list[tuple[str, list[int]]]:
    return [(code, [i for i, c in enumerate(codes) if c == code]) for code in sorted(set(codes))]
