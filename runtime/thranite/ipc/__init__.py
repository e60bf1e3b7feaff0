"""Messages between a server process and the engine process: msgpack frames over AF_UNIX."""
