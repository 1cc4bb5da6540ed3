//! Syncing as people do it: real programs on two or three machines, and what goes over the wire.

use std::fs;
use std::process::{Output, Stdio};

use serde_json::Value;
use tilekit::did::Did;
use tilekit::identity::{Identity, KeyFile, KeyStore as _, Passphrase};
use tilekit::peer::link::Card;
use tilekit::peer::mesh::MeshKey;
use tilekit::peer::{keep, mesh_keys};
use tilekit::store::{Access, Store};
use tilekit::time::Timestamp;

use crate::commands::refused;
use crate::drive::{PASSPHRASE, TestBundle};
use crate::link::{did, digits, is_expected, start, tiles, waiting};
use crate::namespaces::{Layout, Machine, contains};

/// What a hostile title does to a terminal that believes it.
const STEERING: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}";

/// Opens a drive's keys and store, past the program.
fn open(bundle: &TestBundle) -> (Identity, Store) {
    let data = bundle.root.join("data");
    let passphrase = Passphrase::new(PASSPHRASE.into()).expect("it is one");
    let identity = KeyFile::new(&data).unlock(&passphrase).expect("it is right");
    fs::create_dir_all(data.join("db")).expect("target can be written");
    let store = Store::open(&data.join("db/tiles.db"), identity.database_key(), Access::ReadWrite).expect("it is one");
    (identity, store)
}

/// Links two drives without a network: what `tiles link` leaves on both.
fn link_quietly(one: &TestBundle, other: &TestBundle) {
    let mut keys: Vec<MeshKey> = Vec::new();
    let opened = [open(one), open(other)];
    for (_, store) in &opened {
        tilekit::peer::mesh::merge(&mut keys, &mesh_keys(store).expect("they can be read"));
    }
    if keys.is_empty() {
        keys.push(MeshKey::draw().expect("there is chance"));
    }
    for (me, other) in [(0, 1), (1, 0)] {
        let card = Card { nickname: format!("drive {other}"), did: opened[other].0.did() };
        keep(&opened[me].1, opened[me].0.did(), &card, &keys, Timestamp::from_ms(1_795_688_340_000))
            .expect("it is kept");
    }
    for (_, store) in opened {
        store.close().expect("it closes");
    }
}

/// Runs `tiles sync` on both machines at once.
fn sync(machines: [(&Machine, &TestBundle); 2], more: &[&str]) -> [Output; 2] {
    let running = machines.map(|(machine, bundle)| {
        let wait = if more.contains(&"--wait") { &[][..] } else { &["--wait", "20"] };
        let arguments = [&["sync", "--json"], wait, more].concat();
        let mut command = machine.command(&tiles(bundle, &arguments));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it can be run")
    });
    running.map(|child| child.wait_with_output().expect("it ends"))
}

#[track_caller]
fn synced(outputs: &[Output; 2]) -> [Value; 2] {
    outputs.each_ref().map(|output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("it is JSON")
    })
}

/// All sessions with their messages, in the order of their names.
fn sessions(bundle: &TestBundle) -> Value {
    let mut all: Vec<Value> = Vec::new();
    for session in bundle.json(&["session", "list"]).as_array().expect("a list") {
        let id = session["id"].as_str().expect("a text");
        let text = bundle.ok(&["session", "export", id, "--format", "json"]);
        all.push(serde_json::from_str(&text).expect("it is JSON"));
    }
    all.sort_by_key(ToString::to_string);
    Value::Array(all)
}

fn titles(bundle: &TestBundle) -> Vec<String> {
    let list = bundle.json(&["session", "list"]);
    let mut titles: Vec<String> = list
        .as_array()
        .expect("a list")
        .iter()
        .map(|session| session["title"].as_str().expect("a text").into())
        .collect();
    titles.sort();
    titles
}

fn link_and_sync(layout: Layout) {
    let Some([here, there]) = Machine::pair(layout) else { return };
    let (ada, bob) = (TestBundle::quick("Ada"), TestBundle::quick("Bob"));
    ada.ok(&["account", "set-nickname", "Ada"]);
    bob.ok(&["account", "set-nickname", "Bob"]);
    ada.ok(&["-p", "of the sky"]);
    bob.ok(&["-p", "of the sea"]);

    let (mut waits, code) = waiting(&here, &ada);
    let mut comes = start(&there, &bob, &["link", "enable", &code]);
    waits.wait("[y/N]");
    comes.wait("this drive waits");
    assert_eq!(digits(&waits), digits(&comes));
    waits.keys("y\r");
    assert_eq!((waits.end(), comes.end()), (0, 0), "{}\n{}", waits.text(), comes.text());

    // As people see it: on one drive in a terminal.
    let tap = there.tap(&ada.home.with_file_name("packets"));
    let mut screen = start(&here, &ada, &["sync"]);
    screen.wait("Waiting on UDP port");
    let output = there.command(&tiles(&bob, &["sync"])).output().expect("it can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(screen.end(), 0, "{}", screen.text());
    assert!(screen.text().contains("received 2 messages in 1 session from Bob, sent 2 messages"), "{}", screen.text());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text, "received 2 messages in 1 session from Ada, sent 2 messages\n");
    assert_eq!(sessions(&ada), sessions(&bob));
    assert_eq!(titles(&ada), ["of the sea", "of the sky"]);
    wire_is_quiet(&there.recorded(&tap), &[did(&ada), did(&bob)]);
    for (bundle, other) in [(&ada, "Bob"), (&bob, "Ada")] {
        let listed = &bundle.json(&["link", "list-peers"])[0];
        assert!(listed["nickname"] == other && listed["synced_at"].is_string(), "{listed}");
    }

    // Both go on apart: one edits, the other deletes, and each says something.
    ada.ok(&["session", "rename", "of the sea", "of the deep sea"]);
    ada.ok(&["-p", "said while apart"]);
    bob.ok(&["session", "delete", "of the sky", "--yes"]);
    bob.ok(&["account", "set-nickname", "Robert"]);
    let reports = synced(&sync([(&here, &ada), (&there, &bob)], &[]));
    assert_eq!(reports[1][0]["received"]["messages"], 2, "{reports:?}");
    assert_eq!(sessions(&ada), sessions(&bob));
    assert_eq!(titles(&bob), ["of the deep sea", "said while apart"]);
    assert_eq!(ada.json(&["link", "list-peers"])[0]["nickname"], "Robert");
}

/// Nothing on the wire says who talks, or of what; and only what is expected goes over it.
fn wire_is_quiet(packets: &[Vec<u8>], dids: &[Did]) {
    assert!(packets.len() > 10, "the sync went over the wire: {} packets", packets.len());
    assert!(packets.iter().any(|packet| contains(packet, b"_tiles")), "they were found by their announcements");
    for packet in packets {
        for did in dids {
            let key = did.public_key();
            let hexadecimal: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            let base32 = data_encoding_of(key);
            let text = did.to_string();
            for shape in [&key[..], &text.as_bytes()[8..], hexadecimal.as_bytes(), base32.as_bytes()] {
                assert!(!contains(packet, shape), "the DID is in clear on the wire");
            }
        }
        for word in ["Ada", "Bob", "of the sky", "of the sea", "scripted"] {
            assert!(!contains(packet, word.as_bytes()), "{word} is in clear on the wire");
        }
        assert!(is_expected(packet), "{packet:02x?}");
    }
}

/// The form in which QUIC's library writes a key as a name: base 32, lower case.
fn data_encoding_of(key: &[u8; 32]) -> String {
    let digits = b"0123456789abcdefghijklmnopqrstuv";
    let bits: Vec<u8> = key.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let digit = |chunk: &[u8]| {
        digits[chunk.iter().chain([0; 5].iter()).take(5).fold(0, |sum, bit| sum << 1 | usize::from(*bit))]
    };
    bits.chunks(5).map(|chunk| digit(chunk) as char).collect()
}

#[test]
fn two_drives_on_a_network_are_linked_and_synced() {
    link_and_sync(Layout::Route);
}

#[test]
fn two_drives_on_a_cable_without_a_route_are_linked_and_synced() {
    link_and_sync(Layout::NoRoute);
}

#[test]
fn two_drives_whose_way_out_is_elsewhere_are_linked_and_synced() {
    link_and_sync(Layout::TwoInterfaces);
}

#[test]
fn a_third_drive_gets_everything_through_the_second_and_nothing_once_it_is_unlinked() {
    let Some([here, there]) = Machine::pair(Layout::NoRoute) else { return };
    let [ada, bob, eve] = ["Ada", "Bob", "Eve"].map(TestBundle::quick);
    ada.ok(&["-p", "from Ada"]);
    link_quietly(&ada, &bob);
    link_quietly(&bob, &eve);
    synced(&sync([(&here, &ada), (&there, &bob)], &[]));
    synced(&sync([(&here, &eve), (&there, &bob)], &[]));
    assert_eq!(sessions(&eve), sessions(&ada));
    // She knows Ada now, and meets her without Bob.
    let peers = eve.json(&["link", "list-peers"]);
    assert_eq!(peers.as_array().expect("a list").len(), 2, "{peers}");
    eve.ok(&["-p", "from Eve"]);
    // Ada learns of Eve from Bob first.
    synced(&sync([(&here, &ada), (&there, &bob)], &[]));
    synced(&sync([(&here, &ada), (&there, &eve)], &[]));
    assert_eq!(titles(&ada), ["from Ada", "from Eve"]);

    // Bob unlinks Eve; Ada hears of it from him, and then neither of them lets her in.
    bob.ok(&["link", "disable", &did(&eve).to_string(), "--yes"]);
    synced(&sync([(&here, &ada), (&there, &bob)], &[]));
    eve.ok(&["-p", "after that"]);
    let outputs = sync([(&here, &bob), (&there, &eve)], &["--wait", "6"]);
    refused(&outputs[1], 8, "isn't linked any more");
    assert_eq!(outputs[0].status.code(), Some(1), "{}", String::from_utf8_lossy(&outputs[0].stderr));
    let outputs = sync([(&here, &ada), (&there, &eve)], &["--wait", "6"]);
    refused(&outputs[1], 8, "isn't linked any more");
    assert!(!titles(&ada).contains(&"after that".into()) && !titles(&bob).contains(&"after that".into()));
}

#[test]
fn where_announcements_do_not_get_through_an_address_does() {
    let Some([here, there]) = Machine::pair(Layout::NoRoute) else { return };
    let [ada, bob] = ["Ada", "Bob"].map(TestBundle::quick);
    bob.ok(&["-p", "from Bob"]);
    link_quietly(&ada, &bob);
    let bob_did = did(&bob).to_string();
    // Their mesh keys differ, so neither knows the other's announcements.
    let (_, store) = open(&bob);
    tilekit::peer::keep_mesh_keys(&store, &[MeshKey::draw().expect("there is chance")]).expect("it can be kept");
    store.close().expect("it closes");
    let outputs = sync([(&here, &ada), (&there, &bob)], &["--wait", "3"]);
    refused(&outputs[0], 1, "no linked drive was met");

    let mut screen = start(&there, &bob, &["sync", "--wait", "30"]);
    screen.wait("Waiting on UDP port");
    let text = screen.text();
    let (_, port) = text.split_once("UDP port ").expect("it is said");
    let port: u16 = port.split_whitespace().next().expect("it is said").parse().expect("a number");
    let at = format!("10.7.0.2:{port}");
    let output = here.command(&tiles(&ada, &["sync", &bob_did, "--at", &at])).output().expect("it can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(screen.end(), 0, "{}", screen.text());
    assert_eq!(titles(&ada), ["from Bob"]);
    // They know each other's keys now.
    synced(&sync([(&here, &ada), (&there, &bob)], &[]));
    refused(&ada.unlocked(&["sync", "--at", &at]), 2, "that drive must be named");
    refused(&ada.unlocked(&["sync", "nobody"]), 2, "no linked drive");
}

#[test]
fn names_and_titles_from_elsewhere_do_not_steer_the_terminal() {
    let Some([here, there]) = Machine::pair(Layout::NoRoute) else { return };
    let [ada, bob] = ["Ada", "Bob"].map(TestBundle::quick);
    link_quietly(&ada, &bob);
    // The program refuses such titles and names, and so does what takes operations in: a message may say anything.
    bob.ok(&["-p", &format!("look {STEERING}")]);
    synced(&sync([(&here, &ada), (&there, &bob)], &[]));
    let mut screen = start(&here, &ada, &["session", "list"]);
    assert_eq!(screen.end(), 0);
    let raw = String::from_utf8_lossy(&screen.raw).into_owned();
    assert!(raw.contains("look") && !raw.contains("\u{1b}[2J") && !raw.contains("\u{1b}]0;"), "{raw:?}");
}

#[test]
fn who_watches_has_what_is_new_until_ctrl_c() {
    let Some([here, there]) = Machine::pair(Layout::NoRoute) else { return };
    let [ada, bob] = ["Ada", "Bob"].map(TestBundle::quick);
    link_quietly(&ada, &bob);
    let mut screen = start(&here, &ada, &["sync", "--watch"]);
    screen.wait("Waiting on UDP port");
    for text in ["first", "second"] {
        bob.ok(&["-p", text]);
        let output = there.command(&tiles(&bob, &["sync", "--wait", "20"])).output().expect("it can be run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    screen.wait_until("two reports", |screen| screen.text().matches("received 2 messages in 1 session").count() == 2);
    screen.keys("\u{3}");
    assert_eq!(screen.end(), 0, "{}", screen.text());
    assert_eq!(titles(&ada), ["first", "second"]);
}

#[test]
fn a_watching_drive_hears_at_once_of_what_is_new_at_another_one() {
    let Some([here, there]) = Machine::pair(Layout::NoRoute) else { return };
    let [ada, bob, cid] = ["Ada", "Bob", "Cid"].map(TestBundle::quick);
    link_quietly(&ada, &bob);
    link_quietly(&ada, &cid);
    bob.ok(&["-p", "from Bob"]);
    cid.ok(&["-p", "from Cid"]);
    let to_ada = did(&ada).to_string();
    let mut at_ada = start(&here, &ada, &["sync", "--watch"]);
    at_ada.wait("Waiting on UDP port");
    let mut at_bob = start(&there, &bob, &["sync", "--watch"]);
    at_ada.wait("received 2 messages in 1 session");
    // From now on they would meet by themselves after 30 seconds.
    let met = std::time::Instant::now();
    let command = there.command(&tiles(&cid, &["sync", &to_ada, "--wait", "20"])).output();
    let output = command.expect("it can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    at_bob.wait("received 2 messages in 1 session");
    assert!(met.elapsed().as_secs() < 25, "it took {:?}: the timer, not the hint", met.elapsed());
    for screen in [&mut at_ada, &mut at_bob] {
        screen.keys("\u{3}");
        assert_eq!(screen.end(), 0, "{}", screen.text());
    }
    assert_eq!(titles(&bob), ["from Bob", "from Cid"]);
}

#[test]
fn who_has_no_linked_drive_is_told_what_to_do() {
    let bundle = TestBundle::quick("Tiles");
    refused(&bundle.unlocked(&["sync"]), 1, "no drive is linked");
}

#[test]
fn a_model_goes_from_one_drive_to_the_other_and_a_cut_costs_only_what_was_under_way() {
    let Some([here, there]) = Machine::pair(Layout::NoRoute) else { return };
    let (ada, bob) = (TestBundle::with_smollm2("Ada"), TestBundle::quick("Bob"));
    link_quietly(&ada, &bob);
    let give = |more: &[&str]| {
        let mut command = here.command(&tiles(&ada, &[&["model", "send", "smollm2"], more].concat()));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it can be run")
    };
    let take = ["model", "receive", "--yes", "--wait", "30"];

    // What is given is listed, and goes on being given.
    let giving = give(&["--wait", "60"]);
    let listed = there.command(&tiles(&bob, &["model", "list", "--peers", "--json"])).output().expect("it can be run");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let listed: Value = serde_json::from_slice(&listed.stdout).expect("it is JSON");
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!((&listed[0]["name"], &listed[0]["is_here"]), (&"smollm2".into(), &false.into()), "{listed}");
    assert!(listed[0]["size_bytes"].as_u64().is_some_and(|bytes| bytes > 50_000_000), "{listed}");

    // It is killed while the weights come.
    let mut command = there.command(&tiles(&bob, &take));
    let mut taking = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it can be run");
    let partial = bob.root.join("models/pull+smollm2.partial");
    let came = |folder: &std::path::Path| -> u64 {
        let files = fs::read_dir(folder).into_iter().flatten().flatten();
        files.map(|file| file.metadata().map_or(0, |metadata| metadata.len())).sum()
    };
    let data = partial.join("blobs/data");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while came(&data) < 8 << 20 && taking.try_wait().expect("it can be asked").is_none() {
        assert!(std::time::Instant::now() < end, "nothing came");
        std::thread::yield_now();
    }
    let was_cut = taking.kill().is_ok();
    taking.wait().expect("it ends");
    assert!(was_cut && bob.json(&["model", "list"]).as_array().expect("a list").iter().all(|m| m["name"] != "smollm2"));

    let output = there.command(&tiles(&bob, &take)).output().expect("it can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let given = giving.wait_with_output().expect("it ends");
    assert!(given.status.success(), "{}", String::from_utf8_lossy(&given.stderr));
    assert!(!partial.exists() && !ada.root.join("models/give+smollm2.partial").exists());
    bob.ok(&["model", "verify", "smollm2"]);
    let files = |bundle: &TestBundle| bundle.json(&["model", "show", "smollm2"])["files"].clone();
    assert_eq!(files(&ada), files(&bob));
    let none =
        there.command(&tiles(&bob, &["model", "list", "--peers", "--wait", "1"])).output().expect("it can be run");
    assert!(none.status.success() && none.stdout.is_empty(), "{}", String::from_utf8_lossy(&none.stderr));
    assert!(String::from_utf8_lossy(&none.stderr).contains("No linked drive gives a model now"));

    // Who has it already, and who says no.
    let giving = give(&["drive 1", "--wait", "30"]);
    refused(
        &there.command(&tiles(&bob, &take)).output().expect("it can be run"),
        1,
        "there is a model `smollm2` already",
    );
    refused(&giving.wait_with_output().expect("it ends"), 8, "the model wasn't taken");
    refused(
        &there.command(&tiles(&bob, &["model", "receive", "--wait", "2"])).output().expect("it can be run"),
        1,
        "no linked drive was there",
    );
}

/// A file of sessions that is some megabytes long.
fn many_sessions() -> String {
    let at = 1_795_688_340_000_u64;
    let message = |n: usize| {
        let text: String =
            (0..400).map(|word| format!("{:x} ", (n + 1) * (word + 7) * 2_654_435_761 % 1_000_003)).collect();
        serde_json::json!({ "id": format!("{n:032x}"), "role": "user", "content": text, "created_at_ms": at + n as u64 })
    };
    let session = |n: usize| {
        let messages: Vec<Value> = (0..100).map(|at| message(n * 100 + at)).collect();
        let (id, title) = (format!("ffff{n:028x}"), format!("session {n}"));
        serde_json::json!({
            "id": id, "title": title, "model": "scripted", "created_at_ms": at, "updated_at_ms": at, "messages": messages,
        })
    };
    let sessions: Vec<Value> = (0..60).map(session).collect();
    serde_json::json!({ "tiles_sessions": 1, "sessions": sessions }).to_string()
}

#[test]
fn a_kill_in_the_middle_loses_nothing_and_the_next_sync_goes_on() {
    let Some([here, there]) = Machine::pair(Layout::NoRoute) else { return };
    let [ada, bob] = ["Ada", "Bob"].map(TestBundle::quick);
    let file = ada.home.with_file_name("many.json");
    fs::write(&file, many_sessions()).expect("target can be written");
    ada.ok(&["session", "import", &file.display().to_string()]);
    bob.ok(&["-p", "of his own"]);
    link_quietly(&ada, &bob);
    let mut giving = here
        .command(&tiles(&ada, &["sync", "--watch"]))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it can be run");
    let size = |name: &str| fs::metadata(bob.root.join(name)).map_or(0, |metadata| metadata.len());
    let before = size("data/db/tiles.db");
    let in_first_chunk = || size("data/db/tiles.db-wal") > 1 << 16;
    // What is in the database itself was in the log before, whole.
    let in_later_chunk = || size("data/db/tiles.db") > before + (2 << 20);
    for is_time in [&in_first_chunk as &dyn Fn() -> bool, &in_later_chunk] {
        let mut command = there.command(&tiles(&bob, &["sync", "--wait", "20"]));
        let mut taking = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it can be run");
        while !is_time() && taking.try_wait().expect("it can be asked").is_none() {
            std::thread::yield_now();
        }
        let _ = taking.kill();
        taking.wait().expect("it ends");
        assert!(titles(&bob).contains(&"of his own".into()));
    }
    let output = there.command(&tiles(&bob, &["sync", "--json", "--wait", "20"])).output().expect("it can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert!(report[0]["received"]["messages"].as_u64().expect("a number") < 6_000, "it went on: {report}");
    giving.kill().expect("it runs");
    giving.wait().expect("it ends");
    assert_eq!(titles(&bob).len(), 61);
    assert_eq!(titles(&ada), titles(&bob));
    let _ = fs::remove_file(file);
}
