//! What a linked drive that is hostile, or doesn't keep to the protocol, can't do.

use super::*;

/// What a hostile linked drive does after both have said hello, against an honest one; gives how that ends for it.
fn against<F: Future<Output = ()> + Send + 'static>(
    honest: &Drive,
    hostile: Did,
    attack: impl FnOnce(tokio::io::ReadHalf<DuplexStream>, tokio::io::WriteHalf<DuplexStream>) -> F + Send + 'static,
) -> Ended {
    serving(&[honest], move |mut sides| {
        Box::pin(async move {
            let (near, far) = duplex(WIRE_BYTES);
            let side = sides.pop().expect("one was given");
            let (mut reader, mut writer) = tokio::io::split(far);
            let attacking = async move {
                frame::write(&mut writer, Frame::Hello { version: SYNC_VERSION, mesh_keys: vec![] })
                    .await
                    .expect("hello");
                let _ = frame::read(&mut reader).await;
                attack(reader, writer).await;
            };
            tokio::join!(run(side, hostile, near), attacking).0
        })
    })
}

/// Goes through the beginning of a round honestly, with these heads.
async fn begin_round(
    reader: &mut tokio::io::ReadHalf<DuplexStream>,
    writer: &mut tokio::io::WriteHalf<DuplexStream>,
    vector: Vector,
) {
    for frame in [Frame::Vector(vector), Frame::Wants(Wants::default()), Frame::Offer { ops: 1 }] {
        if frame::write(writer, frame).await.is_err() || frame::read(reader).await.is_err() {
            return;
        }
    }
}

/// A run of one message by `key`, `at` a time.
fn run_by(identity: &Identity, at: Timestamp) -> Run {
    let log = LogId { device: identity.did(), epoch: [1; 16] };
    let ops = [
        Body::Session { id: SessionId([9; 16]), model: "small".into(), created_at: NOW },
        Body::Title { session: SessionId([9; 16]), title: Some("from elsewhere".into()), at: NOW },
    ];
    let op = |body: &Body| {
        let (salt, bytes) = ([2; 16], body.to_bytes());
        let hlc = Hlc::next(at, None).expect("it is early");
        RunOp { head: OpHead { hlc, kind: body.kind(), digest: body_digest(&salt, &bytes) }, body: Some((salt, bytes)) }
    };
    let mut run =
        Run { log, first: 0, before: chain_start(&log), ops: ops.iter().map(op).collect(), signature: [0; 64] };
    run.signature = identity.sign(&signed_text(&log, run.next(), &run.chain()));
    run
}

/// What a linked drive sends as a chunk, and how that ends.
fn chunk_from(hostile: &Drive, honest: &Drive, chunk: Vec<u8>) -> Ended {
    against(honest, hostile.did(), move |mut reader, mut writer| async move {
        begin_round(&mut reader, &mut writer, Vector::default()).await;
        for frame in [Frame::Chunk(chunk), Frame::Done, Frame::Outcome { again: false }] {
            let _ = frame::write(&mut writer, frame).await;
        }
        let _ = writer.shutdown().await;
        while frame::read(&mut reader).await.is_ok() {}
    })
}

#[test]
fn no_forgery_and_no_stranger_gets_through_a_linked_drive() {
    let stranger = Identity::generate(NOW).expect("there is chance");
    const YEAR_MS: i64 = 365 * 86_400_000;
    type Forge<'a> = dyn Fn(&Drive, &Drive) -> Run + 'a;
    let of_the_hostile: &Forge<'_> = &|hostile, _| run_by(&hostile.identity, NOW);
    let cases: [(&str, &Forge<'_>, Option<&str>); 9] = [
        ("the control", of_the_hostile, None),
        (
            "ten years ago: a clock may be wrong",
            &|hostile, _| run_by(&hostile.identity, Timestamp::from_ms(NOW.as_ms() - 10 * YEAR_MS)),
            None,
        ),
        (
            "in ten years",
            &|hostile, _| run_by(&hostile.identity, Timestamp::from_ms(NOW.as_ms() + 10 * YEAR_MS)),
            Some("ahead of this device's clock"),
        ),
        ("a stranger's", &|_, _| run_by(&stranger, NOW), Some("isn't linked")),
        (
            "in the honest one's name",
            &|hostile, honest| Run {
                log: LogId { device: honest.did(), epoch: [1; 16] },
                ..run_by(&hostile.identity, NOW)
            },
            Some("signed"),
        ),
        (
            "a flipped signature",
            &|hostile, _| {
                let mut run = run_by(&hostile.identity, NOW);
                run.signature[7] ^= 1;
                run
            },
            Some("signed"),
        ),
        (
            "a gap",
            &|hostile, _| {
                let mut run = run_by(&hostile.identity, NOW);
                run.first = 5;
                run.signature = hostile.identity.sign(&signed_text(&run.log, run.next(), &run.chain()));
                run
            },
            Some("what comes before them isn't here"),
        ),
        (
            "another beginning",
            &|hostile, _| {
                let mut run = run_by(&hostile.identity, NOW);
                run.before = Sha256Digest([1; 32]);
                run
            },
            Some("signed"),
        ),
        ("nothing", &|hostile, _| Run { ops: vec![], ..run_by(&hostile.identity, NOW) }, Some("no operations")),
    ];
    for (what, forge, refused) in cases {
        let [honest, hostile] = linked();
        honest.say("Own", &["kept"]);
        let before = honest.state();
        let run = forge(&hostile, &honest);
        let chunk = chunk::compress(&run.to_bytes()).expect("it can be");
        let (report, outcome) = chunk_from(&hostile, &honest, chunk);
        outcome.unwrap_or_else(|error| panic!("{what}: {error}"));
        match refused {
            None => assert_eq!(report.received.ops, 2, "{what}: {report:?}"),
            Some(why) => {
                assert_eq!(report.received.ops, 0, "{what}");
                let told: Vec<_> = report.refused.keys().collect();
                assert!(told.len() == 1 && told[0].contains(why), "{what}: {told:?}");
            }
        }
        assert_eq!(honest.state(), before, "{what}: no session without messages");
    }
}

#[test]
fn who_was_unlinked_is_refused_through_others_and_cut_off_itself() {
    let [ada, bob] = linked();
    let eve = Drive::new();
    for drive in [&ada, &bob] {
        drive.link(&eve);
        eve.link(drive);
    }
    eve.say("Before", &["counts"]);
    sync(&eve, &bob);
    ada.store.unlink_peer(eve.did(), NOW).expect("it is linked");
    eve.say("After", &["doesn't"]);
    // Bob doesn't know yet, and takes it.
    sync(&eve, &bob);
    let [at_ada, _] = sync(&ada, &bob);
    assert!(ada.state().iter().all(|session| session.title.as_deref() != Some("After")), "{at_ada:?}");
    assert!(at_ada.refused.contains_key(&Refusal::Unlinked.to_string()), "{at_ada:?}");
    // Now he knows; what she says isn't sent in vain again.
    let [again, _] = sync(&ada, &bob);
    assert!(again.refused.is_empty() && again.received.ops == 0, "{again:?}");

    // In the middle of an exchange somebody else's word arrives that this peer is unlinked: it ends there.
    let [bob_after, _] = sync_cut(&bob, &eve, None, ROUND_BYTES);
    assert!(bob_after.1.is_ok(), "the gate stands before the exchange: {:?}", bob_after.1);
    let (side, jobs) = bob.side();
    assert!(!side.gate.is_open_for(&eve.did()), "and it is shut for her");
    drop((side, jobs));
}

#[test]
fn a_peer_that_is_unlinked_by_what_it_brings_is_cut_off() {
    let [ada, bob] = linked();
    let carol = Drive::new();
    for (one, other) in [(&ada, &carol), (&carol, &ada)] {
        one.link(other);
    }
    ada.store.unlink_peer(bob.did(), Timestamp::from_ms(NOW.as_ms() + 1)).expect("it is linked");
    sync(&ada, &carol);
    // Carol had linked Bob herself, earlier; he comes to her before she has synced with Ada again.
    let log = carol.store.vector().expect("it can be read");
    assert!(log.0.len() >= 2);
    let linked = LinkedDrives::read(&carol.store, carol.did()).expect("it can be read");
    assert!(linked.of(&bob.did()).is_none());
    // He brings Ada's log to somebody who links both and knows of nothing: it ends when he is read to be unlinked.
    let dave = Drive::new();
    for other in [&ada, &bob] {
        dave.link(other);
    }
    let messenger =
        Drive { identity: crate::identity::tests::same(&bob.identity), store: carol.store, folder: carol.folder };
    let [(report, outcome), _] = sync_cut(&dave, &messenger, None, ROUND_BYTES);
    assert!(matches!(outcome, Err(SyncError::NotLinked)), "{outcome:?} {report:?}");
}

#[test]
fn what_does_not_keep_to_the_protocol_ends_the_exchange_and_changes_nothing() {
    type Say = fn() -> Vec<Frame>;
    let bomb = || chunk::compress(&vec![0; 32 << 20]).expect("it can be");
    assert!(bomb().len() < 64 << 10);
    let cases: [(&str, bool, Say); 9] = [
        ("hello again", false, || vec![Frame::Hello { version: SYNC_VERSION, mesh_keys: vec![] }]),
        ("a chunk before its time", false, || vec![Frame::Chunk(vec![1])]),
        ("an outcome before the end", true, || vec![Frame::Outcome { again: true }]),
        ("two ends", true, || vec![Frame::Done, Frame::Done]),
        ("a chunk after the end", true, || vec![Frame::Done, Frame::Chunk(vec![1])]),
        ("no chunk", true, || vec![Frame::Chunk(vec![1, 2, 3])]),
        ("a bomb", true, || vec![Frame::Chunk(chunk::compress(&vec![0; 32 << 20]).expect("it can be"))]),
        ("an empty chunk", true, || vec![Frame::Chunk(chunk::compress(&[]).expect("it can be"))]),
        ("junk in a chunk", true, || vec![Frame::Chunk(chunk::compress(&[7; 500]).expect("it can be"))]),
    ];
    for (what, in_round, say) in cases {
        let [honest, hostile] = linked();
        honest.say("Own", &["kept"]);
        let before = honest.state();
        let (_, outcome) = against(&honest, hostile.did(), move |mut reader, mut writer| async move {
            if in_round {
                begin_round(&mut reader, &mut writer, Vector::default()).await;
            }
            for frame in say() {
                let _ = frame::write(&mut writer, frame).await;
            }
            while frame::read(&mut reader).await.is_ok() {}
        });
        assert!(matches!(outcome, Err(SyncError::Malformed { .. } | SyncError::Run(_))), "{what}: {outcome:?}");
        assert_eq!(honest.state(), before, "{what}");
    }
}

#[test]
fn who_always_says_there_is_more_and_brings_nothing_is_left() {
    let [honest, hostile] = linked();
    let rounds = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&rounds);
    let (report, outcome) = against(&honest, hostile.did(), move |mut reader, mut writer| async move {
        loop {
            // It has everything, it says, so that nothing is sent to it either.
            let Ok((Frame::Vector(theirs), _)) = frame::read(&mut reader).await else { break };
            *counted.lock().expect("nobody panics") += 1;
            for frame in [Frame::Vector(theirs), Frame::Wants(Wants::default()), Frame::Offer { ops: 1 << 60 }] {
                let _ = frame::write(&mut writer, frame).await;
            }
            for frame in [Frame::Done, Frame::Outcome { again: true }] {
                let _ = frame::write(&mut writer, frame).await;
            }
            while !matches!(frame::read(&mut reader).await, Ok((Frame::Outcome { .. }, _)) | Err(_)) {}
        }
        let _ = writer.shutdown().await;
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((report.rounds, *rounds.lock().expect("nobody panics")), (1, 1));
}

#[test]
fn a_lie_about_my_own_log_makes_no_new_epoch() {
    let [honest, hostile] = linked();
    honest.say("Own", &["kept"]);
    honest.store.seal_log(&honest.identity).expect("it can be signed");
    let before = honest.store.vector().expect("it can be read");
    let log = *before.0.keys().next().expect("it has one");
    let lie = Vector([(log, Head { next: 1, chain: Sha256Digest([5; 32]) })].into());
    let asked = Arc::new(Mutex::new(None));
    let heard = Arc::clone(&asked);
    let (report, outcome) = against(&honest, hostile.did(), move |mut reader, mut writer| async move {
        let _ = frame::read(&mut reader).await;
        let _ = frame::write(&mut writer, Frame::Vector(lie)).await;
        if let Ok((Frame::Wants(wants), _)) = frame::read(&mut reader).await {
            *heard.lock().expect("nobody panics") = Some(wants);
        }
        for frame in
            [Frame::Wants(Wants::default()), Frame::Offer { ops: 0 }, Frame::Done, Frame::Outcome { again: false }]
        {
            let _ = frame::write(&mut writer, frame).await;
        }
        let _ = writer.shutdown().await;
        while frame::read(&mut reader).await.is_ok() {}
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    assert!(!report.has_new_epoch);
    let wants = asked.lock().expect("nobody panics").take().expect("it was heard");
    assert_eq!(wants.from_start, [log], "it asks for a proof");
    assert_eq!(honest.store.vector().expect("it can be read"), before);
}

#[test]
fn another_version_is_told_as_that() {
    let [honest, _] = linked();
    let peer = Drive::new().did();
    let (_, outcome) = serving(&[&honest], move |mut sides| {
        Box::pin(async move {
            let (near, mut far) = duplex(WIRE_BYTES);
            let side = sides.pop().expect("one was given");
            let newer = async {
                let _ = frame::write(&mut far, Frame::Hello { version: 9, mesh_keys: vec![] }).await;
                let _ = frame::read(&mut far).await;
            };
            tokio::join!(run(side, peer, near), newer).0
        })
    });
    assert!(matches!(outcome, Err(SyncError::Newer { version: 9, .. })), "{outcome:?}");
}
