"""Text: corpora, tokenizer, token shards and the windows that train on them."""
