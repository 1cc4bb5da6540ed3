//! Finding each other on a local network: multicast DNS on every interface, with or without a way out of it.
//!
//! What is announced is a label and where its endpoint is: for linking a nameplate and a key made for that, for syncing an
//! HMAC (see [`super::mesh`]). Never a DID, a nickname or the machine's name.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use data_encoding::BASE32_DNSSEC;
use iroh::{EndpointAddr, EndpointId, TransportAddr};
use swarm_discovery::{Discoverer, DropGuard};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::error::PeerError;

/// The name of the service: `_tiles._udp.local`.
const SERVICE: &str = "tiles";
/// The most sightings that wait to be looked at; more are dropped, and come again.
const SIGHTINGS_MAX: usize = 128;
/// The most addresses of one that are tried.
const ADDRESSES_MAX: usize = 16;
/// The most interfaces that are used.
const INTERFACES_MAX: usize = 32;

/// Somebody announces itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sighting {
    pub(crate) label: String,
    pub(crate) addresses: Vec<SocketAddr>,
}

/// Announcing and looking; ends when dropped.
pub(crate) struct Lan {
    pub(crate) sightings: mpsc::Receiver<Sighting>,
    _guards: Vec<DropGuard>,
}

#[cfg(test)]
impl Lan {
    /// One on which just these sightings are made.
    pub(super) const fn of(sightings: mpsc::Receiver<Sighting>) -> Self {
        Self { sightings, _guards: Vec::new() }
    }
}

impl Lan {
    /// Looks for others, and announces `labels`, all at `port`. `None` on a machine that has no network but itself.
    pub(crate) fn start(labels: &[String], port: u16) -> Result<Option<Self>, PeerError> {
        let interfaces = interfaces();
        if interfaces.is_empty() {
            return Ok(None);
        }
        check_allowed(&interfaces)?;
        let (found, sightings) = mpsc::channel(SIGHTINGS_MAX);
        // Who announces nothing looks all the same; the name isn't sent then.
        let names: Vec<&str> =
            if labels.is_empty() { vec!["looks"] } else { labels.iter().map(String::as_str).collect() };
        let mut guards = Vec::with_capacity(names.len());
        for name in names {
            let found = found.clone();
            let mut discoverer = Discoverer::new_interactive(SERVICE.into(), name.into())
                .with_multicast_interfaces_v4(interfaces.clone())
                .with_callback(move |label, peer| {
                    let addresses = peer.addrs().iter().take(ADDRESSES_MAX);
                    let addresses: Vec<_> = addresses.map(|(ip, port)| SocketAddr::new(*ip, *port)).collect();
                    if !addresses.is_empty() {
                        // Full: nobody looks any more, or somebody floods the network. Either way this one comes again.
                        let _ = found.try_send(Sighting { label: label.to_ascii_lowercase(), addresses });
                    }
                });
            if !labels.is_empty() {
                discoverer = discoverer.with_addrs(port, interfaces.iter().map(|ip| IpAddr::V4(*ip)));
            }
            let guard = discoverer.spawn(&Handle::current());
            guards.push(guard.map_err(|error| PeerError::Network { why: error.to_string() })?);
        }
        Ok(Some(Self { sightings, _guards: guards }))
    }
}

/// The label of a drive that waits to be linked.
pub(super) fn link_label(nameplate: &str, id: &EndpointId) -> String {
    format!("{}-{}", nameplate.to_ascii_lowercase(), BASE32_DNSSEC.encode(id.as_bytes()))
}

/// The endpoint that such a label names, where it is of `nameplate`.
pub(super) fn read_link_label(nameplate: &str, sighting: &Sighting) -> Option<EndpointAddr> {
    let (plate, id) = sighting.label.split_once('-')?;
    if !plate.eq_ignore_ascii_case(nameplate) || id.len() > 52 {
        return None;
    }
    let id = BASE32_DNSSEC.decode(id.as_bytes()).ok()?;
    let id = EndpointId::from_bytes(&id.try_into().ok()?).ok()?;
    Some(EndpointAddr::from_parts(id, sighting.addresses.iter().copied().map(TransportAddr::Ip)))
}

/// The IPv4 addresses of all interfaces but the loopback.
fn interfaces() -> Vec<Ipv4Addr> {
    let ipv4 = addresses().into_iter().filter_map(|ip| match ip {
        IpAddr::V4(ip) if !ip.is_loopback() => Some(ip),
        _ => None,
    });
    ipv4.take(INTERFACES_MAX).collect()
}

/// The addresses of this machine that another one can use; its loopback where there are no others.
pub(super) fn addresses() -> Vec<IpAddr> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let mut ips: Vec<IpAddr> = interfaces.iter().map(if_addrs::Interface::ip).filter(is_usable).collect();
    ips.sort_unstable();
    ips.dedup();
    if ips.is_empty() { vec![Ipv4Addr::LOCALHOST.into()] } else { ips }
}

/// Whether another machine can use an address as it is: a link-local one of IPv6 means nothing without its interface.
fn is_usable(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unspecified() && !ip.is_unicast_link_local(),
    }
}

/// macOS answers "no route to host" to who may not use the local network: said once here, or it would look as if nobody
/// were there. The packet is a DNS message without a question, which everybody ignores.
#[cfg(target_os = "macos")]
fn check_allowed(interfaces: &[Ipv4Addr]) -> Result<(), PeerError> {
    use std::net::UdpSocket;
    let group = (Ipv4Addr::new(224, 0, 0, 251), 5353);
    let is_refused = |ip: &Ipv4Addr| {
        let sent = UdpSocket::bind((*ip, 0)).and_then(|socket| socket.send_to(&[0; 12], group));
        sent.is_err_and(|error| error.kind() == std::io::ErrorKind::HostUnreachable)
    };
    if interfaces.iter().all(is_refused) { Err(PeerError::LocalNetwork) } else { Ok(()) }
}

/// Only macOS asks the person first.
#[cfg(not(target_os = "macos"))]
#[expect(clippy::unnecessary_wraps, reason = "it can fail on a Mac")]
const fn check_allowed(_: &[Ipv4Addr]) -> Result<(), PeerError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_names_nameplate_and_endpoint() {
        let id = iroh::SecretKey::from_bytes(&[7; 32]).public();
        let label = link_label("4K", &id);
        assert!(label.len() <= 63 && label.starts_with("4k-"), "{label}");
        let address: SocketAddr = "10.1.2.3:4000".parse().expect("an address");
        let sighting = |label: &str| Sighting { label: label.into(), addresses: vec![address] };
        let read = read_link_label("4K", &sighting(&label)).expect("it is one");
        assert_eq!((read.id, read.ip_addrs().collect::<Vec<_>>()), (id, vec![&address]));
        for other in ["4m-", "4k", "", "-", "4k-!", &label[..50], &format!("{label}00"), &label.replacen("4k", "zz", 1)]
        {
            assert_eq!(read_link_label("4K", &sighting(other)), None, "{other}");
        }
    }

    #[test]
    fn what_another_machine_cannot_use_is_left_out() {
        for (ip, expected) in [
            ("192.168.1.2", true),
            ("169.254.3.4", true),
            ("127.0.0.1", false),
            ("0.0.0.0", false),
            ("fd00::1", true),
            ("fe80::1", false),
            ("::1", false),
        ] {
            assert_eq!(is_usable(&ip.parse().expect("an address")), expected, "{ip}");
        }
        assert!(!addresses().is_empty());
    }
}
