"""Turn a corpus into an embedding store, on one process or many.

    python sonarkit/encode.py storyworld:20000 stores/train
    torchrun --nproc-per-node 2 sonarkit/encode.py stories.jsonl stores/mine --codec mini --column text

Each distinct sentence is encoded and stored once. A run that was interrupted (SIGTERM, a crash, a full disk) goes on when the
same command is given again, by any number of processes: finished shards are kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

# torchrun puts this file's own folder first on sys.path, where our file names would shadow libraries: use its parent.
if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import signal  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from typing import Annotated, Any, Literal  # noqa: E402

import torch  # noqa: E402
import tyro  # noqa: E402

from sonarkit.codec.pipeline import Sonar, TruncationWarning  # noqa: E402
from sonarkit.core.distributed import World, print0, start, stop  # noqa: E402
from sonarkit.core.errors import user_errors  # noqa: E402
from sonarkit.core.files import Place  # noqa: E402
from sonarkit.models.rollout import END_OF_SEQUENCE  # noqa: E402
from sonarkit.store.build import Coder, StoreStamp, build  # noqa: E402
from sonarkit.text.corpora import open_corpus  # noqa: E402
from sonarkit.text.languages import resolve  # noqa: E402
from sonarkit.text.sentences import segmenter_name, split_sentences  # noqa: E402


def main(arguments: list[str] | None = None) -> None:
    """Encode the corpus that the arguments name; by default those of the command line."""
    with user_errors():
        markers = (tyro.conf.PositionalMetavarFromFieldName, tyro.conf.DisallowNone)
        tyro.cli(encode_corpus, prog="encode.py", description=__doc__, args=arguments, config=markers)


def encode_corpus(
    corpus: Annotated[str, tyro.conf.Positional],
    store: Annotated[str, tyro.conf.Positional],
    codec: str = "mini",
    lang: str = "eng_Latn",
    column: str = "text",
    limit: int | None = None,
    documents_per_shard: int = 512,
    batch_tokens: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Encode the sentences of a corpus into an embedding store.

    Args:
        corpus: A .txt, .jsonl, .jsonl.gz or .parquet file, a folder of them, storyworld:COUNT, storyworld:valid,
            storyworld:test, storyworld:unseen, handwritten, or hf:NAME.
        store: The folder to write, or a URL (s3://, gs:// and what else fsspec writes; `pip install s3fs` or gcsfs). One that
            was begun by the same command is finished.
        codec: "mini", "sonar", "sonar-finetuned" or a folder.
        lang: The language of the corpus: a FLORES-200 code, or what means one, such as `fr` and `French`.
        column: Where the text is, in corpora with columns; A+B for that of column A followed by that of B.
        limit: Take only this many documents.
        documents_per_shard: Documents in a file of the store: the unit of work of a rank, within which sentences are sorted
            by length.
        batch_tokens: Tokens encoded at once; by default what suits the device.
        dtype: In what the codec is held and computes: bfloat16 is several times faster where the device has such products, and
            its vectors keep a cosine of 0.9999 to those of float32. A store is of one of them.
    """
    world = start()
    try:
        with _stopping_on_sigterm():
            sonar = Sonar.from_pretrained(codec, world.device, getattr(torch, dtype))
            manifest = encode_into(corpus, store, sonar, world, lang, column, limit, documents_per_shard, batch_tokens)
    except Stopped:
        print0(world, f"{store}: stopped as asked; what was finished is kept, and the same command goes on from there")
        return
    stop()  # not after an error: leaving NCCL's group waits for the others, and they for this rank
    dropped = ", ".join(f"{count} {why}" for why, count in manifest["dropped"].items()) or "none"
    counts = f"{manifest['documents']} documents, {manifest['sentences']} sentences ({manifest['distinct']} distinct)"
    print0(world, f"{store}: {counts}, {manifest['tokens']} tokens; documents dropped: {dropped}")
    if manifest["cut"] and world.rank == 0:
        share = f"{manifest['cut']} of {manifest['sentences']} sentences"
        warnings.warn(f"{share} were longer than {max_pieces(sonar)} tokens and were cut", TruncationWarning, stacklevel=1)


def encode_into(
    corpus: str,
    store: Place,
    sonar: Sonar,
    world: World,
    lang: str = "eng_Latn",
    column: str = "text",
    limit: int | None = None,
    documents_per_shard: int = 512,
    batch_tokens: int | None = None,
) -> dict[str, Any]:
    """Build (this rank's share of) a store, in a folder or at a URL, with a codec that is already loaded. Returns the manifest.

    Sentences beyond the codec's maximum are cut; the manifest counts them under `cut`. Raises what `open_corpus` and
    `build` raise, UnknownLanguageError, and ValueError for `documents_per_shard` or `batch_tokens` below 1.
    """
    if documents_per_shard < 1 or (batch_tokens is not None and batch_tokens < 1):
        raise ValueError(f"documents_per_shard and batch_tokens must be at least 1, got {documents_per_shard} and {batch_tokens}")
    lang = resolve(lang, sonar.languages)
    name = f"{corpus} column={column} limit={limit}" + (
        " bfloat16" if sonar.encoder.embedding.weight.dtype == torch.bfloat16 else ""
    )
    stamp = StoreStamp(name, lang, segmenter_name(lang), sonar.name, sonar.fingerprint(), sonar.config.width, documents_per_shard)
    coder = Coder(
        lambda texts: sonar.encode(texts, lang, batch_tokens=batch_tokens), sonar.tokenizer.pieces_batch, max_pieces(sonar)
    )
    documents = open_corpus(corpus, column=column, lang=lang, limit=limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)  # a line per batch; the manifest has their number
        return build(documents, store, stamp, coder, lambda text: split_sentences(text, lang), END_OF_SEQUENCE, world)


class Stopped(BaseException):
    """SIGTERM came. No Exception, so that nobody takes it for an error on the way."""


@contextmanager
def _stopping_on_sigterm() -> Iterator[None]:
    """SIGTERM raises Stopped at once: a shard may take minutes, and a scheduler that wants the machine back waits for seconds."""

    def stop_here(number: int, frame: object) -> None:
        raise Stopped

    try:
        before = signal.signal(signal.SIGTERM, stop_here)
    except ValueError:  # not the main thread (a notebook widget): no handlers
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def max_pieces(sonar: Sonar) -> int:
    """Pieces of a sentence that the codec reads, its language token and `</s>` aside."""
    return sonar.config.max_tokens - 2


if __name__ == "__main__":
    main()
