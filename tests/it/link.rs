//! Linking two drives, as two people do it: real programs on two machines, each in its terminal, with what goes over the wire.

use std::fs;
use std::process::Command;

use tilekit::did::Did;
use tilekit::identity::{KeyFile, KeyStore as _, Passphrase};
use tilekit::store::{Access, Store};

use crate::commands::refused;
use crate::drive::{PASSPHRASE, TestBundle};
use crate::every_command::{Looks, entries, ours, prepared, words};
use crate::namespaces::{Layout, Machine, contains};
use crate::screen::Screen;

/// Colours the screen, and names the window.
const STEERING: &str = "Bob\u{1b}[31mred\u{1b}]0;owned\u{7}";

/// The program's command with the passphrase, in a terminal.
pub(crate) fn tiles(bundle: &TestBundle, arguments: &[&str]) -> Command {
    let mut command = bundle.command();
    command.args(arguments).args(["--passphrase-file", bundle.passphrase()]).env("TERM", "xterm-256color");
    command
}

pub(crate) fn start(machine: &Machine, bundle: &TestBundle, arguments: &[&str]) -> Screen {
    Screen::start(&machine.command(&tiles(bundle, arguments)))
}

/// Starts a drive that waits, and gives the code that it shows.
pub(crate) fn waiting(machine: &Machine, bundle: &TestBundle) -> (Screen, String) {
    let mut screen = start(machine, bundle, &["link", "enable"]);
    screen.wait("Waiting until");
    let code = shown_code(&screen);
    (screen, code)
}

/// The code on a screen: the last one, where there were several.
fn shown_code(screen: &Screen) -> String {
    let text = screen.text();
    let (_, after) = text.rsplit_once("    tiles link enable ").expect("it is shown");
    after.split_whitespace().next().expect("it is shown").to_owned()
}

/// The ticket on a screen, over as many rows as it has.
pub(crate) fn shown_ticket(screen: &Screen) -> String {
    let text = screen.text();
    let (_, after) = text.rsplit_once("TILES1:").expect("it is shown");
    format!("TILES1:{}", after.split_once("\n\n").map_or(after, |(ticket, _)| ticket).replace('\n', ""))
}

/// The digits on a screen.
pub(crate) fn digits(screen: &Screen) -> String {
    let text = screen.text();
    let (_, after) = text.rsplit_once("digits  ").expect("they are shown");
    after.lines().next().expect("they are shown").trim().to_owned()
}

pub(crate) fn did(bundle: &TestBundle) -> Did {
    bundle.json(&["account"])["did"].as_str().expect("a text").parse().expect("it is one")
}

/// Calls a drive's person what the program wouldn't let one be called.
fn name_hostile(bundle: &TestBundle) {
    let data = bundle.root.join("data");
    let passphrase = Passphrase::new(PASSPHRASE.into()).expect("it is one");
    let identity = KeyFile::new(&data).unlock(&passphrase).expect("it is right");
    fs::create_dir_all(data.join("db")).expect("target can be written");
    let store = Store::open(&data.join("db/tiles.db"), identity.database_key(), Access::ReadWrite).expect("it is one");
    store.set_setting("nickname", STEERING).expect("it can be set");
    store.close().expect("it can be closed");
}

fn linked_with(bundle: &TestBundle) -> Vec<String> {
    let listed = bundle.json(&["link", "list-peers"]);
    let list = listed.as_array().expect("a list");
    list.iter().map(|drive| drive["did"].as_str().expect("a text").to_owned()).collect()
}

fn link_by_code(layout: Layout) {
    let Some([here, there]) = Machine::pair(layout) else { return };
    let (ada, bob) = (TestBundle::quick("Ada"), TestBundle::quick("Bob"));
    ada.ok(&["account", "set-nickname", "Ada"]);
    bob.ok(&["account"]);
    name_hostile(&bob);
    let (ada_did, bob_did) = (did(&ada), did(&bob));
    let tap = there.tap(&ada.home.with_file_name("packets"));

    let (mut waits, code) = waiting(&here, &ada);
    let mut comes = start(&there, &bob, &["link", "enable", &code.to_lowercase()]);
    waits.wait("Link it? [y/N]");
    comes.wait("this drive waits");
    assert_eq!(digits(&waits), digits(&comes), "{}\n{}", waits.text(), comes.text());
    let asked = waits.text().replace('\n', " ");
    assert!(asked.contains("will receive all sessions and memory of this drive"), "{asked}");
    assert!(waits.text().replace('\n', "").contains(&bob_did.to_string()), "{}", waits.text());
    waits.keys("y\r");
    assert_eq!((waits.end(), comes.end()), (0, 0), "{}\n{}", waits.text(), comes.text());
    assert!(comes.text().contains("Linked with Ada."), "{}", comes.text());
    let raw = String::from_utf8_lossy(&waits.raw).into_owned();
    assert!(raw.contains("Bob␛[31mred") && !raw.contains("Bob\u{1b}") && !raw.contains("\u{1b}]0;owned"), "{raw:?}");
    assert_eq!(linked_with(&ada), [bob_did.to_string()]);
    assert_eq!(linked_with(&bob), [ada_did.to_string()]);

    let packets = there.recorded(&tap);
    assert!(packets.len() > 10, "the link went over the wire: {} packets", packets.len());
    assert!(packets.iter().any(|packet| contains(packet, b"_tiles")), "the drive was found by its announcement");
    for packet in &packets {
        for did in [ada_did, bob_did] {
            let key = did.public_key();
            let hexadecimal: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            let text = did.to_string();
            for shape in [&key[..], &text.as_bytes()[8..], hexadecimal.as_bytes()] {
                assert!(!contains(packet, shape), "the DID is in clear on the wire");
            }
        }
        for name in ["Ada", "Bob", &code, &code.replace('-', "")] {
            assert!(!contains(packet, name.as_bytes()), "{name} is in clear on the wire");
        }
        assert!(is_expected(packet), "{packet:02x?}");
    }
}

/// Whether a packet is one of those that linking sends: on the cable, ARP, or UDP within its network or to the groups of
/// multicast.
pub(crate) fn is_expected(packet: &[u8]) -> bool {
    match packet.get(12..14) {
        Some([0x08, 0x06]) => true,
        Some([0x08, 0x00]) => {
            // The kernel's own word that nobody listens any more.
            const ICMP: u8 = 1;
            const IGMP: u8 = 2;
            const UDP: u8 = 17;
            let (protocol, to) = (packet[23], &packet[30..34]);
            let is_near = matches!(to, [10, 7..=9, 0, _] | [127, ..] | [224, 0, 0, _]);
            matches!(protocol, ICMP | IGMP | UDP) && is_near
        }
        _ => false,
    }
}

#[test]
fn two_drives_on_a_network_are_linked_by_code() {
    link_by_code(Layout::Route);
}

#[test]
fn two_drives_on_a_cable_without_a_route_are_linked_by_code() {
    link_by_code(Layout::NoRoute);
}

#[test]
fn two_drives_whose_way_out_is_elsewhere_are_linked_by_code() {
    link_by_code(Layout::TwoInterfaces);
}

#[test]
fn a_no_is_exit_code_8_at_the_other_drive() {
    let Some([here, there]) = Machine::pair(Layout::NoRoute) else { return };
    let (ada, bob) = (TestBundle::quick("Ada"), TestBundle::quick("Bob"));
    let (mut waits, code) = waiting(&here, &ada);
    let mut comes = start(&there, &bob, &["link", "enable", &code]);
    // Return alone is no.
    waits.wait("Link it? [y/N]");
    waits.keys("\r");
    assert_eq!((waits.end(), comes.end()), (1, 8), "{}\n{}", waits.text(), comes.text());
    assert!(waits.text().contains("nothing was linked: you said no"), "{}", waits.text());
    assert!(comes.text().contains("the other drive refused: its person said no"), "{}", comes.text());
    assert!(linked_with(&ada).is_empty() && linked_with(&bob).is_empty());
}

#[test]
fn three_wrong_codes_show_a_new_one_and_a_ticket_needs_no_announcement() {
    let Some([here, there]) = Machine::pair(Layout::NoRoute) else { return };
    let (ada, bob) = (TestBundle::quick("Ada"), TestBundle::quick("Bob"));
    let (mut waits, first) = waiting(&here, &ada);
    let last = if first.ends_with('0') { "1" } else { "0" };
    let wrong = format!("{}{last}", &first[..first.len() - 1]);
    for _ in 0..3 {
        let output = there.command(&tiles(&bob, &["link", "enable", &wrong])).output().expect("it can be run");
        refused(&output, 8, "the code isn't the one it shows");
    }
    waits.wait_until("a new code", |screen| {
        screen.text().contains("That code is spent.") && screen.text().matches("Waiting until").count() == 2
            || screen.text().matches("Waiting until").count() == 1 && shown_code(screen) != first
    });
    assert_ne!(shown_code(&waits), first);
    let ticket = shown_ticket(&waits);
    let tap = there.tap(&ada.home.with_file_name("packets"));
    let mut comes = start(&there, &bob, &["link", "enable", &ticket]);
    waits.wait("Link it? [y/N]");
    comes.wait("this drive waits");
    assert_eq!(digits(&waits), digits(&comes));
    waits.keys("yes\r");
    assert_eq!((waits.end(), comes.end()), (0, 0), "{}\n{}", waits.text(), comes.text());

    // Who has the ticket asks nobody on the network where the other is.
    let packets = there.recorded(&tap);
    let sent =
        |to: [u8; 4]| packets.iter().filter(|packet| packet.get(26..34) == Some(&[[10, 7, 0, 2], to].concat())).count();
    assert!(sent([10, 7, 0, 1]) > 0 && sent([224, 0, 0, 251]) == 0, "{packets:02x?}");

    let name = linked_with(&bob)[0].clone();
    bob.ok(&["link", "rename", &name, "desk"]);
    assert_eq!(bob.json(&["link", "list-peers"])[0]["name"], "desk");
    refused(&bob.unlocked(&["link", "disable", "desk"]), 2, "--yes");
    bob.ok(&["link", "disable", "desk", "--yes"]);
    assert!(linked_with(&bob).is_empty());
}

#[test]
fn who_is_alone_is_told_so_and_ctrl_c_ends_the_wait() {
    let Some(machine) = Machine::alone() else { return };
    let bundle = TestBundle::quick("Tiles");
    let output = machine.command(&tiles(&bundle, &["link", "enable", "00-000-000"])).output().expect("it can be run");
    refused(&output, 1, "this machine is on no network");
    refused(&bundle.unlocked(&["link", "enable"]), 2, "somebody must be asked");
    refused(&bundle.unlocked(&["link", "enable", "TILES1:ABC"]), 2, "isn't a whole ticket");
    let (mut waits, _) = waiting(&machine, &bundle);
    waits.keys("\u{3}");
    assert_eq!(waits.end(), 130);
}

#[test]
fn no_other_command_sends_a_packet() {
    let Some([machine, _other]) = Machine::pair(Layout::Route) else { return };
    let bundle = prepared();
    let tap = machine.tap(&bundle.home.with_file_name("packets"));
    let given = ours(&bundle).join("given");
    for entry in entries(&bundle) {
        let mut command = bundle.command();
        command.args(words(entry.line, &given));
        if entry.looks == Looks::AtInstalled {
            command.env("XDG_DATA_HOME", given.join("installed"));
        }
        if !entry.line.contains("--passphrase") {
            command.arg("--passphrase-file").arg(given.join("passphrase"));
        }
        let output = machine.command(&command).output().expect("it can be run");
        assert_eq!(
            output.status.code(),
            Some(entry.code),
            "{}: {}",
            entry.line,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let packets = machine.recorded(&tap);
    assert!(packets.iter().all(|packet| packet.get(12..14) == Some(&[0x08, 0x06])), "{packets:02x?}");

    // The control: the same tap sees the command that does use the network.
    let passphrase = given.join("passphrase").display().to_string();
    let mut link = bundle.command();
    link.args(["link", "enable", "--passphrase-file", &passphrase]).env("TERM", "xterm-256color");
    let mut screen = Screen::start(&machine.command(&link));
    screen.wait("Waiting until");
    screen.keys("\u{3}");
    assert_eq!(screen.end(), 130);
    let packets = machine.recorded(&tap);
    assert!(packets.iter().any(|packet| packet.get(23) == Some(&17) || packet.get(23) == Some(&2)), "{packets:02x?}");
    let _ = fs::remove_file(bundle.home.with_file_name("packets"));
}
