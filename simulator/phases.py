"""Where a request is in its replica."""

UNSEEN, WAITING, PREFILLING, DECODING, FINISHING, DONE = range(6)
HELD = 6  # has blocks and no seat: its KV is on the way, here or from here
