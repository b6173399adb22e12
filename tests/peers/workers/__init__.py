"""Run in the peers' environment, one module a peer. What they import of ours is `serve` alone."""
