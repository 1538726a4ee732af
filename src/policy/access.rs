//! Who may come in, by network: the longest prefix that holds the address decides. Thousands of networks cost a binary
//! search, because they are cut into disjoint ranges when they are read.

use std::net::IpAddr;

use ipnet::IpNet;

/// Allowed and denied networks.
#[derive(Clone, PartialEq, Eq)]
pub struct Access {
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
    v4: Ranges<u32>,
    v6: Ranges<u128>,
    /// What no prefix holds.
    otherwise: bool,
}

/// Where each range begins, and whether it is allowed; it ends where the next begins.
type Ranges<T> = Box<[(T, bool)]>;

impl Access {
    /// `deny` wins where both name the same prefix. What no prefix holds is denied where anything is allowed explicitly,
    /// and allowed otherwise. IPv4 networks written as `::ffff:a.b.c.d/96+n` count as IPv4; `::/0` is IPv6 only.
    pub fn new(allow: Vec<IpNet>, deny: Vec<IpNet>) -> Self {
        let otherwise = allow.is_empty();
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        let rules = allow.iter().map(|net| (net, true)).chain(deny.iter().map(|net| (net, false)));
        for (net, allowed) in rules {
            match (net.network().to_canonical(), net.broadcast().to_canonical()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => v4.push((first.to_bits(), last.to_bits(), allowed)),
                _ => {
                    if let IpNet::V6(net) = net {
                        v6.push((net.network().to_bits(), net.broadcast().to_bits(), allowed));
                    }
                }
            }
        }
        let (v4, v6) = (ranges(v4, otherwise, 0, after), ranges(v6, otherwise, 0, after6));
        Self { allow, deny, v4, v6, otherwise }
    }

    /// Whether an address may come in; `None` is a client without one, on a unix socket, which no prefix holds. An IPv4
    /// address written as IPv6 is the IPv4 address.
    pub fn allows(&self, address: Option<IpAddr>) -> bool {
        match address.map(|address| address.to_canonical()) {
            Some(IpAddr::V4(address)) => find(&self.v4, address.to_bits()),
            Some(IpAddr::V6(address)) => find(&self.v6, address.to_bits()),
            None => self.otherwise,
        }
    }

    /// As given.
    pub fn allow(&self) -> &[IpNet] {
        &self.allow
    }

    /// As given.
    pub fn deny(&self) -> &[IpNet] {
        &self.deny
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("allow", &self.allow).field("deny", &self.deny).finish_non_exhaustive()
    }
}

fn after(end: u32) -> Option<u32> {
    end.checked_add(1)
}

fn after6(end: u128) -> Option<u128> {
    end.checked_add(1)
}

fn find<T: Ord>(ranges: &Ranges<T>, address: T) -> bool {
    let next = ranges.partition_point(|(start, _)| *start <= address);
    // The first range begins at the first address, so that there is always one.
    next.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|(_, allowed)| *allowed)
}

/// Cuts networks, of which any two are apart or one within the other, into ranges by their innermost network.
fn ranges<T: Ord + Copy>(
    mut networks: Vec<(T, T, bool)>,
    otherwise: bool,
    first: T,
    after: fn(T) -> Option<T>,
) -> Ranges<T> {
    // Outer before inner; of two alike the one that denies last, which then is the innermost.
    networks.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2)));
    let mut cut: Vec<(T, bool)> = vec![(first, otherwise)];
    let mut open: Vec<(T, bool)> = Vec::new();
    let put = |cut: &mut Vec<(T, bool)>, start: T, allowed: bool| match cut.last_mut() {
        Some(last) if last.0 == start => last.1 = allowed,
        Some(last) if last.1 == allowed => {}
        _ => cut.push((start, allowed)),
    };
    let close = |cut: &mut Vec<(T, bool)>, open: &mut Vec<(T, bool)>, until: Option<T>| {
        while let Some((end, _)) = open.last().copied()
            && until.is_none_or(|until| end < until)
        {
            open.pop();
            let outer = open.last().map_or(otherwise, |(_, allowed)| *allowed);
            if let Some(start) = after(end) {
                put(cut, start, outer);
            }
        }
    };
    for (start, end, allowed) in networks {
        close(&mut cut, &mut open, Some(start));
        put(&mut cut, start, allowed);
        open.push((end, allowed));
    }
    close(&mut cut, &mut open, None);
    // A range may have got the same verdict as the one before it.
    cut.dedup_by(|next, before| next.1 == before.1);
    cut.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("a network")).collect()
    }

    fn allows(access: &Access, address: &str) -> bool {
        access.allows(Some(address.parse().expect("an address")))
    }

    #[test]
    fn the_longest_prefix_decides() {
        let access = Access::new(nets(&["10.0.0.0/8", "10.1.2.3/32"]), nets(&["10.1.0.0/16"]));
        for (address, allowed) in [
            ("10.0.0.1", true),
            ("10.1.2.2", false),
            ("10.1.2.3", true),
            ("10.1.2.4", false),
            ("10.2.0.0", true),
            ("11.0.0.0", false),
            ("::ffff:10.0.0.1", true),
            ("::1", false),
        ] {
            assert_eq!(allows(&access, address), allowed, "{address}");
        }
    }

    #[test]
    fn deny_alone_lets_everybody_else_in() {
        let access = Access::new(vec![], nets(&["192.0.2.0/24", "2001:db8::/32", "255.255.255.255/32"]));
        for (address, allowed) in [
            ("192.0.2.9", false),
            ("192.0.3.0", true),
            ("2001:db8::1", false),
            ("::", true),
            ("255.255.255.255", false),
        ] {
            assert_eq!(allows(&access, address), allowed, "{address}");
        }
        assert!(access.allows(None), "nobody without an address is denied");
    }

    #[test]
    fn deny_wins_on_the_same_prefix() {
        let both = || nets(&["192.0.2.0/24"]);
        let access = Access::new(both(), both());
        assert!(!allows(&access, "192.0.2.1") && !access.allows(None));
    }

    #[test]
    fn a_mapped_network_is_the_ipv4_network() {
        let access = Access::new(vec![], nets(&["::ffff:10.0.0.0/104"]));
        assert!(!allows(&access, "10.9.9.9") && !allows(&access, "::ffff:10.9.9.9"));
        assert!(allows(&access, "11.0.0.0") && allows(&access, "::1"));
        let six = Access::new(nets(&["::/0"]), vec![]);
        assert!(allows(&six, "2001:db8::1") && !allows(&six, "10.0.0.1"), "`::/0` says nothing of IPv4");
        let last = Access::new(nets(&["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"]), vec![]);
        assert!(allows(&last, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff") && !allows(&last, "::"));
    }

    #[test]
    fn thousands_of_networks_become_a_short_search() {
        let deny: Vec<IpNet> =
            (0..20_000u32).map(|at| IpNet::V4(ipnet::Ipv4Net::new((at << 9).into(), 24).expect("a length"))).collect();
        let access = Access::new(vec![], deny);
        assert_eq!(access.v4.len(), 40_000, "a range for each, and one behind it");
        assert!(!access.allows(Some([0, 0, 2, 7].into())) && access.allows(Some([0, 0, 3, 7].into())));
    }

    proptest! {
        #[test]
        fn it_is_the_linear_scan(
            rules in proptest::collection::vec((any::<u32>(), 0u8..=32, any::<bool>()), 0..40),
            asked in proptest::collection::vec(any::<u32>(), 1..40),
        ) {
            let net = |(address, length, _): &(u32, u8, bool)| {
                let address = address & 0x0300_0303; // so that many are within others
                ipnet::Ipv4Net::new(address.into(), *length).expect("a length").trunc()
            };
            let of = |allowed: bool| -> Vec<IpNet> {
                rules.iter().filter(|rule| rule.2 == allowed).map(|rule| IpNet::V4(net(rule))).collect()
            };
            let (allow, deny) = (of(true), of(false));
            let access = Access::new(allow.clone(), deny);
            for address in asked.iter().flat_map(|address| [*address, address & 0x0300_0303]) {
                let address = std::net::Ipv4Addr::from(address);
                let best = rules
                    .iter()
                    .filter(|rule| net(rule).contains(&address))
                    .max_by_key(|rule| (rule.1, !rule.2))
                    .map_or(allow.is_empty(), |rule| rule.2);
                prop_assert_eq!(access.allows(Some(address.into())), best, "{}", address);
            }
        }
    }
}
