"""Our codec is Meta's function: held to golden files made by sonar-space 0.5.0 (make_golden.py), and to it where installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import fairseq_layout  # type: ignore[import-not-found]
from safetensors.torch import load_file, save_file
from torch import Tensor

from sonarkit.codec.pipeline import Sonar
from sonarkit.codec.search import SearchConfig
from sonarkit.codec.weights import ShapeHints
from sonarkit.core.packing import pack

HERE = Path(__file__).parent
GOLDEN: dict[str, Any] = json.loads((HERE / "inputs.json").read_text(encoding="utf-8"))
LANGUAGES = ("eng_Latn", "fra_Latn", "deu_Latn", "spa_Latn")
live = pytest.mark.skipif(
    importlib.util.find_spec("sonar") is None, reason='sonar-space is not installed (pip install -e ".[sonar]")'
)


def meta_files(case: str, folder: Path) -> tuple[Path, Path, dict[str, Tensor]]:
    """Write the weights of a golden case as Meta's two files; the other half of a case without decoder is that of `mean`."""
    tensors = load_file(HERE / f"{case}.safetensors")
    sides = {}
    for side in ("encoder", "decoder"):
        found = {key.removeprefix(f"{side}:"): value for key, value in tensors.items() if key.startswith(f"{side}:")}
        found = found or {
            key.removeprefix("decoder:"): value
            for key, value in load_file(HERE / "mean.safetensors").items()
            if "decoder:" in key
        }
        sides[side] = folder / f"{side}.pt"
        torch.save({"model": found}, sides[side])
    return sides["encoder"], sides["decoder"], tensors


def hints(case: str) -> ShapeHints:
    """What the weights do not tell, as the case's configuration has it."""
    encoder = GOLDEN["cases"][case]["encoder"]
    pooling = encoder.get("pooling", "mean")
    return ShapeHints(
        heads=4,
        pooler_heads=4,
        activation=encoder.get("activation_fn", "ReLU").lower(),
        pooling="mean" if pooling == "attention" else pooling,
        scale_embedding=not encoder.get("no_scale_embedding", False),
        positions=not encoder.get("no_token_positional_embeddings", False),
        normalize_vector=GOLDEN["cases"][case]["normalize_emb"],
        max_tokens=192,
    )


@pytest.fixture(params=sorted(GOLDEN["cases"]))
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def codec(case: str, tmp_path: Path) -> tuple[Sonar, dict[str, Tensor]]:
    encoder, decoder, tensors = meta_files(case, tmp_path)
    return Sonar.from_meta(encoder, decoder, HERE / "tokenizer.spm", languages=LANGUAGES, hints=hints(case)), tensors


def texts_of(case: str) -> tuple[list[str], list[str]]:
    count = GOLDEN["cases"][case]["sentences"]
    return GOLDEN["texts"][:count], GOLDEN["langs"][:count]


def test_the_token_ids_are_metas(codec: tuple[Sonar, dict[str, Tensor]]) -> None:
    texts, langs = GOLDEN["texts"][:40], GOLDEN["langs"][:40]
    assert codec[0].source_ids(texts, langs) == GOLDEN["ids"]


def test_sentence_vectors_are_metas(case: str, codec: tuple[Sonar, dict[str, Tensor]]) -> None:
    """Within 1e-5 for vectors of unit scale, in one batch and one by one."""
    sonar, tensors = codec
    texts, langs = texts_of(case)
    expected = tensors["out:vectors"]
    scale = max(1.0, expected.abs().max().item())
    ours = sonar.encode(texts, langs)
    assert ours.shape == expected.shape
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * scale)
    singly = torch.cat([sonar.encode([text], lang) for text, lang in zip(texts[:24], langs)])
    torch.testing.assert_close(singly, expected[:24], rtol=0, atol=1e-5 * scale)


def logits(sonar: Sonar, z: Tensor, texts: Sequence[str], langs: Sequence[str]) -> list[Tensor]:
    found = []
    for vector, ids in zip(z, sonar.target_ids(texts, langs)):
        hidden = sonar.decoder(vector[None], *pack([ids[:-1]]))
        found.append(hidden @ sonar.decoder.embedding.weight.T)
    return found


@torch.no_grad()
def test_teacher_forced_logits_are_metas(case: str, codec: tuple[Sonar, dict[str, Tensor]]) -> None:
    """Within 1e-4."""
    sonar, tensors = codec
    expected = [tensors[f"out:logits{i}"] for i in range(9) if f"out:logits{i}" in tensors]
    texts, langs = texts_of(case)
    for ours, theirs in zip(logits(sonar, tensors["out:vectors"], texts, langs), expected):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert expected or case in ("max", "last", "no_positions")


def assert_same_search(
    sonar: Sonar, z: Tensor, langs: list[str], expected: list[list[dict[str, Any]]], batch_size: int, **options: Any
) -> None:
    """The best sentence token for token, all hypotheses' scores within 1e-4. Meta's limit of 40 counts prefix and end."""
    config = SearchConfig(**{"beam_size": 5, "max_tokens": 37, "score_language": True, **options})
    found = sonar.search(z, langs, config, batch_size=batch_size)
    eos = sonar.tokenizer.eos_id
    for ours, theirs in zip(found, expected, strict=True):
        assert [*ours[0].ids, eos] == theirs[0]["ids"]
        assert [h.score for h in ours] == pytest.approx([h["score"] for h in theirs], abs=1e-4)


def test_beam_searches_are_metas(case: str, codec: tuple[Sonar, dict[str, Tensor]]) -> None:
    """Beam 5, token for token, batched and one by one; and the text that comes of it."""
    told = GOLDEN["cases"][case]
    if "search" not in told:
        pytest.skip("this case has no decoder of its own")
    sonar, tensors = codec
    count = len(told["search"])
    z, langs = tensors["out:vectors"][:count], GOLDEN["langs"][:count]
    assert_same_search(sonar, z, langs, told["search"], batch_size=32)
    assert_same_search(sonar, z[:40], langs[:40], told["search"][:40], batch_size=1)
    assert sonar.decode(z, langs, max_tokens=37) == told["text"]


# Meta's min_gen_len counts `</s>`, as its lengths do.
VARIANTS = {
    "no_repeat_ngram": {"no_repeat_ngram": 2},
    "length_penalty": {"length_penalty": 0.4},
    "sums": {"length_penalty": 0.0},
    "min_tokens": {"min_tokens": 8},
}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_other_searches_are_metas(variant: str, tmp_path: Path) -> None:
    encoder, decoder, tensors = meta_files("mean", tmp_path)
    sonar = Sonar.from_meta(encoder, decoder, HERE / "tokenizer.spm", languages=LANGUAGES, hints=hints("mean"))
    told = GOLDEN["cases"]["mean"]
    expected, langs = told["variants"][variant], GOLDEN["langs"][:40]
    assert_same_search(sonar, tensors["out:vectors"][:40], langs, expected, 32, **VARIANTS[variant])
    assert [h[0]["ids"] for h in expected] != [h[0]["ids"] for h in told["search"][:40]], "the option must matter"


def test_the_shipped_codec_is_what_meta_makes_of_it() -> None:
    """200 sentences, most of them StoryWorld's, beam 5 to 97 pieces: a trained decoder, whose sentences end by themselves."""
    golden = GOLDEN["mini"]
    sonar = Sonar.from_pretrained("mini")
    assert sonar.fingerprint() == golden["codec"], "the shipped codec has changed: run tests/parity/make_golden.py again"
    z = sonar.encode(GOLDEN["texts"], GOLDEN["langs"])
    expected = load_file(HERE / "mini.safetensors")["vectors"]
    torch.testing.assert_close(z[:40], expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))
    searches = [
        [{"ids": best if i == 0 else None, "score": score} for i, score in enumerate(scores)] for best, scores in golden["search"]
    ]
    assert_same_search(sonar, z, GOLDEN["langs"], searches, batch_size=32, max_tokens=97)


# ---------------------------------------------------------------------- layouts


@pytest.mark.parametrize("layout", ["fairseq", "bare", "huggingface"])
def test_every_layout_gives_the_same_codec(layout: str, tmp_path: Path) -> None:
    """fairseq's with its pickled embedding module, fairseq2's without the top key, Hugging Face's M2M100 halves."""
    encoder, decoder, tensors = meta_files("mean", tmp_path)
    paths = {"encoder": encoder, "decoder": decoder}
    for side in ("encoder", "decoder"):
        own = torch.load(paths[side], weights_only=True)["model"]
        if layout == "bare":
            torch.save(own, paths[side])
            continue
        renamed = fairseq_layout(own, side)
        if layout == "fairseq":
            module = torch.nn.Embedding(*renamed["embed_tokens.weight"].shape, padding_idx=1)
            module.weight.data = renamed["embed_tokens.weight"].float()
            state = {**renamed, "version": torch.ones(1), "embed_positions._float_tensor": torch.ones(1)}
            if side == "encoder":
                del state["embed_tokens.weight"]
            else:
                state["output_projection.weight"] = renamed["embed_tokens.weight"]
            torch.save({"state_dict": state, "embed_tokens": module}, paths[side])
        else:
            paths[side] = tmp_path / side
            paths[side].mkdir()
            torch.save(renamed, paths[side] / "pytorch_model.bin")
            (paths[side] / "config.json").write_text(
                json.dumps({"model_type": "m2m_100", "encoder_attention_heads": 4, "decoder_attention_heads": 4})
            )
    if layout == "huggingface":
        (tmp_path / "encoder" / "sentencepiece.bpe.model").write_bytes((HERE / "tokenizer.spm").read_bytes())
        sonar = Sonar.from_huggingface(paths["encoder"], paths["decoder"], languages=LANGUAGES)
    else:
        sonar = Sonar.from_meta(
            paths["encoder"], paths["decoder"], HERE / "tokenizer.spm", languages=LANGUAGES, hints=hints("mean")
        )
    texts, langs = texts_of("mean")
    z = sonar.encode(texts[:40], langs[:40])
    torch.testing.assert_close(z, tensors["out:vectors"][:40], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(sonar, z, texts[:1], langs[:1])[0].detach(), tensors["out:logits0"], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("shards", [1, 2])
def test_nllb_becomes_a_codec(shards: int, tmp_path: Path) -> None:
    """NLLB's encoder outputs, averaged, and its decoder given one vector: what transformers' M2M100 gives, in 1e-5 and 1e-4."""
    tensors = load_file(HERE / "nllb.safetensors")
    weights = {key: value for key, value in tensors.items() if not key.startswith("out:")}
    files = {key: f"model-{i % shards + 1}-of-{shards}.safetensors" for i, key in enumerate(sorted(weights))}
    if shards == 1:
        save_file(weights, tmp_path / "model.safetensors")
    else:
        for file in set(files.values()):
            save_file({key: value for key, value in weights.items() if files[key] == file}, tmp_path / file)
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (tmp_path / "config.json").write_text((HERE / "nllb.json").read_text())
    sonar = Sonar.from_nllb(tmp_path, HERE / "tokenizer.spm", languages=LANGUAGES)
    assert (sonar.config.encoder.heads, sonar.config.decoder.heads, sonar.config.decoder.ffn) == (4, 2, 40)
    z = sonar.encode(GOLDEN["texts"][:24], GOLDEN["langs"][:24])
    expected = tensors["out:vectors"]
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))
    for i, ours in enumerate(logits(sonar, expected[:3], GOLDEN["texts"], GOLDEN["langs"])):
        torch.testing.assert_close(ours, tensors[f"out:logits{i}"], rtol=1e-5, atol=1e-4)


def test_a_codec_goes_to_metas_layout_and_back(case: str, codec: tuple[Sonar, dict[str, Tensor]], tmp_path: Path) -> None:
    """Our folder and Meta's files hold the same codec, bit for bit; what Meta's names beyond it does not matter."""
    sonar, tensors = codec
    sonar.save_meta(tmp_path / "meta")
    again = Sonar.from_meta(
        tmp_path / "meta" / "sonar_text_encoder.pt",
        tmp_path / "meta" / "sonar_text_decoder.pt",
        tmp_path / "meta" / "sentencepiece.source.model",
        languages=LANGUAGES,
        hints=hints(case),
    )
    assert again.config == sonar.config
    for key, value in sonar.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    written = torch.load(tmp_path / "meta" / "sonar_text_encoder.pt", weights_only=True)["model"]
    theirs = {key.removeprefix("encoder:") for key in tensors if key.startswith("encoder:")}
    assert set(written) == theirs


@live
def test_live_golden_files_are_what_meta_makes_today(tmp_path: Path) -> None:
    import make_golden  # type: ignore[import-not-found]

    make_golden.main(tmp_path)
    today = json.loads((tmp_path / "inputs.json").read_text(encoding="utf-8"))
    assert today["texts"] == GOLDEN["texts"] and today["ids"] == GOLDEN["ids"]
    for name, told in GOLDEN["cases"].items():
        ours, theirs = load_file(HERE / f"{name}.safetensors"), load_file(tmp_path / f"{name}.safetensors")
        assert ours.keys() == theirs.keys()
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-5 if "logits" not in key else 1e-4)
        for before, after in zip(told.get("search", []), today["cases"][name].get("search", []), strict=True):
            assert before[0]["ids"] == after[0]["ids"]


@live
def test_live_meta_reads_what_we_write_and_agrees(case: str, codec: tuple[Sonar, dict[str, Tensor]], tmp_path: Path) -> None:
    """sonar-space loads our files strictly and gives the vectors and the sentences that it gave before."""
    import make_golden

    sonar, tensors = codec
    sonar.save_meta(tmp_path)
    tokenizer = make_golden.meta_tokenizer(tmp_path / "sentencepiece.source.model")
    encoder, decoder = make_golden.models(
        make_golden.CASES[case], *make_golden.configs(make_golden.CASES[case], tokenizer.vocab_info.size)
    )
    encoder.load_state_dict(torch.load(tmp_path / "sonar_text_encoder.pt", weights_only=True)["model"])
    to_vector, to_text = make_golden.pipelines(encoder, decoder, tokenizer)
    texts, langs = texts_of(case)
    torch.testing.assert_close(make_golden.encode(to_vector, texts, langs), tensors["out:vectors"], rtol=0, atol=1e-5)
    if "text" in GOLDEN["cases"][case]:
        decoder.load_state_dict(torch.load(tmp_path / "sonar_text_decoder.pt", weights_only=True)["model"])
        expected = GOLDEN["cases"][case]["text"][:12]
        got = [
            to_text.predict(tensors["out:vectors"][i : i + 1], target_lang=langs[i], max_seq_len=40)[0]
            for i in range(len(expected))
        ]
        assert got == expected


@live
def test_live_both_backends_say_the_same() -> None:
    """Of mini, too, whose decoder never learned to predict the language token that Meta's scores count."""
    ours, theirs = Sonar.from_pretrained("mini"), Sonar.from_pretrained("mini", backend="sonar-space")
    texts, langs = GOLDEN["texts"][8:40], GOLDEN["langs"][8:40]
    z = ours.encode(texts, langs)
    torch.testing.assert_close(theirs.encode(texts, langs), z, rtol=0, atol=1e-5)
    for code in LANGUAGES:
        assert theirs.decode(z, code, max_tokens=64) == ours.decode(z, code, max_tokens=64)
