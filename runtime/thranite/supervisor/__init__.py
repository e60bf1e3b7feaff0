"""`thranite serve` itself: the listening socket, the children, signals, drain state, exit code. No torch."""
