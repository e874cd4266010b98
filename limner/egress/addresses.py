"""Which addresses a stranger's URL may lead to: public unicast ones, and only those.

The policy names what is allowed and takes the exceptions out of that. It does not lean on `is_global` of the standard
library, which calls multicast, 6to4, the cloud's own services and others global, and changes between releases of Python.
"""

from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# IANA IPv4 Special-Purpose Address Registry, multicast, reserved space, and what clouds put on public addresses.
_IPV4_NOT_PUBLIC = tuple(
    IPv4Network(block)
    for block in (
        "0.0.0.0/8",  # this network (RFC 791); 0.0.0.0 reaches the machine itself on Linux
        "10.0.0.0/8",  # private (RFC 1918)
        "100.64.0.0/10",  # shared by carriers (RFC 6598); Alibaba's metadata is 100.100.100.200
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local (RFC 3927); the metadata services of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments (RFC 6890); Oracle's metadata is 192.0.0.192
        "192.0.2.0/24",  # documentation (RFC 5737)
        "192.31.196.0/24",  # AS112 (RFC 7535)
        "192.52.193.0/24",  # AMT (RFC 7450)
        "192.88.99.0/24",  # 6to4 relays (RFC 7526)
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112 (RFC 7534)
        "198.18.0.0/15",  # benchmarks (RFC 2544)
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast (RFC 5771)
        "240.0.0.0/4",  # reserved, and broadcast
        "168.63.129.16/32",  # Azure's host, on a public address
    )
)

# All global unicast there is (RFC 4291, IANA). Loopback, link-local, unique local (with the metadata services of AWS and
# Google), multicast, NAT64 (64:ff9b::/96) and IPv4-compatible addresses all lie outside of it.
_IPV6_PUBLIC = IPv6Network("2000::/3")
_IPV6_NOT_PUBLIC = tuple(
    IPv6Network(block)
    for block in (
        "2001::/23",  # protocol assignments: Teredo, which wraps IPv4, ORCHID, benchmarks
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4 wraps IPv4
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation (RFC 9637)
    )
)


def plain(text: str) -> Address | None:
    """The address that a connection would really go to: `::ffff:10.0.0.1` is 10.0.0.1 on the wire.

    None for what is no address, and for one with a zone (`fe80::1%eth0`), which names an interface and no host.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return None
        return address.ipv4_mapped or address
    return address


def networks(texts: Collection[str]) -> tuple[Network, ...]:
    """Networks or single addresses as texts. Raises ValueError for one that is neither."""
    return tuple(ip_network(text, strict=False) for text in texts)


def allowed(address: str, own: Collection[Network] = ()) -> bool:
    """Whether a stranger may send limner to `address`; never to `own`, the networks of this installation."""
    found = plain(address)
    if found is None or any(found in network for network in own):
        return False
    if isinstance(found, IPv4Address):
        return not any(found in block for block in _IPV4_NOT_PUBLIC)
    return found in _IPV6_PUBLIC and not any(found in block for block in _IPV6_NOT_PUBLIC)
