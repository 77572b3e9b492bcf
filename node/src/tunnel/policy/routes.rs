//! Networks next to this machine that no interface has an address in, from the kernel's routes.
//!
//! A host may be put on the wire by a route alone: a second subnet of a data centre, the other side of
//! a VPN. Linux tells routes in two files; elsewhere the interfaces have to do.

use std::fs::File;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Prefix, near};

/// Most bytes of each file that are read: some eight thousand routes. A router of the backbone has
/// more, and no neighbours among the first.
const MAX_FILE: u64 = 1024 * 1024;

/// The route is in use.
const UP: u32 = 0x1;

/// It leads to another router, not to the hosts themselves.
const GATEWAY: u32 = 0x2;

/// It leads nowhere.
const REJECT: u32 = 0x200;

/// Networks that this machine reaches without a router.
pub(super) fn on_link() -> Vec<Prefix> {
    let mut found = parse_v4(&read("/proc/net/route"));
    found.extend(parse_v6(&read("/proc/net/ipv6_route")));
    found
}

fn read(path: &str) -> String {
    let mut text = String::new();
    // Not there on other systems, and in some sandboxes.
    if let Ok(file) = File::open(path) {
        let _ = file.take(MAX_FILE).read_to_string(&mut text);
    }
    text
}

fn is_direct(flags: u32) -> bool {
    flags & UP != 0 && flags & (GATEWAY | REJECT) == 0
}

/// Columns: interface, destination, gateway, flags, three counts, mask. Addresses are the words of
/// memory as this machine reads them.
fn parse_v4(text: &str) -> Vec<Prefix> {
    let parse = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let number = |index: usize| u32::from_str_radix(words.get(index)?, 16).ok();
        let (destination, flags, mask) = (number(1)?, number(3)?, number(7)?);
        let ip = Ipv4Addr::from(destination.to_ne_bytes());
        let len = u8::try_from(mask.count_ones()).ok()?;
        near(IpAddr::V4(ip), len).filter(|_| is_direct(flags))
    };
    text.lines().filter_map(parse).collect()
}

/// Columns: destination, its length, source, its length, next hop, metric, two counts, flags,
/// interface.
fn parse_v6(text: &str) -> Vec<Prefix> {
    let parse = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let ip = Ipv6Addr::from(u128::from_str_radix(words.first()?, 16).ok()?);
        let len = u8::from_str_radix(words.get(1)?, 16).ok()?;
        let flags = u32::from_str_radix(words.get(8)?, 16).ok()?;
        near(IpAddr::V6(ip), len).filter(|_| is_direct(flags))
    };
    text.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(texts: &[&str]) -> Vec<Prefix> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn routes_without_a_router_are_networks_next_door() {
        let text = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0104080A\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t00040808\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
eth0\t00050808\t01040808\t0003\t0\t0\t0\t00FFFFFF\t0\t0\t0
wg0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0
wg0\t07010109\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0
*\t00060808\t00000000\t0200\t0\t0\t0\t00FFFFFF\t0\t0\t0
";

        assert_eq!(
            parse_v4(text),
            prefixes(&["8.8.4.0/24", "9.1.1.7/32"]),
            "not the default, not one behind a router, not half the Internet, not a dead end"
        );
    }

    #[test]
    fn routes_of_the_sixth_version_are_read_too() {
        let zero = "00000000000000000000000000000000";
        let line = |ip: &str, len: &str, hop: &str, flags: &str| {
            format!("{ip} {len} {zero} 00 {hop} 00000100 00000001 00000000 {flags} eth0\n")
        };
        let net = "26000000000000000000000000000000";
        let router = "fe800000000000000000000000000001";
        let text = [
            line(zero, "00", router, "00000003"),
            line(zero, "00", zero, "00000001"),
            line(net, "40", zero, "00000001"),
            line(net, "30", router, "00000003"),
            line(net, "38", zero, "00000201"),
        ]
        .concat();

        assert_eq!(parse_v6(&text), prefixes(&["2600::/64"]));
    }

    #[test]
    fn lines_that_are_no_routes_are_passed_over() {
        let junk = "Iface Destination\n\n\u{e9} x y z\neth0 zz 0 0001 0 0 0 00FFFFFF\n";

        assert_eq!(parse_v4(junk), []);
        assert_eq!(parse_v6(junk), []);
    }
}
