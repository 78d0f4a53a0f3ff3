"""Files that are written whole or not at all, and the digests that vouch for them."""
