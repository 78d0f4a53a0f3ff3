"""Downloads from the Hugging Face hub: the files of a commit, each of them whole; and errors of failed downloads.

Files go into the cache of the hub's own client (HF_HUB_CACHE), where other programs find them too. A repository's list
of files is kept there as well, so that what was fetched once is found again without network.
"""
