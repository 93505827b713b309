"""Text: languages, corpora, sentences, tokenizer and the StoryWorld corpus."""
