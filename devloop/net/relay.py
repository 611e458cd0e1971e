"""Where `devloop.relay` was before the remote used it too."""

from devloop.relay import Relay, Relays, Side, Target

__all__ = ["Relay", "Relays", "Side", "Target"]
