import pytest

from dialback.errors import ConfigError, ConnectionInfoError
from dialback.transport.address import Address, CallHomePolicy, parse_address


@pytest.mark.parametrize(
    ("text", "host", "port", "written"),
    [
        ("10.0.0.5:40123", "10.0.0.5", 40123, "10.0.0.5:40123"),
        ("requester.demo.svc:1", "requester.demo.svc", 1, "requester.demo.svc:1"),
        ("with_underscore:80", "with_underscore", 80, "with_underscore:80"),
        ("[::1]:42321", "::1", 42321, "[::1]:42321"),
        ("::1:42321", "::1", 42321, "[::1]:42321"),
        ("fd00::5:65535", "fd00::5", 65535, "[fd00::5]:65535"),
        ("[fe80::1%eth0]:9", "fe80::1%eth0", 9, "[fe80::1%eth0]:9"),
        ("10.0.0.5:00080", "10.0.0.5", 80, "10.0.0.5:80"),
    ],
)
def test_an_address_is_split_at_its_last_colon_and_written_with_brackets(
    text: str, host: str, port: int, written: str
) -> None:
    address = parse_address(text)
    assert address == Address(host, port)
    assert str(address) == written


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost",
        ":80",
        "[]:80",
        "[::1]",
        "::1",
        "::g:80",
        "1:2:80",
        "[::1:80",
        "::1]:80",
        "a b:80",
        "user@host:80",
        "http://host:80",
        "host\n:80",
        "host\0:80",
        "::1%\0:80",
        "a..b:80",
        "x" * 64 + ".example:80",
        "\ud800:80",
    ],
)
def test_what_names_no_host_is_refused(text: str) -> None:
    with pytest.raises(ConnectionInfoError, match=r"not host:port|has no port"):
        parse_address(text)


@pytest.mark.parametrize("port", ["", "0", "65536", "-1", "+80", "8o", " 80", "٨٠", "9" * 5000])
def test_a_port_is_a_number_from_1_to_65535(port: str) -> None:
    with pytest.raises(ConnectionInfoError, match="has no port from 1 to 65535"):
        parse_address(f"10.0.0.5:{port}")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "10.0.0.5",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "::1",
        "fd00::5",
        "fc00::1",
        "::ffff:10.0.0.5",
    ],
)
def test_loopback_and_private_networks_may_be_dialled_by_default(address: str) -> None:
    assert CallHomePolicy().allows(address)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "172.32.0.1",
        "192.169.0.1",
        "100.64.0.1",
        "2001:4860:4860::8888",
        "::ffff:8.8.8.8",
    ],
)
def test_other_networks_may_not_be_dialled_by_default(address: str) -> None:
    assert not CallHomePolicy().allows(address)


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.0.1",
        "::ffff:169.254.169.254",
        "fe80::1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "0.0.0.0",  # noqa: S104 -- compared, not bound
        "::",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
    ],
)
def test_link_local_metadata_and_multicast_are_never_dialled(address: str) -> None:
    assert not CallHomePolicy(["0.0.0.0/0", "::/0"]).allows(address)


def test_networks_can_be_chosen() -> None:
    policy = CallHomePolicy(["203.0.113.0/24", "2001:db8::/32"])
    assert policy.allows("203.0.113.7")
    assert policy.allows("::ffff:203.0.113.7")
    assert policy.allows("2001:db8::1")
    assert not policy.allows("127.0.0.1")
    assert not CallHomePolicy([]).allows("127.0.0.1")


@pytest.mark.parametrize("network", ["10.0.0.0/33", "10.0.0.1/8", "lan", ""])
def test_a_network_that_is_none_is_a_configuration_error(network: str) -> None:
    with pytest.raises(
        ConfigError, match=r"call-home networks: .*write for instance 10\.0\.0\.0/8"
    ):
        CallHomePolicy([network])


def test_a_host_longer_than_any_name_is_refused_before_it_is_looked_at() -> None:
    with pytest.raises(ConnectionInfoError, match="is not host:port"):
        parse_address("\u00e9" * 100_000 + ":80")
