//! IP addresses and URLs.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    ops::Range,
    sync::LazyLock,
};

use regex::Regex;

use super::{Candidate, matches, matches_among};

#[expect(clippy::unwrap_used, reason = "a constant pattern, compiled by every test")]
static ADDRESS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?-u)\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}|[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]{1,40}(?:(?:\.\d{1,3}){3})?",
    )
    .unwrap()
});

/// What a dotted quad is when it is no address: a version, a place in a book.
/// Most such places have small numbers only.
#[expect(clippy::unwrap_used, reason = "a constant pattern, compiled by every test")]
static NUMBERED: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?i)(?:\b(?:versions?|releases?|sections?|sect?\.|chapters?|appendix|tables?|figures?|examples?|v|rev)|§|^#+|\n#+)\s*$").unwrap()
});

/// IPv4 and IPv6 addresses of hosts and networks: not unspecified, loopback,
/// multicast and reserved ones.
pub(super) fn addresses(text: &str) -> Vec<Range<usize>> {
    let of = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b'.' | b':');
    let may_hold =
        |bytes: &[u8]| bytes.contains(&b':') || bytes.iter().filter(|byte| **byte == b'.').count() >= 3;
    matches_among(text, (|byte| matches!(byte, b'.' | b':'), of), may_hold, &ADDRESS, address)
}

fn address(address: &Candidate) -> Option<usize> {
    if address.as_str().contains(':') { ipv6(address) } else { ipv4(address) }
}

#[expect(clippy::unwrap_used, reason = "a constant pattern, compiled by every test")]
static CALLED_ADDRESS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r#"(?i)(?:\b(?:ip|ips|ipv4|addr|address|addresses|hosts?|servers?|gateway|dns|nameserver|ping|from|via|client|peer|inet)\b[^\d\n]{0,8}|[@\[=/"'`])$"#,
    )
    .unwrap()
});

fn ipv4(address: &Candidate) -> Option<usize> {
    let ip: Ipv4Addr = address.as_str().parse().ok()?;
    let [network, ..] = ip.octets();
    let no_host = network == 0 || network == 127 || network >= 224;
    let before = address.before(4).chars().next_back();
    let joined = before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-'));
    let mut after = address.after().chars();
    let continues = match after.next() {
        Some('.' | '-') => after.next().is_some_and(char::is_alphanumeric),
        Some(c) => c.is_alphanumeric() || c == '_',
        None => false,
    };
    (!no_host && !joined && !continues && is_meant(address, ip)).then(|| address.end())
}

/// Numbers up to 32 are more often a section than an address, unless
/// something says so.
fn is_meant(address: &Candidate, ip: Ipv4Addr) -> bool {
    if NUMBERED.is_match(address.before(16)) {
        return false;
    }
    let followed = |by: char| {
        address.after().strip_prefix(by).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    ip.octets().iter().any(|n| !(1..=32).contains(n))
        || followed('/')
        || followed(':')
        || CALLED_ADDRESS.is_match(address.before(24))
}

/// The longest address from the start of the match: a sentence may end in `:`
/// or `.` behind it.
fn ipv6(address: &Candidate) -> Option<usize> {
    let written = address.as_str().trim_end_matches(':');
    let written = if written.len() + 2 == address.as_str().len() { address.as_str() } else { written };
    let ip: Ipv6Addr = written.parse().ok()?;
    let groups = written.split(':').filter(|group| !group.is_empty());
    // `a::b` is a path in C++, `x::date` a cast in SQL.
    let telling = groups.clone().count() >= 3
        || groups.clone().any(|group| group.len() > 2 && group.contains(|c: char| c.is_ascii_digit()));
    let joined = address.before(4).ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | ':' | '.'));
    let rest = address.text.get(address.range.start + written.len()..)?;
    let continues = rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    let hardware = groups.clone().count() == 8 && groups.clone().all(|group| group.len() == 2);
    let no_host = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast();
    (telling && !hardware && !no_host && !joined && !continues).then_some(address.range.start + written.len())
}

#[expect(clippy::unwrap_used, reason = "a constant pattern, compiled by every test")]
static URL: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r#"(?i)\b(?:(?:https?|ftp)://|www\.)[^\s<>"'`{}|\\^]{3,}"#).unwrap());

/// URLs without the punctuation that ends a sentence behind them.
pub(super) fn urls(text: &str) -> Vec<Range<usize>> {
    matches(text, &URL, |url| {
        let written = url.as_str().trim_end_matches(['.', ',', ';', ':', '!', '?', ')', ']', '*', '_']);
        Some(url.range.start + written.len())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::tests::numbers, *};

    proptest! {
        #[test]
        fn nothing_is_found_but_where_it_is_looked_for(text in numbers()) {
            prop_assert_eq!(addresses(&text), matches(&text, &ADDRESS, address));
        }
    }
}
