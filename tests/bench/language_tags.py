"""What wrong, mixed and unknown languages cost a codec; the numbers in sonarkit/text/languages.py come from here.

    OMP_NUM_THREADS=1 python tests/bench/language_tags.py                       # the shipped codec
    python tests/bench/language_tags.py --codec sonar --device cuda --out tags.json

1. Wrong tag: each sentence is encoded under each tag.
2. Which tag: the one under which the codec says a sentence again best, by the log-probability of its tokens. How high
   that is tells known languages from unknown ones.
3. Mixed: one sentence whose second clause is in another language, and two sentences of a story as one text, the
   second in another language; under the tag of either.
4. Unknown: Italian and Dutch under each tag. (A codec that knows them shows what the right tag would bring.)

All texts are StoryWorld test sentences, for 4 translated by hand. Vectors are compared by cosine with those of the
right text under its right tag; what is decoded (greedily) by BLEU with the right text.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from sonarkit.codec.pipeline import Sonar
from sonarkit.core.errors import user_errors
from sonarkit.evaluation.codec import corpus_bleu, distinct_rows
from sonarkit.evaluation.sets import rows_of, stories_of
from sonarkit.evaluation.xsim import xsim_error
from sonarkit.text.storyworld import aligned

Row = dict[str, str]

# StoryWorld test sentences in two languages that the shipped codec never met.
FOREIGN = [
    (
        "In a land not far from here there lived a remarkable elf named Elsa.",
        "In un paese non lontano da qui viveva un'elfa straordinaria di nome Elsa.",
        "In een land niet ver hiervandaan leefde een opmerkelijke elf die Elsa heette.",
    ),
    (
        "Tilda chose a black pocket watch as a gift for Max and tied a ribbon around it.",
        "Tilda scelse un orologio da tasca nero come regalo per Max e gli legò intorno un nastro.",
        "Tilda koos een zwart zakhorloge als cadeau voor Max en bond er een lint omheen.",
    ),
    (
        "One fine morning, he packed a small bag and walked to the bay.",
        "Una bella mattina preparò una piccola borsa e andò a piedi fino alla baia.",
        "Op een mooie ochtend pakte hij een kleine tas en liep naar de baai.",
    ),
    (
        "Four wild stories were told about a tigress in the jungle, and Leo believed every one of them.",
        "Di una tigre nella giungla si raccontavano quattro storie spaventose, e Leo le credeva tutte.",
        "Over een tijgerin in de jungle werden vier wilde verhalen verteld, en Leo geloofde ze allemaal.",
    ),
    (
        "Marta had an unusual inn for a home, and no place in the world was finer.",
        "Marta aveva per casa una locanda insolita, e nessun luogo al mondo era più bello.",
        "Marta had een ongewone herberg als thuis, en geen plek ter wereld was mooier.",
    ),
    (
        "One summer morning, it was time for an adventure, and Laura ran to the heath.",
        "Una mattina d'estate arrivò l'ora dell'avventura, e Laura corse alla brughiera.",
        "Op een zomerochtend was het tijd voor een avontuur, en Laura rende naar de heide.",
    ),
    (
        "From then on, wherever the popular seal was, the good-looking ladybug was never far away.",
        "Da allora, dove c'era la foca popolare, la bella coccinella non era mai lontana.",
        "Waar de populaire zeehond was, was het knappe lieveheersbeestje voortaan nooit ver weg.",
    ),
    (
        "After a while, he brought a heavenly baguette to the bedside, and Mia tried a tiny bite.",
        "Dopo un po' lui portò una baguette divina accanto al letto, e Mia ne assaggiò un pezzettino.",
        "Na een tijdje bracht hij een hemels stokbrood naar het bed, en Mia proefde een klein hapje.",
    ),
    (
        "In a hut made of driftwood lived a shy stork named Molly, who was glad to see Anna.",
        "In una capanna fatta di legni portati dal mare viveva una cicogna timida di nome Molly, che fu contenta di vedere Anna.",
        "In een hut van drijfhout woonde een verlegen ooievaar die Molly heette en blij was Anna te zien.",
    ),
    (
        "Jakob spent almost every day with a cheerful girl named Elsa.",
        "Jakob passava quasi ogni giorno con una ragazza allegra di nome Elsa.",
        "Jakob bracht bijna elke dag door met een vrolijk meisje dat Elsa heette.",
    ),
    (
        "Soon Tina was sitting by the fire with a big pretzel, listening to the rain.",
        "Presto Tina fu seduta accanto al fuoco con un grande pretzel, ad ascoltare la pioggia.",
        "Al snel zat Tina bij het vuur met een grote krakeling en luisterde naar de regen.",
    ),
    (
        "At every clap of thunder, Elena played two merry notes on the flute for Daniel.",
        "A ogni tuono Elena suonava per Daniel due note allegre con il flauto.",
        "Bij elke donderslag speelde Elena twee vrolijke tonen op de fluit voor Daniel.",
    ),
    (
        '"Let us share the beautiful chocolate," said Anna, and Celia beamed with joy.',
        "«Dividiamoci il bel cioccolatino», disse Anna, e Celia sorrise di gioia.",
        "“Laten we de mooie bonbon delen”, zei Anna, en Celia straalde van vreugde.",
    ),
    (
        "The elegant sparrow and the playful snake soon became inseparable.",
        "Il passero elegante e il serpente giocherellone diventarono presto inseparabili.",
        "De sierlijke mus en de speelse slang werden al snel onafscheidelijk.",
    ),
    (
        "Once upon a time there was a popular donkey named Felix.",
        "C'era una volta un asino popolare di nome Felix.",
        "Er was eens een geliefde ezel die Felix heette.",
    ),
    (
        "At last Tobias felt firm ground again and kissed the grass in the garden.",
        "Finalmente Tobias sentì di nuovo la terra ferma e baciò l'erba del giardino.",
        "Eindelijk voelde Tobias weer vaste grond en kuste het gras in de tuin.",
    ),
    (
        "This is the story of a good-natured horse named Emil.",
        "Questa è la storia di un cavallo bonario di nome Emil.",
        "Dit is het verhaal van een goedmoedig paard dat Emil heette.",
    ),
    (
        "Tom did not want to miss anything and followed Lukas to the villa.",
        "Tom non voleva perdersi nulla e seguì Lukas fino alla villa.",
        "Tom wilde niets missen en volgde Lukas naar de villa.",
    ),
    (
        "From that day on, Tom and Clara were the best of friends.",
        "Da quel giorno Tom e Clara furono i migliori amici.",
        "Vanaf die dag waren Tom en Clara de beste vrienden.",
    ),
    (
        "The next morning, Romy came by and brought Tom a shiny trophy as a thank-you present.",
        "La mattina dopo Romy passò di lì e portò a Tom, per ringraziarlo, un trofeo lucente.",
        "De volgende ochtend kwam Romy langs en bracht Tom als dank een glanzende beker.",
    ),
]


def cosine(x_ND: Tensor, y_ND: Tensor) -> float:
    """Mean cosine of the rows of x with those of y."""
    return float(F.cosine_similarity(x_ND, y_ND).mean())


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def say(sonar: Sonar, parts: Sequence[Tensor], lang: str) -> list[list[str]]:
    """What each part says in `lang`; decoded together, since a step costs little more for many sentences than for few."""
    texts = iter(sonar.decode(torch.cat(list(parts)), lang, beam_size=1, max_tokens=96, batch_size=128))
    return [[next(texts) for _ in part] for part in parts]


def wrong_tag(sonar: Sonar, rows: Sequence[Row], searched: Sequence[Row], languages: Sequence[str]) -> dict[str, float]:
    """Means over languages, under the right tag and over the wrong ones, and the worst pair."""
    right = {code: sonar.encode([row[code] for row in searched], code) for code in languages}
    found: dict[tuple[str, str], tuple[float, float, float]] = {}
    for code in languages:
        texts = [row[code] for row in rows]
        tagged = [sonar.encode(texts, tag) for tag in languages]
        for tag, z_ND, said in zip(languages, tagged, say(sonar, tagged, code)):
            x_MD = right[code] if tag == code else sonar.encode([row[code] for row in searched], tag)
            error = mean([100 * xsim_error(x_MD, right[other]) for other in languages if other != code])
            found[code, tag] = (cosine(z_ND, tagged[languages.index(code)]), corpus_bleu(said, texts), error)
    results = {}
    for i, what in enumerate(("cosine", "BLEU", "xsim %")):
        results[f"{what}, right tag"] = mean([found[code, code][i] for code in languages])
        wrong = {pair: numbers[i] for pair, numbers in found.items() if pair[0] != pair[1]}
        results[f"{what}, wrong tag"] = mean(list(wrong.values()))
        worst = (max if what == "xsim %" else min)(wrong, key=lambda pair: wrong[pair])
        results[f"{what}, worst: {worst[0]} as {worst[1]}"] = wrong[worst]
    return results


def best_tags(sonar: Sonar, texts: Sequence[str], languages: Sequence[str]) -> list[tuple[float, str]]:
    """For each text the tag under which its own vector says it best, and the mean log-probability of its tokens under it."""
    scores = []
    for tag in languages:
        log_probs = sonar.token_log_probs(sonar.encode(texts, tag), texts, tag)
        scores.append([mean([log_prob for _, log_prob in pieces]) for pieces in log_probs])
    return [max(zip(of_text, languages)) for of_text in zip(*scores)]


def which_tag(sonar: Sonar, rows: Sequence[Row], languages: Sequence[str]) -> dict[str, float]:
    """How often the best tag is the right one; the mean and the lowest log-probability a token under it."""
    chosen = {code: best_tags(sonar, [row[code] for row in rows], languages) for code in languages}
    results = {f"{code}: chosen, %": 100 * mean([tag == code for _, tag in found]) for code, found in chosen.items()}
    scores = [score for found in chosen.values() for score, _ in found]
    return {**results, "nats a token, mean": -mean(scores), "nats a token, highest": -min(scores)}


def clauses(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Sentences that have one comma in every language, cut there."""
    pairs = []
    for row in rows:
        cut = {code: text.partition(", ") for code, text in row.items()}
        if all(rest and ", " not in rest and not set('"«„') & set(row[code]) for code, (_, _, rest) in cut.items()):
            pairs.append(({code: f"{head}," for code, (head, _, _) in cut.items()}, {code: c[2] for code, c in cut.items()}))
    return pairs


def mixed(sonar: Sonar, pairs: Sequence[tuple[Row, Row]], languages: Sequence[str]) -> dict[str, float]:
    """Means over ordered pairs of languages: the first half in A, the second in B, all decoded in A.

    "whole" is the control, both halves in A under its tag. "apart" encodes each half under its own tag and joins what
    the two vectors say.
    """
    lists: dict[str, list[float]] = {}
    for a in languages:
        in_a = [f"{first[a]} {second[a]}" for first, second in pairs]
        head = sonar.encode([first[a] for first, _ in pairs], a)
        parts = [sonar.encode(in_a, a), head]
        for b in languages:
            if b != a:
                text = [f"{first[a]} {second[b]}" for first, second in pairs]
                tail = sonar.encode([second[b] for _, second in pairs], b)
                parts += [sonar.encode(text, a), sonar.encode(text, b), tail]
        said = say(sonar, parts, a)
        lists.setdefault("BLEU, whole in one language", []).append(corpus_bleu(said[0], in_a))
        for i in range(2, len(parts), 3):
            for name, k in (("tag of the first half", i), ("tag of the second half", i + 1)):
                lists.setdefault(f"cosine, {name}", []).append(cosine(parts[k], parts[0]))
                lists.setdefault(f"BLEU, {name}", []).append(corpus_bleu(said[k], in_a))
            joined = [" ".join(halves) for halves in zip(said[1], said[i + 2])]
            lists.setdefault("BLEU, halves apart", []).append(corpus_bleu(joined, in_a))
    return {name: mean(values) for name, values in lists.items()}


def unknown(sonar: Sonar, searched: Sequence[Row], languages: Sequence[str], english: str = "eng_Latn") -> dict[str, float]:
    """Italian and Dutch under each tag: cosine with the English vector, how often it is the nearest, BLEU into English."""
    references = [row[0] for row in FOREIGN]
    pool = list(dict.fromkeys([*references, *(row[english] for row in searched)]))
    pool_PD = F.normalize(sonar.encode(pool, english), dim=1)
    results = {}
    for code, texts in (("ita_Latn", [row[1] for row in FOREIGN]), ("nld_Latn", [row[2] for row in FOREIGN])):
        tags = [*languages, *([code] if code in sonar.languages and code not in languages else [])]
        tagged = [sonar.encode(texts, tag) for tag in tags]
        for tag, z_ND, said in zip(tags, tagged, say(sonar, tagged, english)):
            nearest = (F.normalize(z_ND, dim=1) @ pool_PD.T).argmax(1).tolist()
            results[f"{code} as {tag}: cosine"] = cosine(z_ND, pool_PD[: len(texts)])
            results[f"{code} as {tag}: found, %"] = 100 * mean([i == k for i, k in enumerate(nearest)])
            results[f"{code} as {tag}: BLEU"] = corpus_bleu(said, references)
        chosen = best_tags(sonar, texts, tags)
        for tag in tags:
            results[f"{code}: chooses {tag}, %"] = 100 * mean([one == tag for _, one in chosen])
        results[f"{code}: nats a token, mean"] = -mean([score for score, _ in chosen])
        results[f"{code}: nats a token, lowest"] = -max(score for score, _ in chosen)
    return results


def main(
    codec: str = "mini", device: str = "cpu", rows: int = 40, pairs: int = 12, searched: int = 200, out: Path | None = None
) -> None:
    """Measure what language tags do to a codec.

    Args:
        codec: "mini" or what Sonar.from_pretrained takes.
        device: Where it runs.
        rows: Sentences that are decoded, for each language and tag.
        pairs: Texts of two clauses, and as many of two sentences, for each pair of languages.
        searched: Sentences among which a translation is searched.
        out: Also write the numbers there as JSON.
    """
    began = time.monotonic()
    stories = stories_of("storyworld:test")
    sonar = Sonar.from_pretrained(codec, device=device)
    languages = [code for code in stories[0] if code in sonar.languages]
    sentences = rows_of("storyworld:test")
    sample = sentences[:: len(sentences) // rows][:rows]
    pool = sentences[:: len(sentences) // searched][:searched]
    pool = [pool[i] for i in distinct_rows(pool)]
    starts = [aligned(story) for story in stories[:: len(stories) // pairs][:pairs]]
    two_clauses = clauses(sentences)
    report = {
        "wrong tag": wrong_tag(sonar, sample, pool, languages),
        "which tag": which_tag(sonar, sample, languages),
        "mixed, two clauses": mixed(sonar, two_clauses[:: len(two_clauses) // pairs][:pairs], languages),
        "mixed, two sentences": mixed(sonar, [(story[1], story[2]) for story in starts], languages),
        "unknown": unknown(sonar, pool, languages),
    }
    size = f"{rows} sentences, {pairs} pairs, {len(pool)} searched"
    print(f"{codec} {sonar.fingerprint()}: {size}, {time.monotonic() - began:.0f} s")
    for part, numbers in report.items():
        print(part)
        for name, value in numbers.items():
            print(f"  {name:44s} {value:8.3f}")
    if out:
        out.write_text(
            json.dumps({"codec": codec, "fingerprint": sonar.fingerprint(), **report}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    with user_errors():
        tyro.cli(main, description=__doc__)
