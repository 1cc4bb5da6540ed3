//! The gate: strangers, unknown protocols, and who is unlinked while connected; over real sockets on the loopback.

use std::time::Instant;

use super::*;
use crate::time::Timestamp;

const OTHER_ALPN: &[u8] = b"tiles/test/1";

fn identity() -> Identity {
    Identity::generate(Timestamp::from_ms(0)).expect("there is randomness")
}

async fn endpoint(identity: &Identity, gate: &Gate) -> Endpoint {
    let network = Network { relay: None, loopback_only: true };
    let bound = Endpoint::of(identity, &[LINK_ALPN, OTHER_ALPN], network, gate.clone()).await;
    bound.unwrap_or_else(|error| panic!("{error}"))
}

/// Takes connections, and keeps those that pass the gate until their end.
fn serve(endpoint: &Endpoint) -> tokio::task::JoinHandle<()> {
    let iroh = endpoint.iroh.clone();
    tokio::spawn(async move {
        while let Some(incoming) = iroh.accept().await {
            tokio::spawn(async move {
                if let Ok(connection) = incoming.await {
                    connection.closed().await;
                }
            });
        }
    })
}

/// How the other side ends a connection: the code it gives, or none within some seconds.
async fn ended_with(connection: &Connection) -> Option<u64> {
    match timeout(Duration::from_secs(5), connection.closed()).await {
        Ok(ConnectionError::ApplicationClosed(close)) => Some(close.error_code.into_inner()),
        _ => None,
    }
}

#[tokio::test]
async fn a_stranger_gets_no_further_than_linking_and_who_is_unlinked_is_cut_off() {
    let (ada, bob, eve) = (identity(), identity(), identity());
    let gate = Gate::of([bob.did()]);
    let server = endpoint(&ada, &gate).await;
    let serving = serve(&server);
    let open = Gate::of([ada.did()]);
    let (bob_end, eve_end) = (endpoint(&bob, &open).await, endpoint(&eve, &open).await);

    let linked = bob_end.connect(server.address(), OTHER_ALPN).await.expect("the control: he is linked");
    assert_eq!(linked.remote_id().as_bytes(), ada.did().public_key(), "the DID is the endpoint's id");
    let stranger = eve_end.connect(server.address(), OTHER_ALPN).await;
    // The refusal may come with the handshake or right after it.
    if let Ok(connection) = &stranger {
        assert_eq!(ended_with(connection).await, Some(FORBIDDEN.into()));
    }
    let linking = eve_end.connect(server.address(), LINK_ALPN).await.expect("linking is open to strangers");
    assert!(linking.close_reason().is_none());
    assert!(eve_end.connect(server.address(), b"tiles/unknown/1").await.is_err(), "nobody speaks it");
    assert!(bob_end.connect(server.address(), b"tiles/unknown/1").await.is_err(), "nobody speaks it");
    assert!(linked.close_reason().is_none(), "he is still there");

    let began = Instant::now();
    gate.close_for(&bob.did());
    assert_eq!(ended_with(&linked).await, Some(FORBIDDEN.into()));
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    if let Ok(again) = bob_end.connect(server.address(), OTHER_ALPN).await {
        assert_eq!(ended_with(&again).await, Some(FORBIDDEN.into()));
    }
    gate.open_for(&bob.did());
    let again = bob_end.connect(server.address(), OTHER_ALPN).await.expect("he is linked again");
    assert!(again.close_reason().is_none() && gate.is_open_for(&bob.did()));
    serving.abort();
}

#[tokio::test]
async fn nobody_connects_to_who_is_not_linked() {
    let (ada, bob) = (identity(), identity());
    let server = endpoint(&ada, &Gate::of([bob.did()])).await;
    let serving = serve(&server);
    let shut = endpoint(&bob, &Gate::default()).await;
    assert!(shut.connect(server.address(), OTHER_ALPN).await.is_err());
    shut.gate().open_for(&ada.did());
    assert!(shut.connect(server.address(), OTHER_ALPN).await.is_ok(), "the control");
    serving.abort();
}

#[tokio::test]
async fn a_dead_relay_holds_nothing_up() {
    // Nobody listens on the discard port of the loopback.
    let network = Network { relay: Some("https://127.0.0.1:9/".parse().expect("it is one")), loopback_only: true };
    let (ada, bob) = (identity(), identity());
    let began = Instant::now();
    let gates = [Gate::of([bob.did()]), Gate::of([ada.did()])];
    let bound = Endpoint::of(&ada, &[OTHER_ALPN], network.clone(), gates[0].clone()).await;
    let server = bound.unwrap_or_else(|error| panic!("{error}"));
    assert!(server.address().relay_urls().next().is_some(), "a ticket would name it");
    let serving = serve(&server);
    let bound = Endpoint::of(&bob, &[OTHER_ALPN], network, gates[1].clone()).await;
    let client = bound.unwrap_or_else(|error| panic!("{error}"));
    assert!(client.connect(server.address(), OTHER_ALPN).await.is_ok(), "there is the direct way");
    serving.abort();
    client.close().await;
    server.close().await;
    assert!(began.elapsed() < CONNECT_TIMEOUT, "{:?}", began.elapsed());
}
