//! The thread: order, cancelling, slow readers, and what goes wrong in it.

use super::super::test_model::{self, CHATML, saying};
use super::super::tests::{options, request};
use super::super::{EngineOptions, FinishReason, Request};
use super::*;
use crate::message::Role;
use crate::test_folder::TestFolder;

/// A worker over a model that says `text`, or never ends where the text repeats itself.
fn worker(table: &[(u32, u32)]) -> (TestFolder, Worker) {
    let (folder, verified) = test_model::folder(CHATML, table);
    let options: EngineOptions = options(512);
    (folder, Worker::spawn(move |progress| Engine::load(&verified, &options, progress)))
}

fn endless() -> Vec<(u32, u32)> {
    vec![(10, 97), (97, 98), (98, 97)]
}

fn asking() -> Request {
    request(&[(Role::User, "?")])
}

fn completion(reply: Reply) -> Completion {
    match reply.last() {
        Some(Event::Done(completion)) => completion,
        other => panic!("{other:?} instead of an answer"),
    }
}

#[test]
fn replies_come_in_pieces_and_in_order() {
    let (_folder, worker) = worker(&saying("abc"));
    let (first, second) = (worker.generate(asking()), worker.generate(asking()));
    assert_eq!(completion(second).text, "abc");
    let events: Vec<Event> = first.collect();
    let pieces: Vec<&str> = events
        .iter()
        .filter_map(|event| match event {
            Event::Piece(Piece::Text(text)) => Some(text.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(pieces, ["a", "b", "c"]);
    assert!(matches!(events.last(), Some(Event::Done(completion)) if completion.finish_reason == FinishReason::Stop));
    let status = worker.load_progress();
    assert_eq!((status.state, status.bytes_read), (LoadState::Ready, status.bytes_total));
    assert!(status.bytes_total > 0);
    assert_eq!(worker.count_tokens("four").expect("it counts"), 4);
    assert_eq!(worker.fit(asking()).expect("it fits").is_in, [true]);
}

#[test]
fn a_cancelled_reply_gives_what_there_is() {
    let (_folder, worker) = worker(&endless());
    let mut reply = worker.generate(asking());
    assert!(matches!(reply.next(), Some(Event::Piece(_))));
    let canceller = reply.canceller();
    std::thread::spawn(move || canceller.cancel()).join().expect("it cancels");
    let completion = completion(reply);
    assert_eq!(completion.finish_reason, FinishReason::Cancelled);
    assert!(completion.text.starts_with("ab") || completion.text == "a", "{}", completion.text);
}

#[test]
fn a_dropped_reply_or_a_slow_reader_holds_nobody_up() {
    let (_folder, worker) = worker(&endless());
    drop(worker.generate(asking()));
    // Nobody reads this one: the thread waits for room, until the reply is dropped.
    let mut unread = worker.generate(asking());
    assert!(matches!(unread.next(), Some(Event::Piece(_))));
    let next = worker.generate(asking());
    next.cancel();
    drop(unread);
    assert_eq!(completion(next).finish_reason, FinishReason::Cancelled);
    // Nor this one: dropping the worker ends it, and what there is can still be read.
    let mut left = worker.generate(asking());
    assert!(matches!(left.next(), Some(Event::Piece(_))));
    drop(worker);
    assert_eq!(completion(left).finish_reason, FinishReason::Cancelled);
}

#[test]
fn waiting_for_an_event_has_an_end() {
    let (open, opened) = mpsc::channel::<()>();
    let (_folder, verified) = test_model::folder(CHATML, &saying("a"));
    let worker = Worker::spawn(move |progress| {
        let _ = opened.recv();
        Engine::load(&verified, &options(512), progress)
    });
    let mut reply = worker.generate(asking());
    assert!(matches!(reply.next_within(Duration::from_millis(1)), Next::Waiting));
    assert_eq!(worker.load_progress().state, LoadState::Loading);
    drop(open);
    let long = Duration::from_secs(600);
    assert!(matches!(reply.next_within(long), Next::Event(Event::Piece(_))));
    assert!(matches!(reply.next_within(long), Next::Event(Event::Done(_))));
    assert!(matches!(reply.next_within(long), Next::End));
}

#[test]
fn a_failed_load_is_told_to_each_request() {
    let folder = TestFolder::new();
    let verified = crate::verified::VerifiedFolder::unlisted(folder.path());
    let worker = Worker::spawn(move |progress| Engine::load(&verified, &options(512), progress));
    for _ in 0..2 {
        let events: Vec<Event> = worker.generate(asking()).collect();
        assert!(matches!(events.as_slice(), [Event::Failed(EngineError::Load(_))]), "{events:?}");
    }
    assert!(matches!(worker.fit(asking()), Err(EngineError::Load(_))));
    assert_eq!(worker.load_progress().state, LoadState::Failed);
}

#[test]
fn a_panic_in_the_thread_is_told() {
    let worker = Worker::spawn(|_| panic!("a test's own panic"));
    for _ in 0..2 {
        let events: Vec<Event> = worker.generate(asking()).collect();
        assert!(matches!(events.as_slice(), [Event::Failed(EngineError::Stopped)]), "{events:?}");
    }
    assert!(matches!(worker.count_tokens("x"), Err(EngineError::Stopped)));
    assert_eq!(worker.load_progress().state, LoadState::Failed);
}

#[test]
fn dropping_the_worker_ends_loading() {
    let (begun, has_begun) = mpsc::channel();
    let worker = Worker::spawn(move |progress| {
        let some = LoadProgress { bytes_read: 1, bytes_total: 2 };
        let _ = begun.send(());
        while progress(some).is_continue() {
            std::thread::yield_now();
        }
        Err(EngineError::Stopped)
    });
    has_begun.recv().expect("it begins");
    let reply = worker.generate(asking());
    drop(worker);
    assert!(matches!(reply.last(), Some(Event::Failed(EngineError::Stopped))));
}
