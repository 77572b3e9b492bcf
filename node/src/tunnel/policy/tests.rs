//! The table of addresses that must never be dialled, and the rules it stands on.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

fn policy(config: PolicyConfig) -> Policy {
    Policy::new(config)
}

fn open() -> Policy {
    policy(PolicyConfig {
        preset: Preset::Open,
        ..PolicyConfig::default()
    })
}

fn check(policy: &Policy, address: &str) -> Result<SocketAddr, Denied> {
    policy
        .check(address.parse().unwrap(), Protocol::Tcp)
        .map(Checked::address)
}

/// All forms in which an IPv4 address can be written into an IPv6 one.
fn disguises(ip: Ipv4Addr) -> Vec<IpAddr> {
    let [a, b, c, d] = ip.octets();
    let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    vec![
        IpAddr::V4(ip),
        ip.to_ipv6_mapped().into(),
        // IPv4-compatible, IPv4-translated, NAT64, local NAT64, 6to4, Teredo (plain and obfuscated).
        Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low).into(),
        Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low).into(),
        Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low).into(),
        Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low).into(),
        Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1).into(),
        Ipv6Addr::new(0x2001, 0, high, low, 0, 0, 0, 0).into(),
        Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, !high, !low).into(),
    ]
}

#[test]
fn addresses_that_an_attacker_would_ask_for_are_denied() {
    for address in [
        "127.0.0.1:80",
        "127.255.255.254:80",
        "0.0.0.0:80",
        "10.0.0.1:80",
        "100.64.0.1:80",
        "169.254.169.254:80", // cloud metadata
        "172.31.255.255:80",
        "192.168.1.1:80",
        "192.0.0.192:80", // another cloud's metadata
        "198.19.0.1:80",
        "224.0.0.1:80",
        "255.255.255.255:80",
        "[::]:80",
        "[::1]:80",
        "[fe80::1]:80",
        "[fc00::1]:80",
        "[fd00:ec2::254]:80", // cloud metadata over IPv6
        "[ff02::1]:80",
        "[fec0::1]:80",
        "[100::1]:80",
        "[2001:db8::1]:80",
        "[3fff::1]:80",
        "[5f00::1]:80",
        "[::ffff:127.0.0.1]:80",
        "[::ffff:169.254.169.254]:80",
        "[::ffff:0:127.0.0.1]:80",
        "[::127.0.0.1]:80",
        "[64:ff9b::127.0.0.1]:80",
        "[64:ff9b::10.0.0.1]:80",
        "[64:ff9b:1::10.0.0.1]:80",
        "[2002:7f00:1::]:80",
        "[2001:0:7f00:1::]:80",
    ] {
        let denied = check(&open(), address);
        assert!(
            matches!(denied, Err(Denied::NotPublic(_))),
            "{address}: {denied:?}"
        );
    }
}

#[test]
fn public_addresses_are_allowed_and_wrapped_ones_dialled_as_what_they_are() {
    for (asked, dialled) in [
        ("1.1.1.1:443", "1.1.1.1:443"),
        ("[2606:4700:4700::1111]:443", "[2606:4700:4700::1111]:443"),
        ("[::ffff:1.1.1.1]:443", "1.1.1.1:443"),
        // Behind NAT64 the wrapped form is the only way there.
        ("[64:ff9b::1.1.1.1]:443", "[64:ff9b::101:101]:443"),
        ("99.255.255.255:80", "99.255.255.255:80"),
        ("100.128.0.0:80", "100.128.0.0:80"),
        ("172.32.0.0:80", "172.32.0.0:80"),
        ("223.255.255.255:80", "223.255.255.255:80"),
    ] {
        assert_eq!(
            check(&open(), asked),
            Ok(dialled.parse().unwrap()),
            "{asked}"
        );
    }
}

#[test]
fn ports_follow_the_preset() {
    let allows = |preset, port, protocol| {
        let config = PolicyConfig {
            preset,
            ..PolicyConfig::default()
        };
        let address = SocketAddr::new(Ipv4Addr::new(1, 1, 1, 1).into(), port);
        policy(config).check(address, protocol).is_ok()
    };
    let denied = [25, 135, 136, 137, 138, 139, 445, 465, 587, 1900, 5353];
    for port in denied {
        assert!(!allows(Preset::Standard, port, Protocol::Tcp), "{port}");
        assert!(!allows(Preset::Standard, port, Protocol::Udp), "{port}");
        assert!(!allows(Preset::Web, port, Protocol::Tcp), "{port}");
        assert!(allows(Preset::Open, port, Protocol::Tcp), "{port}");
    }
    for preset in [Preset::Web, Preset::Standard, Preset::Open] {
        assert!(allows(preset, 443, Protocol::Tcp));
        assert!(allows(preset, 443, Protocol::Udp));
        assert!(!allows(preset, 0, Protocol::Tcp));
    }
    assert!(!allows(Preset::Web, 22, Protocol::Tcp));
    assert!(!allows(Preset::Web, 80, Protocol::Udp));
    assert!(!allows(Preset::Web, 53, Protocol::Udp));
    assert!(allows(Preset::Standard, 22, Protocol::Tcp));
}

#[test]
fn own_addresses_and_neighbours_are_denied_even_if_they_are_public() {
    let policy = open();
    policy.set_own_addresses(vec!["1.2.3.4".parse().unwrap()]);
    {
        let mut interfaces = policy.interfaces.lock().unwrap();
        // Of now, so that the check does not read this machine's.
        interfaces.read_at = Some(Instant::now());
        interfaces.addresses = vec!["8.8.4.10".parse().unwrap()];
        interfaces.on_link = vec!["8.8.4.0/24".parse().unwrap(), "2600::/64".parse().unwrap()];
    }

    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert_eq!(
        check(&policy, "1.2.3.4:80"),
        Err(Denied::Own(ip("1.2.3.4")))
    );
    assert_eq!(
        check(&policy, "[::ffff:1.2.3.4]:80"),
        Err(Denied::Own(ip("1.2.3.4")))
    );
    assert_eq!(
        check(&policy, "[64:ff9b::1.2.3.4]:80"),
        Err(Denied::Own(ip("1.2.3.4")))
    );
    assert_eq!(
        check(&policy, "8.8.4.10:80"),
        Err(Denied::Own(ip("8.8.4.10")))
    );
    assert_eq!(
        check(&policy, "8.8.4.99:80"),
        Err(Denied::OnLink(ip("8.8.4.99")))
    );
    assert_eq!(
        check(&policy, "[2600::1]:80"),
        Err(Denied::OnLink(ip("2600::1")))
    );
    assert!(check(&policy, "8.8.5.1:80").is_ok());
}

#[test]
fn the_interfaces_of_this_machine_are_read() {
    let mut interfaces = Interfaces::default();
    interfaces.refresh(Instant::now(), if_addrs::get_if_addrs);
    assert!(
        interfaces
            .addresses
            .contains(&IpAddr::V4(Ipv4Addr::LOCALHOST))
    );
    assert!(
        interfaces
            .on_link
            .iter()
            .any(|prefix| prefix.contains(Ipv4Addr::LOCALHOST.into()))
    );
}

#[test]
fn a_machine_whose_interfaces_cannot_be_read_reaches_nothing_and_keeps_what_it_knew() {
    let ip: IpAddr = "8.8.4.99".parse().unwrap();
    let failed = || Err(io::Error::from(io::ErrorKind::PermissionDenied));
    let mut interfaces = Interfaces::default();

    interfaces.refresh(Instant::now(), failed);
    assert_eq!(interfaces.check(ip), Err(Denied::Unknown(ip)));

    let now = Instant::now();
    interfaces.refresh(now, if_addrs::get_if_addrs);
    interfaces.refresh(now + INTERFACES_FRESH, failed);
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    assert_eq!(interfaces.check(loopback), Err(Denied::Own(loopback)));
}

#[test]
fn an_exception_opens_what_it_names_and_nothing_else() {
    let allow = |text: &str| PolicyConfig {
        allow: vec![text.parse().unwrap()],
        ..PolicyConfig::default()
    };
    let one = policy(allow("127.0.0.1:8080"));
    assert!(check(&one, "127.0.0.1:8080").is_ok());
    assert!(check(&one, "[::ffff:127.0.0.1]:8080").is_ok());
    assert!(check(&one, "127.0.0.1:8081").is_err());
    assert!(check(&one, "127.0.0.2:8080").is_err());
    assert!(check(&one, "[::1]:8080").is_err());

    let network = policy(allow("10.1.0.0/16:*"));
    assert!(check(&network, "10.1.255.255:25").is_ok());
    assert!(check(&network, "10.1.0.1:0").is_err());
    assert!(check(&network, "10.2.0.1:80").is_err());
}

#[test]
fn the_operators_deny_list_is_stronger_than_an_exception() {
    let config = PolicyConfig {
        allow: vec!["10.0.0.0/8:*".parse().unwrap()],
        deny: vec![
            "10.9.0.0/16".parse().unwrap(),
            "1.1.1.0/24".parse().unwrap(),
        ],
        ..PolicyConfig::default()
    };
    let policy = policy(config);
    assert!(check(&policy, "10.8.0.1:80").is_ok());
    assert!(matches!(
        check(&policy, "10.9.0.1:80"),
        Err(Denied::Listed(_))
    ));
    assert!(matches!(
        check(&policy, "[::ffff:10.9.0.1]:80"),
        Err(Denied::Listed(_))
    ));
    assert!(matches!(
        check(&policy, "[64:ff9b::1.1.1.1]:80"),
        Err(Denied::Listed(_))
    ));
}

#[test]
fn a_prefix_in_mapped_form_is_the_one_it_maps() {
    let config = PolicyConfig {
        preset: Preset::Open,
        deny: vec!["::ffff:1.1.1.0/120".parse().unwrap()],
        ..PolicyConfig::default()
    };
    let policy = policy(config);

    for denied in ["1.1.1.1:80", "[::ffff:1.1.1.1]:80"] {
        assert!(matches!(check(&policy, denied), Err(Denied::Listed(_))));
    }
    assert!(check(&policy, "1.1.2.1:80").is_ok());
    assert_eq!("::ffff:1.1.1.0/140".parse::<Prefix>(), Err(PrefixError));
}

#[test]
fn the_default_has_no_exceptions() {
    let config = PolicyConfig::default();
    assert!(config.allow.is_empty());
    assert_eq!(config.preset, Preset::Standard);
}

#[test]
fn exceptions_and_prefixes_are_written_as_they_are_read() {
    for text in [
        "127.0.0.1:8080",
        "10.1.0.0/16:443",
        "[::1]:8080",
        "[fd00::/8]:*",
    ] {
        assert_eq!(text.parse::<Allow>().unwrap().to_string(), text);
    }
    for text in [
        "127.0.0.1",
        "127.0.0.1:0",
        "::1:80",
        "10.0.0.0/33:1",
        "[10.0.0.1]:80",
        "a:1",
        ":",
    ] {
        assert!(text.parse::<Allow>().is_err(), "{text}");
    }
    let config: PolicyConfig =
        toml::from_str("preset = 'web'\nallow = ['127.0.0.1:8080']\ndeny = ['fd00::/8']").unwrap();
    assert_eq!(config.preset, Preset::Web);
    assert!(toml::from_str::<PolicyConfig>("alow = []").is_err());
}

/// The ranges of the specification, written down a second time so that a slip in the first shows.
fn denied_v4() -> impl Strategy<Value = Ipv4Addr> {
    const RANGES: [([u8; 4], [u8; 4]); 15] = [
        ([0, 0, 0, 0], [0, 255, 255, 255]),
        ([10, 0, 0, 0], [10, 255, 255, 255]),
        ([100, 64, 0, 0], [100, 127, 255, 255]),
        ([127, 0, 0, 0], [127, 255, 255, 255]),
        ([169, 254, 0, 0], [169, 254, 255, 255]),
        ([172, 16, 0, 0], [172, 31, 255, 255]),
        ([192, 0, 0, 0], [192, 0, 0, 255]),
        ([192, 0, 2, 0], [192, 0, 2, 255]),
        ([192, 88, 99, 0], [192, 88, 99, 255]),
        ([192, 168, 0, 0], [192, 168, 255, 255]),
        ([198, 18, 0, 0], [198, 19, 255, 255]),
        ([198, 51, 100, 0], [198, 51, 100, 255]),
        ([203, 0, 113, 0], [203, 0, 113, 255]),
        ([224, 0, 0, 0], [239, 255, 255, 255]),
        ([240, 0, 0, 0], [255, 255, 255, 255]),
    ];
    prop::sample::select(&RANGES[..]).prop_flat_map(|(low, high)| {
        (u32::from_be_bytes(low)..=u32::from_be_bytes(high)).prop_map(Ipv4Addr::from)
    })
}

proptest! {
    #[test]
    fn every_address_of_a_denied_range_is_denied_in_every_disguise(
        ip in denied_v4(), port in any::<u16>(),
    ) {
        for disguise in disguises(ip) {
            prop_assert!(!is_public(disguise), "{disguise}");
            let address = SocketAddr::new(disguise, port);
            prop_assert!(open().check(address, Protocol::Udp).is_err(), "{disguise}");
        }
    }

    #[test]
    fn only_two_disguises_of_a_public_address_are_public(bits in any::<u32>()) {
        let ip = Ipv4Addr::from(bits);
        prop_assume!(is_public(ip.into()));
        let public = disguises(ip).into_iter().filter(|&disguise| is_public(disguise)).count();
        // Itself, IPv4-mapped and NAT64; all others lead through somebody's relay.
        prop_assert_eq!(public, 3);
    }

    #[test]
    fn ipv6_outside_global_unicast_is_denied(bits in any::<u128>()) {
        let ip = Ipv6Addr::from(bits);
        prop_assume!(ip.to_ipv4_mapped().is_none());
        if ip.segments()[0] >> 13 != 1 && unwrap_is_none(ip) {
            prop_assert!(!is_public(ip.into()));
        }
    }

    #[test]
    fn what_is_checked_is_what_is_dialled(bits in any::<u128>(), port in 1..=u16::MAX) {
        let asked = SocketAddr::new(Ipv6Addr::from(bits).into(), port);
        if let Ok(checked) = open().check(asked, Protocol::Tcp) {
            prop_assert!(is_public(checked.address().ip()));
            prop_assert_eq!(checked.address().ip(), asked.ip().to_canonical());
            prop_assert_eq!(checked.address().port(), port);
        }
    }
}

fn unwrap_is_none(ip: Ipv6Addr) -> bool {
    address::unwrap_nat64(ip.into()).is_none()
}
