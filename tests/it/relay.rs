//! Two drives that share no network, and a relay of the person's own between them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use iroh_relay::server::{CertConfig, RelayConfig, Server, ServerConfig, TlsConfig};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tilekit::digest::Sha256Digest;

use crate::drive::TestBundle;
use crate::link::{digits, is_expected, shown_ticket, start, tiles};
use crate::namespaces::{BETWEEN, Machine, contains};

const PORT: u16 = 8443;
/// Says to the process of this test program that it is to be the relay.
const AS_RELAY: &str = "TILES_TEST_AS_RELAY";

/// The relay's process, until the test ends.
struct Relay {
    process: Child,
    /// The address that drives are given.
    address: String,
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Relay {
    fn start(machine: &Machine) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("it runs"));
        command.args(["--exact", "relay::is_a_relay_where_it_is_told_so", "--nocapture"]).env(AS_RELAY, "1");
        let mut process = machine.command(&command).stdout(Stdio::piped()).spawn().expect("it can be run");
        let stdout = BufReader::new(process.stdout.take().expect("it was asked for"));
        let said = stdout.lines().map_while(Result::ok).find_map(|line| line.strip_prefix("relay ").map(str::to_owned));
        let address = format!("https://{BETWEEN}:{PORT}#sha256={}", said.expect("it says what its certificate is"));
        Self { process, address }
    }
}

/// Not a test of its own: what [`Relay::start`] runs on the machine in the middle. iroh's own server, with a certificate that
/// nobody vouches for.
#[test]
fn is_a_relay_where_it_is_told_so() {
    if std::env::var_os(AS_RELAY).is_none() {
        return;
    }
    let made = rcgen::generate_simple_self_signed(vec![BETWEEN.to_owned()]).expect("it can be made");
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let digest = Sha256Digest::of(&certificate);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server_config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![certificate], key))
        .expect("it fits");
    let at = |port| SocketAddr::from(([0, 0, 0, 0], port));
    let mut relay = RelayConfig::new(at(8080));
    relay.tls = Some(TlsConfig::new(at(PORT), CertConfig::Manual { server_config }));
    let mut config = ServerConfig::default();
    config.relay = Some(relay);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("threads can be had");
    runtime.block_on(async {
        let _server = Server::spawn(config).await.expect("the ports are free");
        writeln!(std::io::stdout(), "\nrelay {digest}").expect("somebody listens");
        tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    });
}

#[test]
fn drives_without_a_network_in_common_link_and_sync_through_ones_own_relay() {
    let Some([here, between, there]) = Machine::apart() else { return };
    let (ada, bob) = (TestBundle::quick("Ada"), TestBundle::quick("Bob"));
    ada.ok(&["account", "set-nickname", "Ada"]);
    bob.ok(&["account", "set-nickname", "Bob"]);
    ada.ok(&["-p", "of the sky"]);
    bob.ok(&["-p", "of the sea"]);
    let relay = Relay::start(&between);
    ada.ok(&["config", "set", "relay", &relay.address]);

    // Without a relay, and with one that has another certificate, there is no way.
    let tap = here.tap(&ada.home.with_file_name("packets"));
    let mut waits = start(&here, &ada, &["link", "enable"]);
    waits.wait("Waiting until");
    let ticket = shown_ticket(&waits);
    let other = format!("https://{BETWEEN}:{PORT}#sha256={}", Sha256Digest::of(b"another certificate"));
    for wrong in [None, Some(other)] {
        if let Some(wrong) = &wrong {
            bob.ok(&["config", "set", "relay", wrong]);
        }
        let refused = there.command(&tiles(&bob, &["link", "enable", &ticket])).output().expect("it can be run");
        assert!(!refused.status.success(), "{wrong:?}: {}", String::from_utf8_lossy(&refused.stdout));
    }

    bob.ok(&["config", "set", "relay", &relay.address]);
    let mut comes = start(&there, &bob, &["link", "enable", &ticket]);
    comes.wait("this drive waits");
    assert!(comes.text().contains(&format!("Using the relay https://{BETWEEN}:{PORT}/ too.")), "{}", comes.text());
    waits.wait("[y/N]");
    assert_eq!(digits(&waits), digits(&comes));
    waits.keys("y\r");
    assert_eq!((waits.end(), comes.end()), (0, 0), "{}\n{}", waits.text(), comes.text());

    let mut screen = start(&here, &ada, &["sync"]);
    screen.wait("Waiting on UDP port");
    let output = there.command(&tiles(&bob, &["sync"])).output().expect("it can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(screen.end(), 0, "{}", screen.text());
    assert!(screen.text().contains("received 2 messages in 1 session from Bob, sent 2 messages"), "{}", screen.text());

    let packets = here.recorded(&tap);
    assert!(packets.len() > 10, "it went through the relay: {} packets", packets.len());
    for packet in &packets {
        if packet.get(12..14) == Some(&[0x08, 0x00]) {
            let (from, to) = (&packet[26..30], &packet[30..34]);
            let is_relay = [from, to].contains(&&[10, 9, 0, 1][..]);
            // It tries the other machine's own address too, in vain.
            assert!(is_relay || is_expected(packet), "{packet:02x?}");
            assert!(!matches!(from, [10, 8, ..]), "there is no other way");
        }
        for word in ["Ada", "Bob", "of the sky", "of the sea"] {
            assert!(!contains(packet, word.as_bytes()), "{word} is in clear on the wire");
        }
    }
}
