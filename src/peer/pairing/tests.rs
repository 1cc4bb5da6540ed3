//! Pairing over real sockets on the loopback: the honest link, and what others on the network can do to it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;

use super::super::endpoint::Network;
use super::*;
use crate::did::Did;
use crate::time::{FixedClock, Timestamp};

const NOW: Timestamp = Timestamp::from_ms(1_795_700_000_000);

/// A person who answers at once, and whose screen can be looked at.
struct Person {
    says_yes: bool,
    interrupted: AtomicBool,
    offers: mpsc::UnboundedSender<Ticket>,
    seen: Mutex<Vec<(Card, Digits)>>,
}

impl Person {
    fn new(says_yes: bool) -> (Arc<Self>, mpsc::UnboundedReceiver<Ticket>) {
        let (offers, shown) = mpsc::unbounded_channel();
        let person = Self { says_yes, interrupted: AtomicBool::new(false), offers, seen: Mutex::default() };
        (Arc::new(person), shown)
    }

    fn seen(&self) -> Vec<(Card, Digits)> {
        self.seen.lock().expect("nobody panicked").clone()
    }
}

impl Approver for Person {
    fn show_offer(&self, ticket: &Ticket, _: bool) {
        self.offers.send(ticket.clone()).expect("the test looks");
    }

    fn approve(&self, card: &Card, digits: Digits) -> Result<bool, PeerError> {
        self.show_digits(card, digits);
        Ok(self.says_yes)
    }

    fn show_digits(&self, card: &Card, digits: Digits) {
        self.seen.lock().expect("nobody panicked").push((card.clone(), digits));
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

fn identity() -> Identity {
    Identity::generate(NOW).expect("there is randomness")
}

async fn ephemeral() -> Endpoint {
    let network = Network { relay: None, loopback_only: true };
    Endpoint::ephemeral(network).await.unwrap_or_else(|error| panic!("{error}"))
}

/// What a side stored: of whom, and how many keys of the mesh.
type Kept = Vec<(Did, Vec<MeshKey>)>;

/// A drive that waits; `during` does what others do meanwhile.
async fn listening<F: Future>(
    says_yes: bool,
    lifetime: Duration,
    during: impl FnOnce(Listener, mpsc::UnboundedReceiver<Ticket>, Arc<Person>) -> F,
) -> (Result<Card, PeerError>, Kept, F::Output) {
    let (ada, endpoint) = (identity(), ephemeral().await);
    let (person, offers) = Person::new(says_yes);
    let mut kept = Kept::new();
    let mut keep = |card: &Card, keys: &[MeshKey]| {
        kept.push((card.did, keys.to_vec()));
        Ok(())
    };
    let myself = Myself { identity: &ada, nickname: "Ada", mesh_keys: Vec::new() };
    let clock = FixedClock(NOW);
    let other = during(Listener(ada.did()), offers, Arc::clone(&person));
    let (listened, other) = tokio::join!(listen(&endpoint, &myself, &person, &clock, lifetime, &mut keep), other);
    endpoint.close().await;
    (listened, kept, other)
}

/// Whom the listener is.
struct Listener(Did);

/// A drive that comes with a ticket.
async fn joining(ticket: Ticket, mesh_keys: Vec<MeshKey>) -> (Result<Card, PeerError>, Kept, Vec<(Card, Digits)>, Did) {
    let (bob, endpoint) = (identity(), ephemeral().await);
    let (person, _offers) = Person::new(true);
    let mut kept = Kept::new();
    let mut keep = |card: &Card, keys: &[MeshKey]| {
        kept.push((card.did, keys.to_vec()));
        Ok(())
    };
    let myself = Myself { identity: &bob, nickname: "Bob", mesh_keys };
    let target = Target::Ticket(ticket);
    let joined = join(&endpoint, &target, &myself, &*person, &FixedClock(NOW), &mut keep).await;
    endpoint.close().await;
    (joined, kept, person.seen(), bob.did())
}

/// The same ticket with another code.
fn with_wrong_code(ticket: &Ticket) -> Ticket {
    let mut bytes = ticket.code.to_bytes();
    bytes[4] ^= 1;
    Ticket { code: LinkCode::from_bytes(bytes), ..ticket.clone() }
}

#[tokio::test]
async fn two_drives_are_linked_by_a_ticket_and_know_each_other_afterwards() {
    let own = MeshKey::draw().expect("there is randomness");
    let (listened, kept, (joined, bob_kept, bob_saw, ada_saw, ada, bob)) =
        listening(true, CODE_LIFETIME, |ada, mut offers, person| async move {
            let ticket = offers.recv().await.expect("it is shown");
            assert_eq!(ticket.expires_at.as_ms(), NOW.as_ms() + CODE_LIFETIME.as_millis() as i64);
            let typed = ticket.to_text().parse().expect("it is whole");
            let began = Instant::now();
            let (joined, kept, saw, bob) = joining(typed, vec![own]).await;
            assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
            (joined, kept, saw, person.seen(), ada.0, bob)
        })
        .await;
    assert_eq!(listened.expect("it came").did, bob);
    assert_eq!(joined.expect("it was let in"), Card { nickname: "Ada".into(), did: ada });
    let ((of_bob, listener_digits), (of_ada, joiner_digits)) = (&ada_saw[0], &bob_saw[0]);
    assert_eq!((of_bob.nickname.as_str(), of_ada.did), ("Bob", ada));
    assert_eq!(listener_digits, joiner_digits);
    let (last, first) = (kept.last().expect("it was kept"), bob_kept.last().expect("it was kept"));
    assert_eq!((last.0, first.0), (bob, ada));
    // Both have both keys: the listener's new one, and the joiner's own.
    assert_eq!((last.1.len(), first.1.len()), (2, 2));
    assert!(last.1.iter().all(|key| first.1.contains(key)));
}

#[tokio::test]
async fn a_no_links_nothing_and_is_told_as_a_no() {
    let (listened, kept, (joined, bob_kept, ..)) = listening(false, CODE_LIFETIME, |_, mut offers, _| async move {
        joining(offers.recv().await.expect("it is shown"), Vec::new()).await
    })
    .await;
    assert!(matches!(listened, Err(PeerError::Declined)), "{listened:?}");
    assert!(matches!(joined, Err(PeerError::Refused(Refusal::Declined))), "{joined:?}");
    assert!(kept.is_empty() && bob_kept.is_empty());
}

#[tokio::test]
async fn three_wrong_codes_end_a_code_and_the_new_one_links() {
    let (listened, _, joined) = listening(true, CODE_LIFETIME, |_, mut offers, _| async move {
        let first = offers.recv().await.expect("it is shown");
        for _ in 0..FAILURES_MAX {
            let (joined, ..) = joining(with_wrong_code(&first), Vec::new()).await;
            assert!(matches!(joined, Err(PeerError::Refused(Refusal::WrongCode))), "{joined:?}");
        }
        let second = offers.recv().await.expect("a new one is shown");
        assert!(first.code != second.code);
        let (old, ..) = joining(first, Vec::new()).await;
        assert!(matches!(old, Err(PeerError::Refused(Refusal::WrongCode))), "{old:?}");
        let (joined, ..) = joining(second, Vec::new()).await;
        joined
    })
    .await;
    assert!(listened.is_ok() && joined.is_ok(), "{listened:?} {joined:?}");
}

/// Connects as a stranger, and leaves it at that.
async fn stalled(endpoint: &Endpoint, ticket: &Ticket) -> Connection {
    endpoint.connect(ticket.endpoint.clone(), LINK_ALPN).await.expect("it is let in as far as that")
}

#[tokio::test]
async fn junk_and_silence_neither_burn_the_code_nor_keep_the_honest_out() {
    let (listened, _, (joined, offers)) = listening(true, CODE_LIFETIME, |_, mut offers, _| async move {
        let ticket = offers.recv().await.expect("it is shown");
        let stranger = ephemeral().await;
        for _ in 0..FAILURES_MAX + 2 {
            let connection = stalled(&stranger, &ticket).await;
            let (mut send, mut receive) = connection.open_bi().await.expect("it is let in as far as that");
            send.write_all(b"\x00\x02\x09junk").await.expect("it is taken");
            let _ = receive.read_to_end(1_024).await;
            connection.close(0_u32.into(), b"");
        }
        let mut silent = Vec::new();
        for _ in 0..HANDSHAKES_MAX {
            silent.push(stalled(&stranger, &ticket).await);
        }
        // Now every place is taken: the honest one is told so, tries again, and comes in when the silent are left.
        let (joined, ..) = joining(ticket, Vec::new()).await;
        drop(silent);
        (joined, offers)
    })
    .await;
    assert!(listened.is_ok() && joined.is_ok(), "{listened:?} {joined:?}");
    let mut offers = offers;
    assert!(offers.try_recv().is_err(), "no new code was needed");
}

#[tokio::test]
async fn who_sits_in_the_middle_with_two_connections_gets_nothing() {
    let (listened, kept, joined) = listening(true, Duration::from_secs(4), |_, mut offers, _| async move {
        let ticket = offers.recv().await.expect("it is shown");
        // Mallory answers in the listener's place, and passes every byte on.
        let mallory = ephemeral().await;
        let lured = Ticket { endpoint: mallory.address(), ..ticket.clone() };
        let relay = async {
            let from = mallory.iroh.accept().await.expect("the joiner comes").await.expect("it handshakes");
            let (mut from_send, mut from_receive) = from.accept_bi().await.expect("the joiner speaks");
            let to = mallory.connect(ticket.endpoint.clone(), LINK_ALPN).await.expect("the listener is there");
            let (mut to_send, mut to_receive) = to.open_bi().await.expect("the listener hears");
            tokio::join!(
                tokio::io::copy(&mut from_receive, &mut to_send),
                tokio::io::copy(&mut to_receive, &mut from_send)
            )
        };
        tokio::select! {
            (joined, ..) = joining(lured, Vec::new()) => joined,
            _ = async { let _ = relay.await; std::future::pending::<()>().await } => unreachable!("it only relays"),
        }
    })
    .await;
    assert!(matches!(joined, Err(PeerError::Refused(Refusal::WrongCode))), "{joined:?}");
    assert!(matches!(listened, Err(PeerError::NobodyCame)), "{listened:?}");
    assert!(kept.is_empty());
}

#[tokio::test]
async fn a_code_is_good_once_and_for_its_time() {
    let (listened, kept, old) = listening(true, Duration::from_millis(50), |_, mut offers, _| async move {
        offers.recv().await.expect("it is shown")
    })
    .await;
    assert!(matches!(listened, Err(PeerError::NobodyCame)) && kept.is_empty());
    let late = Ticket { expires_at: Timestamp::from_ms(NOW.as_ms() - 1), ..old };
    let (joined, ..) = joining(late, Vec::new()).await;
    assert!(matches!(joined, Err(PeerError::Expired)), "{joined:?}");

    let (listened, _, ticket) = listening(true, CODE_LIFETIME, |_, mut offers, _| async move {
        let ticket = offers.recv().await.expect("it is shown");
        assert!(joining(ticket.clone(), Vec::new()).await.0.is_ok());
        ticket
    })
    .await;
    assert!(listened.is_ok());
    let (again, kept, ..) = joining(ticket, Vec::new()).await;
    assert!(again.is_err() && kept.is_empty(), "{again:?}");
}

#[tokio::test]
async fn another_endpoint_under_a_ticket_s_address_is_not_talked_to() {
    let (listened, kept, joined) = listening(true, Duration::from_secs(1), |_, mut offers, _| async move {
        let ticket = offers.recv().await.expect("it is shown");
        // The key of the ticket isn't the one that answers there.
        let other = ephemeral().await;
        let addresses = ticket.endpoint.addrs.iter().cloned();
        let swapped = EndpointAddr::from_parts(other.iroh.id(), addresses);
        joining(Ticket { endpoint: swapped, ..ticket }, Vec::new()).await.0
    })
    .await;
    assert!(matches!(joined, Err(PeerError::Lost { .. } | PeerError::NoAnswer { .. })), "{joined:?}");
    assert!(matches!(listened, Err(PeerError::NobodyCame)) && kept.is_empty());
}

#[tokio::test]
async fn ctrl_c_ends_the_wait() {
    let (listened, _, ()) = listening(true, CODE_LIFETIME, |_, mut offers, person| async move {
        offers.recv().await.expect("it is shown");
        person.interrupted.store(true, Ordering::Relaxed);
    })
    .await;
    assert!(matches!(listened, Err(PeerError::Interrupted)), "{listened:?}");
}

#[tokio::test]
async fn the_honest_one_is_found_among_fifty_who_took_its_nameplate() {
    let (listened, _, found) = listening(true, CODE_LIFETIME, |_, mut offers, _| async move {
        let ticket = offers.recv().await.expect("it is shown");
        let nameplate = ticket.code.nameplate();
        let sighting = |id: &iroh::EndpointId, at: &EndpointAddr| lan::Sighting {
            label: lan::link_label(&nameplate, id),
            addresses: at.ip_addrs().copied().collect(),
        };
        // Two that play the listener without the code, two that say nothing, 46 that aren't there; the honest one is last.
        let (feed, sightings) = mpsc::channel(64);
        let (mut fakes, mut playing) = (Vec::new(), Vec::new());
        for number in 0..4 {
            let fake = ephemeral().await;
            feed.send(sighting(&fake.iroh.id(), &fake.address())).await.expect("there is room");
            let (iroh, id) = (fake.iroh.clone(), fake.id());
            let wrong = with_wrong_code(&ticket).code;
            playing.push(tokio::spawn(async move {
                while let Some(incoming) = iroh.accept().await {
                    match number {
                        0 | 1 => drop(handshake(incoming, id, wrong.clone()).await),
                        _ => drop(incoming.await.expect("the joiner comes").closed().await),
                    }
                }
            }));
            fakes.push(fake);
        }
        for seed in 0..46 {
            let id = iroh::SecretKey::from_bytes(&[seed; 32]).public();
            feed.send(sighting(&id, &fakes[usize::from(seed) % 4].address())).await.expect("there is room");
        }
        feed.send(sighting(&ticket.endpoint.id, &ticket.endpoint)).await.expect("there is room");

        let (bob, endpoint) = (identity(), ephemeral().await);
        let target = Target::Code(ticket.code);
        let began = Instant::now();
        let mut exchange = search(&endpoint, &target, Some(Lan::of(sightings))).await.expect("it is there");
        assert!(began.elapsed() < GRACE, "{:?}", began.elapsed());
        let card = exchange.confirmed.exchange_cards(&bob, "Bob").await.expect("it is signed");
        exchange.confirmed.await_share(CODE_LIFETIME).await.expect("its person says yes");
        exchange.confirmed.send_keys(&[]).await.expect("it listens");
        exchange.confirmed.linger().await;
        playing.iter().for_each(tokio::task::JoinHandle::abort);
        card
    })
    .await;
    assert!(listened.is_ok() && found.nickname == "Ada", "{listened:?}");
}
