"""One installation for all of these tests."""

from tests.hub.api.own_keys.brought import bring_house, bring_shops, far_servers

__all__ = ["bring_house", "bring_shops", "far_servers"]
