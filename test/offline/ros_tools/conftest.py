"""The fixtures of everything that starts real nodes."""

from node_fixtures import domain, peer, start_node, tour  # noqa: F401
