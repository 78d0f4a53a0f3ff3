"""The road from the hub, against a server of our own (`tests/hub_server.py`): no network is needed.

What each file covers:

test_models.py     model and tokenizer by id at a commit; `main` is resolved and kept; without the server; equal names
                   and numbers from hub and folder; results under older names
test_downloads.py  a cut download goes on, at once and in the next command; other bytes than were promised; a flipped
                   byte; a full disk; a gated model; 429 and 5xx; no connection; what is not there
test_data.py       data sets by id: config, split, pinned commit, the name of the rows; without the server; 5xx is not
                   "missing"; a gated set; a set, and a mirror, without a header
test_prefetch.py   `python -m bench.prefetch`: model, tokenizer, data, classifiers; its manifest; the second call; the
                   same sweep without the server gives equal results; Detoxify's checkpoint and base
test_bad_input.py  weights cut or without a part; a tokenizer too small or too large; encoders and seq2seq models
"""
