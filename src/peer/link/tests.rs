//! The attacks on a link exchange, each with the honest control: wrong codes, who sits in the middle, replays, junk.

use std::sync::Arc;

use tokio::io::{DuplexStream, duplex};

use super::*;
use crate::time::Timestamp;

const CODE: &str = "4K-7QM-2XD";
const WRONG: &str = "4K-7QM-2XE";

fn code(text: &str) -> LinkCode {
    text.parse().expect("it is one")
}

fn channel(exporter: u8) -> Channel {
    Channel { exporter: [exporter; 32], listener: [1; 32], joiner: [2; 32] }
}

fn identity() -> Identity {
    Identity::generate(Timestamp::from_ms(0)).expect("there is randomness")
}

/// Runs both sides over channels that may differ, and gives both outcomes.
async fn run(
    joiner: (Channel, &str),
    listener: (Channel, &str),
) -> (Result<Confirmed<DuplexStream>, PeerError>, Result<Confirmed<DuplexStream>, PeerError>) {
    let (one, other) = duplex(4_096);
    let [joiner_code, listener_code] = [code(joiner.1), code(listener.1)];
    tokio::join!(join(one, joiner.0, &joiner_code), receive(other, listener.0, &listener_code))
}

/// An honest pair, both confirmed.
async fn honest() -> (Confirmed<DuplexStream>, Confirmed<DuplexStream>) {
    let (joiner, listener) = run((channel(9), CODE), (channel(9), CODE)).await;
    (joiner.unwrap_or_else(|error| panic!("{error}")), listener.unwrap_or_else(|error| panic!("{error}")))
}

#[tokio::test]
async fn an_honest_link_shows_the_same_digits_and_carries_names_and_keys() {
    let (mut joiner, mut listener) = honest().await;
    assert_eq!(joiner.digits(), listener.digits());
    let shown = joiner.digits().to_string();
    assert!(shown.len() == 7 && shown.as_bytes()[3] == b' ', "{shown}");
    let (ada, bob) = (identity(), identity());
    let long = "é".repeat(200);
    let cards = tokio::join!(joiner.exchange_cards(&ada, &long), listener.exchange_cards(&bob, "Bob\x1b[2J"));
    let (bob_card, ada_card) = (cards.0.expect("it is signed"), cards.1.expect("it is signed"));
    assert_eq!((bob_card.did, bob_card.nickname.as_str()), (bob.did(), "Bob\x1b[2J"));
    assert_eq!((ada_card.did, ada_card.nickname.as_str()), (ada.did(), &*"é".repeat(128)));
    let keys = [MeshKey::from_bytes([5; 32]), MeshKey::from_bytes([6; 32])];
    let (theirs, ours) = tokio::join!(listener.share(&keys[..1]), async {
        let got = joiner.await_share(FRAME_TIMEOUT).await;
        joiner.send_keys(&keys[1..]).await.expect("the listener reads");
        got
    });
    assert!(theirs.expect("it sends them") == keys[1..] && ours.expect("it sends them") == keys[..1]);
}

#[tokio::test]
async fn digits_differ_from_link_to_link() {
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(honest().await.0.digits().0);
    }
    seen.dedup();
    assert!(seen.len() > 1, "{seen:?}");
}

#[tokio::test]
async fn a_wrong_code_is_refused_and_counts_as_a_guess() {
    let (joiner, listener) = run((channel(9), WRONG), (channel(9), CODE)).await;
    assert!(matches!(joiner.err(), Some(PeerError::Refused(Refusal::WrongCode))));
    assert!(matches!(listener.err(), Some(PeerError::Impostor)));
    // The nameplate is part of the password too.
    let (joiner, _) = run((channel(9), "5K-7QM-2XD"), (channel(9), CODE)).await;
    assert!(matches!(joiner.err(), Some(PeerError::Refused(Refusal::WrongCode))));
}

#[tokio::test]
async fn who_relays_between_two_connections_is_found_out() {
    // Everything is passed on unchanged between two TLS connections: their exporters differ.
    let (joiner, listener) = run((channel(9), CODE), (channel(8), CODE)).await;
    assert!(matches!(joiner.err(), Some(PeerError::Refused(Refusal::WrongCode))));
    assert!(matches!(listener.err(), Some(PeerError::Impostor)));
    // The exporter alone isn't what finds a swapped endpoint out.
    for swapped in [Channel { listener: [3; 32], ..channel(9) }, Channel { joiner: [3; 32], ..channel(9) }] {
        let (joiner, listener) = run((swapped, CODE), (channel(9), CODE)).await;
        assert!(joiner.is_err() && matches!(listener.err(), Some(PeerError::Impostor)));
    }
}

#[tokio::test]
async fn a_listener_that_does_not_know_the_code_is_an_impostor() {
    let (one, mut other) = duplex(4_096);
    let fake = async {
        let mut frames = Frames::new(&mut other);
        let hello = frames.receive(kind::HELLO).await.expect("the joiner greets");
        let (_, answer) = start(Side::Listener, &channel(9), &code(WRONG));
        frames.send(kind::ANSWER, &answer).await.expect("the joiner reads");
        let confirmation = frames.receive(kind::CONFIRM).await.expect("the joiner confirms first");
        // Its own confirmation sent back, then.
        frames.send(kind::CONFIRM, &confirmation).await.expect("the joiner reads");
        hello.len()
    };
    let code = code(CODE);
    let (joined, hello_bytes) = tokio::join!(join(one, channel(9), &code), fake);
    assert!(matches!(joined.err(), Some(PeerError::Impostor)));
    assert_eq!(hello_bytes, 1 + SPAKE_BYTES);
}

/// What the joiner sends, as bytes, while an honest exchange goes on.
async fn recorded() -> Vec<u8> {
    let (one, mut middle_one) = duplex(4_096);
    let (mut middle_other, other) = duplex(4_096);
    let code = code(CODE);
    let tap = async {
        let (mut heard, mut buffer) = (Vec::new(), [0; 512]);
        let mut answer = [0; 512];
        // HELLO to the listener, ANSWER back, CONFIRM to the listener, CONFIRM back.
        for _ in 0..2 {
            let count = middle_one.read(&mut buffer).await.expect("the joiner speaks");
            heard.extend_from_slice(&buffer[..count]);
            middle_other.write_all(&buffer[..count]).await.expect("the listener hears");
            let count = middle_other.read(&mut answer).await.expect("the listener speaks");
            middle_one.write_all(&answer[..count]).await.expect("the joiner hears");
        }
        heard
    };
    let (joined, received, heard) = tokio::join!(join(one, channel(9), &code), receive(other, channel(9), &code), tap);
    assert!(joined.is_ok() && received.is_ok(), "the control: it was an honest exchange");
    heard
}

#[tokio::test]
async fn a_replayed_joiner_is_refused() {
    let transcript = recorded().await;
    let (mut one, other) = duplex(4_096);
    one.write_all(&transcript).await.expect("there is room");
    // Even on the same channel: the listener's part of the key exchange is new.
    let code = code(CODE);
    let (received, ()) = tokio::join!(receive(other, channel(9), &code), async {
        let mut rest = Vec::new();
        let _ = one.read_to_end(&mut rest).await;
    });
    assert!(matches!(received.err(), Some(PeerError::Impostor)));
}

/// What the listener makes of these bytes.
async fn listened(bytes: &[u8]) -> PeerError {
    let (mut one, other) = duplex(64 << 10);
    one.write_all(bytes).await.expect("there is room");
    one.shutdown().await.expect("it is memory");
    let code = code(CODE);
    receive(other, channel(9), &code).await.map(drop).expect_err("it is junk")
}

fn frame(kind: u8, content: &[u8]) -> Vec<u8> {
    [&(content.len() as u16 + 1).to_be_bytes()[..], &[kind], content].concat()
}

#[tokio::test]
async fn junk_is_named_and_never_counts_as_a_guess() {
    let (_, spake) = start(Side::Joiner, &channel(9), &code(CODE));
    let hello = |message: &[u8]| frame(kind::HELLO, &[&[LINK_VERSION][..], message].concat());
    let good = hello(&spake);
    let mut no_point = spake.clone();
    // y = 2 is no point of the curve.
    no_point[1..].fill(0);
    no_point[1] = 2;
    let mut other_side = spake.clone();
    other_side[0] = b'B';
    for (name, bytes) in [
        ("nothing", Vec::new()),
        ("half a length", vec![0]),
        ("an empty frame", vec![0, 0]),
        ("a frame over the limit", vec![0xff, 0xff, kind::HELLO]),
        ("one byte over the limit", (FRAME_BYTES_MAX as u16 + 1).to_be_bytes().to_vec()),
        ("a cut frame", good[..20].to_vec()),
        ("another kind", frame(kind::CARD, &[0; 64])),
        ("an unknown kind", frame(99, &[])),
        ("a short key exchange", hello(&spake[..32])),
        ("a long key exchange", hello(&[&spake[..], &[0]].concat())),
        ("no point of the curve", hello(&no_point)),
        ("the other side's part", hello(&other_side)),
        ("version 0", frame(kind::HELLO, &[0])),
        ("a refusal nobody knows", frame(kind::REFUSED, &[77])),
        ("a short confirmation", [&good[..], &frame(kind::CONFIRM, &[0; 31])].concat()),
        ("a long confirmation", [&good[..], &frame(kind::CONFIRM, &[0; 33])].concat()),
        ("nothing after the greeting", good.clone()),
        ("http", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
    ] {
        let error = listened(&bytes).await;
        let named = matches!(error, PeerError::Malformed { .. } | PeerError::Lost { .. });
        assert!(named, "{name}: {error}");
    }
    assert!(matches!(
        listened(&frame(kind::HELLO, &[LINK_VERSION + 1])).await,
        PeerError::Newer { version: 2, ours: 1 }
    ));
    // The control: the same bytes with a whole confirmation that is wrong do count.
    let guess = [&good[..], &frame(kind::CONFIRM, &[0; 32])].concat();
    assert!(matches!(listened(&guess).await, PeerError::Impostor));
}

#[tokio::test]
async fn who_falls_silent_is_left_after_a_frame_s_time() {
    let (mut one, other) = duplex(4_096);
    let (_, spake) = start(Side::Joiner, &channel(9), &code(CODE));
    let hello = frame(kind::HELLO, &[&[LINK_VERSION][..], &spake].concat());
    let code = code(CODE);
    let began = tokio::time::Instant::now();
    let (received, ()) = tokio::join!(receive(other, channel(9), &code), async {
        // Byte after byte: each alone is in time, the frame isn't.
        for byte in hello {
            tokio::time::sleep(FRAME_TIMEOUT / 20).await;
            if one.write_all(&[byte]).await.is_err() {
                break;
            }
        }
    });
    assert!(matches!(received.err(), Some(PeerError::Silent)));
    assert!(began.elapsed() < FRAME_TIMEOUT * 2, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_card_of_another_identity_is_forged() {
    // A card of Bob's that somebody recorded in another exchange, and one with another nickname.
    let (ada, bob) = (identity(), identity());
    let stolen = Arc::new(std::sync::Mutex::new(Vec::new()));
    for attack in ["record", "replay", "rename", "swap", "cut", "reflect"] {
        let (mut joiner, mut listener) = honest().await;
        let own = Card { nickname: "Bob".into(), did: bob.did() };
        let signature = bob.sign(&joiner.signed(Side::Joiner, &own));
        let content = [&bob.did().public_key()[..], &signature, b"Bob"].concat();
        let sent = match attack {
            "record" => {
                stolen.lock().expect("nobody panicked").clone_from(&content);
                content
            }
            "replay" => stolen.lock().expect("nobody panicked").clone(),
            "rename" => [&content[..96], b"Eve"].concat(),
            "swap" => [&ada.did().public_key()[..], &signature, b"Bob"].concat(),
            "cut" => content[..95].to_vec(),
            _ => {
                let reflected =
                    ada.sign(&joiner.signed(Side::Listener, &Card { nickname: "A".into(), did: ada.did() }));
                [&ada.did().public_key()[..], &reflected, b"A"].concat()
            }
        };
        let ((), card) = tokio::join!(
            async {
                joiner.frames.send(kind::CARD, &sent).await.expect("the listener reads");
                let _ = joiner.frames.receive(kind::CARD).await;
            },
            listener.exchange_cards(&ada, "Ada")
        );
        match attack {
            "record" => assert_eq!(card.expect("the control: it is signed here and now").did, bob.did()),
            "cut" => assert!(matches!(card, Err(PeerError::Malformed { .. })), "{attack}"),
            _ => assert!(matches!(card, Err(PeerError::Forged)), "{attack}: {card:?}"),
        }
    }
}

#[tokio::test]
async fn a_copy_of_the_same_drive_is_told_apart_from_an_attack() {
    let (mut joiner, mut listener) = honest().await;
    let ada = identity();
    let (one, other) = tokio::join!(joiner.exchange_cards(&ada, "Ada"), listener.exchange_cards(&ada, "Ada"));
    assert!(matches!(one, Err(PeerError::SameIdentity)), "{one:?}");
    assert!(matches!(other, Err(PeerError::SameIdentity)), "{other:?}");
}

#[tokio::test]
async fn who_is_refused_is_told_why() {
    for refusal in Refusal::ALL.into_iter().filter(|refusal| *refusal != Refusal::SameIdentity) {
        let (mut joiner, mut listener) = honest().await;
        let (told, ()) = tokio::join!(
            async {
                let told = joiner.await_share(FRAME_TIMEOUT).await;
                drop(joiner);
                told
            },
            listener.refuse(refusal)
        );
        assert!(matches!(told.err(), Some(PeerError::Refused(heard)) if heard == refusal));
        assert_eq!(Refusal::from_number(refusal.number()), Some(refusal));
    }
    assert_eq!((Refusal::from_number(0), Refusal::from_number(6)), (None, None));
}

#[test]
fn mesh_keys_on_the_wire_are_whole_and_bounded() {
    for (bytes, expected) in [(0, Some(0)), (32, Some(1)), (32 * MESH_KEYS_MAX, Some(MESH_KEYS_MAX)), (31, None)] {
        assert_eq!(read_keys(&vec![0; bytes]).ok().map(|keys| keys.len()), expected, "{bytes}");
    }
    assert!(read_keys(&[0; 32 * (MESH_KEYS_MAX + 1)]).is_err());
}
