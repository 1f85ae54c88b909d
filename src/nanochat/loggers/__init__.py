"""Where metrics go in addition to the screen: one logger a file. Lightning's own work as well, by
their `_target_`.

What a logger needs from outside (a package, a login, the network) is looked at before there is a
run folder, by the `check` of what makes it (runs/parts.py).
"""
