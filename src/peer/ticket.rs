//! `Ticket`: all that it takes to reach a drive that waits to be linked, for where its code alone doesn't find it.
//!
//! The text is `TILES1:` and base 32 of: endpoint id (32 bytes), code (5), end of its validity in seconds since the epoch
//! (5, big-endian), length and bytes of the relay's address, number of socket addresses and each of them (4 or 6, the bytes of
//! the IP address, the port), and the first 4 bytes of the SHA-256 of all that, against mistakes in copying. Capitals and
//! digits alone, which a QR code holds in its densest mode.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use iroh::{EndpointAddr, EndpointId, RelayUrl, TransportAddr};
use sha2::{Digest as _, Sha256};

use super::code::LinkCode;
use super::error::PeerError;
use crate::time::Timestamp;

/// The most socket addresses in a ticket.
pub const TICKET_ADDRESSES_MAX: usize = 12;
/// The longest address of a relay, in bytes.
pub const RELAY_BYTES_MAX: usize = 200;
/// The longest text that is looked at.
pub const TICKET_TEXT_BYTES_MAX: usize = 1_024;

const PREFIX: &str = "TILES1:";
const CHECKSUM_BYTES: usize = 4;

/// Where a drive waits to be linked, and its code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The key of the endpoint that waits, and where it may be reached.
    pub(super) endpoint: EndpointAddr,
    /// The code.
    pub code: LinkCode,
    /// When the code ends; in whole seconds.
    pub expires_at: Timestamp,
}

impl Ticket {
    /// Puts a ticket together; of many addresses the first ones stay.
    pub(super) fn new(endpoint: &EndpointAddr, code: LinkCode, expires_at: Timestamp) -> Self {
        let relay = endpoint.relay_urls().find(|url| url.as_str().len() <= RELAY_BYTES_MAX);
        let ips = endpoint.ip_addrs().take(TICKET_ADDRESSES_MAX).map(|address| TransportAddr::Ip(*address));
        let addresses = ips.chain(relay.map(|url| TransportAddr::Relay(url.clone())));
        let endpoint = EndpointAddr::from_parts(endpoint.id, addresses);
        Self { endpoint, code, expires_at: Timestamp::from_ms(expires_at.as_ms() / 1_000 * 1_000) }
    }

    /// Whether `text` is meant to be a ticket, and not a code.
    pub fn is_meant(text: &str) -> bool {
        text.trim_start().get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
    }

    /// The text of the ticket.
    pub fn to_text(&self) -> String {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(self.endpoint.id.as_bytes());
        bytes.extend_from_slice(&self.code.to_bytes());
        let [_, _, _, seconds @ ..] = (self.expires_at.as_ms().max(0) as u64 / 1_000).to_be_bytes();
        bytes.extend_from_slice(&seconds);
        let relay = self.endpoint.relay_urls().next().map_or("", |url| url.as_str());
        bytes.push(relay.len() as u8);
        bytes.extend_from_slice(relay.as_bytes());
        let addresses: Vec<&SocketAddr> = self.endpoint.ip_addrs().collect();
        bytes.push(addresses.len() as u8);
        for address in addresses {
            match address.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(4);
                    bytes.extend_from_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(6);
                    bytes.extend_from_slice(&ip.octets());
                }
            }
            bytes.extend_from_slice(&address.port().to_be_bytes());
        }
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        format!("{PREFIX}{}", BASE32_NOPAD.encode(&bytes))
    }
}

/// Reads a ticket as it was copied: white space anywhere, small letters.
impl FromStr for Ticket {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<Self, PeerError> {
        if text.len() > TICKET_TEXT_BYTES_MAX {
            return Err(PeerError::Ticket { why: "it is too long" });
        }
        let text: String = text.chars().filter(|letter| !letter.is_whitespace()).collect();
        let text = text.to_ascii_uppercase();
        let body = text.strip_prefix(PREFIX).ok_or(PeerError::Ticket { why: "it doesn't begin with `TILES1:`" })?;
        let mistyped = || PeerError::Ticket { why: "a part is missing or was changed" };
        let bytes = BASE32_NOPAD.decode(body.as_bytes()).map_err(|_| mistyped())?;
        let (content, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or_else(mistyped)?;
        if checksum(content) != *sum {
            return Err(mistyped());
        }
        let mut rest = Rest(content);
        let ticket = rest.ticket().ok_or(PeerError::Ticket { why: "what is in it can't be one" })?;
        if rest.0.is_empty() {
            Ok(ticket)
        } else {
            Err(PeerError::Ticket { why: "there is more in it than there can be" })
        }
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let [a, b, c, d, ..]: [u8; 32] = Sha256::digest(bytes).into();
    [a, b, c, d]
}

/// What is still to be read of a ticket.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn ticket(&mut self) -> Option<Ticket> {
        let id = EndpointId::from_bytes(&self.array()?).ok()?;
        let code = LinkCode::from_bytes(self.array()?);
        let [a, b, c, d, e] = self.array()?;
        let seconds = u64::from_be_bytes([0, 0, 0, a, b, c, d, e]);
        let expires_at = Timestamp::from_ms(i64::try_from(seconds).ok()?.checked_mul(1_000)?);
        let mut addresses = Vec::new();
        let relay_bytes = self.array::<1>()?[0].into();
        if relay_bytes > RELAY_BYTES_MAX {
            return None;
        }
        if relay_bytes > 0 {
            let relay = str::from_utf8(self.take(relay_bytes)?).ok()?;
            let url: RelayUrl = relay.parse().ok()?;
            // An address that would be written in another way has two texts; ours has one.
            if url.as_str() != relay || url.scheme() != "https" {
                return None;
            }
            addresses.push(TransportAddr::Relay(url));
        }
        let count = usize::from(self.array::<1>()?[0]);
        if count > TICKET_ADDRESSES_MAX {
            return None;
        }
        for _ in 0..count {
            let ip: IpAddr = match self.array()? {
                [4] => Ipv4Addr::from(self.array::<4>()?).into(),
                [6] => Ipv6Addr::from(self.array::<16>()?).into(),
                _ => return None,
            };
            let port = u16::from_be_bytes(self.array()?);
            if port == 0 || ip.is_unspecified() || ip.is_multicast() {
                return None;
            }
            addresses.push(TransportAddr::Ip(SocketAddr::new(ip, port)));
        }
        Some(Ticket { endpoint: EndpointAddr::from_parts(id, addresses), code, expires_at })
    }

    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(seed: u8) -> EndpointId {
        iroh::SecretKey::from_bytes(&[seed; 32]).public()
    }

    fn ticket(seed: u8, addresses: &[&str], relay: Option<&str>) -> Ticket {
        let ips = addresses.iter().map(|text| TransportAddr::Ip(text.parse().expect("an address")));
        let relay = relay.map(|url| TransportAddr::Relay(url.parse().expect("a URL")));
        let endpoint = EndpointAddr::from_parts(id(seed), ips.chain(relay));
        Ticket::new(&endpoint, LinkCode::from_bytes([seed; 5]), Timestamp::from_ms(1_795_700_000_999))
    }

    fn with_sum(content: &[u8]) -> String {
        format!("{PREFIX}{}", BASE32_NOPAD.encode(&[content, &checksum(content)[..]].concat()))
    }

    #[test]
    fn a_ticket_is_copied_in_any_case_and_over_lines() {
        let whole = ticket(1, &["192.168.1.7:4000", "[fd00::1]:5000"], Some("https://relay.example.org/"));
        let text = whole.to_text();
        assert!(text.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b':')), "{text}");
        assert!(Ticket::is_meant(&text) && Ticket::is_meant(" tiles1:x") && !Ticket::is_meant("4K-7QM-2XD"));
        let copied = format!("  {}\n{} ", &text[..30], text[30..].to_lowercase());
        assert_eq!(copied.parse::<Ticket>().ok(), Some(whole.clone()));
        assert_eq!(whole.expires_at, Timestamp::from_ms(1_795_700_000_000));
        let many: Vec<String> = (1..=40).map(|port| format!("10.0.0.1:{port}")).collect();
        let many = ticket(2, &many.iter().map(String::as_str).collect::<Vec<_>>(), None);
        assert_eq!(
            many.to_text().parse::<Ticket>().ok().map(|t| t.endpoint.ip_addrs().count()),
            Some(TICKET_ADDRESSES_MAX)
        );
    }

    #[test]
    fn what_is_no_ticket_is_refused_with_a_reason() {
        let good = ticket(1, &["192.168.1.7:4000"], None).to_text();
        let content = BASE32_NOPAD.decode(&good.as_bytes()[PREFIX.len()..]).expect("ours");
        let content = &content[..content.len() - CHECKSUM_BYTES];
        let changed = |at: usize, byte: u8| {
            let mut content = content.to_vec();
            content[at] = byte;
            with_sum(&content)
        };
        assert!(with_sum(content).parse::<Ticket>().is_ok(), "the control");
        for (name, text) in [
            ("empty", String::new()),
            ("prefix alone", PREFIX.into()),
            ("another prefix", good.replacen("TILES1", "TILES2", 1)),
            ("one letter changed", good.replacen(&good[20..21], if &good[20..21] == "A" { "B" } else { "A" }, 1)),
            ("cut", good[..good.len() - 9].into()),
            ("too long", format!("{good}{}", " ".repeat(TICKET_TEXT_BYTES_MAX))),
            ("no base 32", format!("{PREFIX}0189")),
            ("more behind", with_sum(&[content, &[0]].concat())),
            ("no point of the curve", changed(0, content[0].wrapping_add(2))),
            ("relay beyond its end", changed(42, 255)),
            ("more addresses than there are", changed(43, 2)),
            ("more addresses than allowed", changed(43, 255)),
            ("an IP version nobody knows", changed(44, 5)),
            ("any interface", with_sum(&[&content[..45], &[0; 4], &content[49..]].concat())),
            ("port 0", with_sum(&[&content[..49], &[0; 2]].concat())),
        ] {
            let refused = text.parse::<Ticket>();
            // Half of all y coordinates are points of the curve: this one may be another good key.
            if name != "no point of the curve" {
                assert!(matches!(refused, Err(PeerError::Ticket { .. })), "{name}: {refused:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn printing_and_parsing_are_inverse(
            seed: u8, v4: Vec<(u32, u16)>, v6: Option<(u128, u16)>, with_relay: bool, seconds in 0i64..1 << 40
        ) {
            let ips = v4.into_iter().map(|(ip, port)| SocketAddr::new(Ipv4Addr::from(ip).into(), port));
            let ips = ips.chain(v6.map(|(ip, port)| SocketAddr::new(Ipv6Addr::from(ip).into(), port)));
            let ips = ips.filter(|a| a.port() > 0 && !a.ip().is_unspecified() && !a.ip().is_multicast());
            let relay = with_relay.then(|| TransportAddr::Relay("https://r.example.org/".parse().expect("a URL")));
            let endpoint = EndpointAddr::from_parts(id(seed), ips.map(TransportAddr::Ip).chain(relay));
            let ticket = Ticket::new(&endpoint, LinkCode::from_bytes([seed; 5]), Timestamp::from_ms(seconds * 1_000));
            prop_assert_eq!(ticket.to_text().parse::<Ticket>().ok(), Some(ticket));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, text in ".{0,60}") {
            let _ = with_sum(&bytes).parse::<Ticket>();
            let _ = format!("{PREFIX}{text}").parse::<Ticket>();
        }
    }
}
