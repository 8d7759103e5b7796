"""All sources of Batches but automata: text (corpora, tokenizer, shards, windows), Dyck words, controls."""
