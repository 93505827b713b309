"""Make the golden files beside this script with Meta's own package (sonar-space 0.5.0) and Hugging Face's M2M100.

    python tests/parity/make_golden.py [FOLDER]

in an environment with `pip install -e ".[sonar,hf]"`. Each case is a tiny codec of random weights with what Meta's code
makes of it: `CASE.safetensors` has the weights (`encoder:` and `decoder:` before Meta's names) and the outputs, `inputs.json`
the sentences, beam searches and texts. Weights are rounded to float16 first, so the file holds exactly what was run.
"""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

LANGUAGES = ["eng_Latn", "fra_Latn", "deu_Latn", "spa_Latn"]
HERE = Path(__file__).parent


@dataclass
class Case:
    """Differences from the shipped configuration, in the names of Meta's config classes."""

    encoder: dict[str, Any] = field(default_factory=dict)
    decoder: dict[str, Any] = field(default_factory=dict)
    sentences: int = 24
    beams: int = 0  # how many vectors are decoded
    logits: int = 3  # how many sentences are scored by teacher forcing
    seed: int = 0
    normalize_emb: bool = False  # of the decoder: the vector is brought to length 1 first


# Searches other than the shipped one: options of Meta's generator, `no_repeat_ngram` aside, which is a processor there.
SEARCHES: dict[str, dict[str, Any]] = {
    "no_repeat_ngram": {"no_repeat_ngram": 2},
    "length_penalty": {"len_penalty": 0.4},
    "sums": {"normalize_scores": False},
    "min_tokens": {"min_gen_len": 9},
}

CASES = {
    "mean": Case(beams=200, sentences=200, logits=6),
    "max": Case({"pooling": "max"}, seed=1, logits=0),
    "last": Case({"pooling": "last"}, seed=2, logits=0),
    "attention_post_norm": Case({"pooling": "attention", "num_decoder_layers": 2, "decoder_ffn_inner_dim": 40}, seed=3),
    "attention_wide_pre_norm": Case(
        {"pooling": "attention", "embedding_dim": 48, "normalize_before": True, "num_decoder_layers": 1},
        {"input_dim": 48},
        beams=12,
        seed=4,
    ),
    "learned_unscaled_gelu": Case(
        {"learned_pos": True, "no_scale_embedding": True, "activation_fn": "GELU"},
        {"no_scale_embedding": True, "activation_fn": "GELU"},
        beams=12,
        seed=5,
    ),
    "normalized_vector": Case(normalize_emb=True, seed=7),
    "no_positions": Case({"no_token_positional_embeddings": True}, seed=6, logits=0),
}


def sentences(count: int) -> tuple[list[str], list[str]]:
    """`count` sentences of mixed length in four languages, some of them odd, and their languages."""
    from sonarkit.text.storyworld import stories

    odd = ["A.", "", "¿Qué?", "Über 100 €!", "日本語 and 🙂", "one  two\tthree", "Straße, naïve, Ærøskøbing.", "word " * 40]
    texts, langs = list(odd), [LANGUAGES[i % 4] for i in range(len(odd))]
    for story in stories(60, split="test"):
        for i in range(len(story.sentences["eng_Latn"])):
            lang = LANGUAGES[len(texts) % 4]
            text = story.sentences[lang][i]
            joined = text if len(texts) % 7 else " ".join(story.sentences[lang][i : i + 3])
            texts.append(joined)
            langs.append(lang)
    step = max(1, len(texts) // count)
    return (texts[:8] + texts[8::step])[:count], (langs[:8] + langs[8::step])[:count]


def tokenizer_model() -> bytes:
    """A SentencePiece model of 300 pieces; no normalisation table, which would be most of the file."""
    import sentencepiece

    from sonarkit.text.storyworld import stories

    lines = [s for story in stories(150, split="valid") for side in story.sentences.values() for s in side]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=300,
        model_type="unigram",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    return model.getvalue()


def configs(case: Case, vocab_size: int, width: int = 32, layers: int = 2, heads: int = 4, ffn: int = 48) -> tuple[Any, Any]:
    """Meta's configurations of a case: the shipped "basic" architecture, small."""
    from fairseq2.data.tokenizers import VocabularyInfo
    from sonar.models.sonar_text.config import SonarTextDecoderConfig, SonarTextEncoderConfig

    vocab = VocabularyInfo(size=vocab_size, unk_idx=1, bos_idx=2, eos_idx=3, pad_idx=1)  # as shipped; the tokenizer pads with 0
    shared = {
        "model_dim": width,
        "vocab_info": vocab,
        "learned_pos": False,
        "no_scale_embedding": False,
        "emb_dropout_p": 0.1,
        "attention_dropout_p": 0.1,
        "activation_dropout_p": 0.1,
        "no_token_positional_embeddings": False,
        "activation_fn": "ReLU",
        "num_encoder_layers": layers,
        "num_decoder_layers": layers,
        "num_encoder_attn_heads": heads,
        "num_decoder_attn_heads": heads,
        "ffn_inner_dim": ffn,
    }
    encoder = SonarTextEncoderConfig(
        **{**shared, "max_seq_len": 192, "pooling": "mean", "normalize_before": False, "_from_fairseq": True, **case.encoder}
    )
    decoder = SonarTextDecoderConfig(**{**shared, "max_seq_len": 192, "normalize_before": True, **case.decoder})
    return encoder, decoder


def models(case: Case, encoder_config: Any, decoder_config: Any) -> tuple[Any, Any]:
    """Meta's models with random weights, biases and norms random too, rounded to float16.

    Special tokens are made unlikely, as in a trained decoder, but the end of a sentence likely enough that searches
    end at different lengths.
    """
    from sonar.models.sonar_text.factory import SonarTextDecoderFactory, SonarTextEncoderFactory

    torch.manual_seed(case.seed)
    encoder = SonarTextEncoderFactory(encoder_config).create_model().eval()
    decoder = SonarTextDecoderFactory(decoder_config).create_model().eval()
    decoder.normalize_emb = case.normalize_emb
    with torch.no_grad():
        for name, tensor in [*encoder.named_parameters(), *decoder.named_parameters()]:
            if name.endswith("bias"):
                tensor.normal_(0, 0.1)
            elif "layer_norm" in name:
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("output_proj.weight"):
                tensor.mul_(4)  # else a random decoder repeats its last token for ever, through the tied projection
        table = decoder.decoder_frontend.embed.weight
        table.normal_(0, table.shape[1] ** -0.5).mul_(0.6)
        table[[0, 1, 2, *range(len(table) - len(LANGUAGES) - 3, len(table))]] *= 0.1  # special tokens stay unlikely
        end = table[3].clone()
        decoder.decoder.layer_norm.bias.add_(end / end.square().sum() * 0.8)
        for model in (encoder, decoder):
            for tensor in model.parameters():
                tensor.copy_(tensor.half().float())
    return encoder, decoder


def pipelines(encoder: Any, decoder: Any, tokenizer: Any) -> tuple[Any, Any]:
    from sonar.inference_pipelines.text import EmbeddingToTextModelPipeline, TextToEmbeddingModelPipeline

    return TextToEmbeddingModelPipeline(encoder, tokenizer), EmbeddingToTextModelPipeline(decoder, tokenizer)


def meta_tokenizer(model: Path) -> Any:
    from fairseq2.models.nllb.tokenizer import NllbTokenizerConfig, load_nllb_tokenizer

    return load_nllb_tokenizer(model, NllbTokenizerConfig(langs=LANGUAGES, default_lang=LANGUAGES[0]))


@torch.inference_mode()
def encode(pipeline: Any, texts: list[str], langs: list[str], batch_size: int = 16) -> Tensor:
    """Meta's pipeline takes one language a call, and no encoder without positions, which is called as it is."""
    if pipeline.model.encoder_frontend.pos_encoder is None:
        from fairseq2.nn import BatchLayout

        rows = [pipeline.tokenizer.create_encoder(lang=lang)(text)[None] for text, lang in zip(texts, langs)]
        return torch.cat([pipeline.model(row, BatchLayout.of(row)).sentence_embeddings for row in rows])
    found = torch.empty(0)
    for lang in LANGUAGES:
        rows = [i for i, code in enumerate(langs) if code == lang]
        if rows:
            vectors = pipeline.predict([texts[i] for i in rows], source_lang=lang, batch_size=batch_size)
            found = found if len(found) else torch.empty(len(texts), vectors.shape[1])
            found[rows] = vectors
    return found


@torch.inference_mode()
def logits(decoder: Any, tokenizer: Any, vectors: Tensor, texts: list[str], langs: list[str]) -> list[Tensor]:
    """Teacher-forced logits of `</s> __lang__ pieces`, (L, V) for each text."""
    from fairseq2.nn import BatchLayout

    found = []
    for vector, text, lang in zip(vectors, texts, langs):
        ids = tokenizer.create_encoder(lang=lang, mode="target")(text)[None, :-1]
        memory = vector[None, None]
        found.append(decoder(memory, BatchLayout.of(memory), ids, BatchLayout.of(ids))[0])
    return found


@torch.inference_mode()
def search(
    decoder: Any, tokenizer: Any, vectors: Tensor, langs: list[str], batch_size: int, **options: Any
) -> list[list[dict[str, Any]]]:
    """Meta's beam search: for each vector its hypotheses, whole sequences with their scores, best first."""
    from fairseq2.generation.beam_search.generator import BeamSearchSeq2SeqGenerator
    from fairseq2.generation.step_processor import NGramRepeatBlockProcessor
    from fairseq2.nn import BatchLayout
    from sonar.models.sonar_translation import SonarEncoderDecoderModel
    from sonar.models.sonar_translation.model import DummyEncoderModel

    if blocked := options.pop("no_repeat_ngram", 0):
        options["step_processors"] = [NGramRepeatBlockProcessor(blocked)]
    generator = BeamSearchSeq2SeqGenerator(
        SonarEncoderDecoderModel(DummyEncoderModel(), decoder).eval(), tokenizer.vocab_info, **options
    )
    found: list[list[dict[str, Any]]] = [[] for _ in langs]
    for lang in LANGUAGES:
        rows = [i for i, code in enumerate(langs) if code == lang]
        prefix = tokenizer.create_encoder(lang=lang, mode="target").prefix_indices
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            seqs = vectors[batch]
            prefixes = prefix.expand(len(batch), -1)
            output = generator(seqs, BatchLayout.of(seqs), prefixes, BatchLayout.of(prefixes))
            for row, hypotheses in zip(batch, output.hypotheses):
                found[row] = [{"ids": h.seq.tolist(), "score": round(float(h.score), 6)} for h in hypotheses]
    return found


@torch.inference_mode()
def huggingface(folder: Path, ids: list[list[int]]) -> None:
    """A tiny M2M100, NLLB's architecture, of random weights: mean encoder outputs and logits given one such vector."""
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    torch.manual_seed(9)
    config = M2M100Config(
        vocab_size=_pieces(folder / "tokenizer.spm") + 1 + len(LANGUAGES) + 3,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=40,
        max_position_embeddings=192,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    model = M2M100ForConditionalGeneration(config).eval()
    for name, tensor in model.named_parameters():
        tensor.normal_(1.0 if "layer_norm.weight" in name else 0.0, 0.2)
        tensor.copy_(tensor.half().float())
    to_theirs = torch.tensor([1, 3, 0, 2, *range(4, config.vocab_size)])  # <pad> <unk> <s> </s> -> M2M100's numbers
    vectors = torch.cat([model.model.encoder(to_theirs[torch.tensor(row)][None]).last_hidden_state.mean(1) for row in ids])
    tensors = {key: value.half() for key, value in model.state_dict().items() if key not in ("lm_head.weight", *_TIED)}
    tensors["out:vectors"] = vectors
    for i, row in enumerate(ids[:3]):
        target = to_theirs[torch.tensor([3, row[0], *row[1:-1]])][None]
        hidden = model.model.decoder(target, encoder_hidden_states=vectors[i][None, None]).last_hidden_state
        tensors[f"out:logits{i}"] = model.lm_head(hidden)[0][:, to_theirs]
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "nllb.safetensors")
    (folder / "nllb.json").write_text(json.dumps(config.to_dict(), default=str) + "\n", encoding="utf-8")


def shipped(folder: Path, texts: list[str], langs: list[str]) -> dict[str, Any]:
    """The shipped codec in Meta's hands: vectors, and beam searches of a decoder that has learned to end its sentences."""
    from sonarkit.codec.pipeline import Sonar

    meta = Sonar.from_pretrained("mini", backend="sonar-space")
    vectors = meta.encode(texts, langs)
    save_file({"vectors": vectors[:40].contiguous()}, folder / "mini.safetensors")
    found = search(meta.decoder, meta.tokenizer, vectors, langs, 32, max_seq_len=100)
    return {
        "codec": Sonar.from_pretrained("mini").fingerprint(),
        "search": [[h["ids"] for h in row[:1]] + [[h["score"] for h in row]] for row in found],
    }


_TIED = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")


def _pieces(model: Path) -> int:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(model)).get_piece_size()


def main(folder: Path = HERE) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.spm").write_bytes(tokenizer_model())
    tokenizer = meta_tokenizer(folder / "tokenizer.spm")
    all_texts, all_langs = sentences(200)
    golden: dict[str, Any] = {"texts": all_texts, "langs": all_langs, "cases": {}}
    golden["ids"] = [tokenizer.create_encoder(lang=lang)(text).tolist() for text, lang in zip(all_texts[:40], all_langs)]
    for name, case in CASES.items():
        encoder, decoder = models(case, *configs(case, tokenizer.vocab_info.size))
        texts, langs = all_texts[: case.sentences], all_langs[: case.sentences]
        to_vector, to_text = pipelines(encoder, decoder, tokenizer)
        vectors = encode(to_vector, texts, langs)
        one_by_one = encode(to_vector, texts[:24], langs[:24], batch_size=1)
        tensors = {f"encoder:{key}": value.half() for key, value in encoder.state_dict().items()}
        tensors["out:vectors"] = vectors
        print(f"{name}: batched and single vectors differ by {(vectors[:24] - one_by_one).abs().max():.1e}")
        told: dict[str, Any] = {key: getattr(case, key) for key in ("encoder", "decoder", "sentences", "normalize_emb")}
        if case.logits or case.beams:
            tensors |= {
                f"decoder:{key}": value.half() for key, value in decoder.state_dict().items() if key != "final_proj.weight"
            }
        for i, scores in enumerate(logits(decoder, tokenizer, vectors[: case.logits], texts, langs)):
            tensors[f"out:logits{i}"] = scores
        if case.beams:
            some, codes = vectors[: case.beams], langs[: case.beams]
            told["search"] = search(decoder, tokenizer, some, codes, 32, max_seq_len=40)
            told["text"] = [to_text.predict(some[i : i + 1], target_lang=codes[i], max_seq_len=40)[0] for i in range(len(codes))]
            if name == "mean":
                told["variants"] = {
                    variant: search(decoder, tokenizer, some[:40], codes[:40], 16, max_seq_len=40, **options)
                    for variant, options in SEARCHES.items()
                }
            lengths = sorted(len(h[0]["ids"]) for h in told["search"])
            print(f"  {case.beams} searches, lengths {lengths[0]} .. {lengths[len(lengths) // 2]} .. {lengths[-1]}")
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")
        golden["cases"][name] = told
    huggingface(folder, golden["ids"][:24])
    golden["mini"] = shipped(folder, all_texts, all_langs)
    (folder / "inputs.json").write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
