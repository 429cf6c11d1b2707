"""``divmon doctor``: is this environment fit, what will watching cost, and what did it cost."""
