"""Every source of batches but automata: text (corpora, tokenizer, shards, windows), Dyck, controls."""
