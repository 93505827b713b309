"""Seconds of a core that the story judge takes for 1 000 stories, in four languages, intact and with every tenth word left out.

python tests/bench/story_judge.py
"""

from __future__ import annotations

import time

from sonarkit.evaluation.story_judge import judge_stories
from sonarkit.evaluation.story_parser import parser
from sonarkit.text.storyworld import CODES, stories

COUNT = 1000


def gapped(sentence: str) -> str:
    words = sentence.split()
    return " ".join(word for i, word in enumerate(words) if i % 10 != 4)


def main() -> None:
    langs = [list(CODES.values())[i % len(CODES)] for i in range(COUNT)]
    told = [story.sentences[lang] for story, lang in zip(stories(COUNT, split="test"), langs)]
    began = time.process_time()
    for lang in CODES.values():
        parser(lang)
    print(f"four parsers: {time.process_time() - began:.1f} s")
    for name, texts in (("intact", told), ("gapped", [[gapped(sentence) for sentence in story] for story in told])):
        began = time.process_time()
        report = judge_stories(texts, langs)
        seconds = time.process_time() - began
        print(f"{name}: {COUNT} stories in {seconds:.1f} s, {report.counts['exact']} of {report.counts['sentences']} exact")


if __name__ == "__main__":
    main()
