//! What a person sees and types: the first run, the conversation at the prompt, Ctrl-C, and the way out.

use std::process::Command;

use crate::drive::{ANSWER, PASSPHRASE, TestBundle};
use crate::screen::Screen;

/// A passphrase that no list has.
const CHOSEN: &str = "otter plum lantern gravel";
/// A wrong one, to be looked for on the screen.
const WRONG: &str = "sesame-opens-nothing";

fn tiles(bundle: &TestBundle, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = bundle.command();
    command.args(arguments).env("TERM", "xterm-256color").envs(environment.iter().copied());
    command
}

/// Starts a bundle with an identity and unlocks it.
#[track_caller]
fn unlocked(bundle: &TestBundle, arguments: &[&str], environment: &[(&str, &str)]) -> Screen {
    let mut screen = Screen::start(&tiles(bundle, arguments, environment));
    screen.wait("Passphrase: ");
    screen.keys(&format!("{PASSPHRASE}\r"));
    screen
}

#[track_caller]
fn check_holds(shown: &str, parts: &[&str]) {
    for part in parts {
        assert!(shown.contains(part), "no {part:?} in:\n{shown}");
    }
}

/// Imports a model that never stops.
fn import_endless(bundle: &TestBundle) {
    let folder = bundle.home.with_file_name("endless");
    crate::scripted::write(&folder, &["One", " more", " word", " and", "\nagain "], true);
    bundle.ok(&["model", "import", &folder.display().to_string(), "--name", "endless"]);
}

#[test]
fn the_first_run_makes_an_identity_and_a_conversation() {
    let bundle = TestBundle::fresh();
    let mut screen = Screen::start(&tiles(&bundle, &[], &[]));
    screen.wait("What shall I call you?");
    screen.keys("Ada\r");
    screen.wait("New passphrase: ");
    check_holds(&screen.text(), &["This drive has no identity yet.", "can't be recovered without the 24 words"]);
    screen.keys(&format!("{CHOSEN}\r"));
    screen.wait("The same again: ");
    screen.keys("something else\r");
    screen.wait("These were not the same.");
    screen.wait_until("second question", |screen| screen.text().ends_with("New passphrase:"));
    screen.keys(&format!("{CHOSEN}\r"));
    screen.wait_until("question again", |screen| screen.text().ends_with("The same again:"));
    screen.keys(&format!("{CHOSEN}\r"));
    screen.answer_words();
    screen.wait("This drive is now did:key:z6Mk");
    screen.ready();
    check_holds(&screen.text(), &["Hello, Ada.", "Try: "]);
    assert!(!screen.text().contains(CHOSEN), "the passphrase was shown");
    assert_eq!(screen.enter("hi"), ANSWER);
    screen.enter("/bye-not-a-command");
    screen.keys("/bye\r");
    assert_eq!(screen.end(), 0);

    let mut again = Screen::start(&tiles(&bundle, &[], &[]));
    again.wait("Passphrase: ");
    again.keys(&format!("{CHOSEN}\r"));
    again.ready();
    check_holds(&again.enter("/sessions"), &["hi"]);
    again.keys("\u{4}");
    assert_eq!(again.end(), 0);
}

#[test]
fn commands_at_the_prompt() {
    let bundle = TestBundle::new();
    let mut screen = unlocked(&bundle, &[], &[]);
    screen.ready();
    assert_eq!(screen.enter("hi there"), ANSWER);
    check_holds(&screen.enter("/help"), &["/bye", "/regenerate", "/context"]);
    check_holds(&screen.enter("/status"), &["model    scripted", "kept, encrypted", "messages 2"]);
    check_holds(&screen.enter("/context"), &["tokens; 2 messages, 0 of them"]);
    check_holds(&screen.enter("/rename A first talk"), &["A first talk"]);
    check_holds(&screen.enter("/set temperature 0"), &["temperature is 0 now."]);
    check_holds(&screen.enter("/set temperature hot"), &["error: ", "hint: "]);
    assert_eq!(screen.enter("/regenerate"), ANSWER);
    check_holds(&screen.enter("/undo"), &["Taken back: hi there"]);
    check_holds(&screen.enter("/status"), &["messages 0"]);
    check_holds(&screen.enter("/undo"), &["error: "]);
    check_holds(&screen.enter("/regenrate"), &["error: ", "/regenerate"]);
    assert_eq!(screen.enter("once more"), ANSWER);
    screen.keys("/bye\r");
    assert_eq!(screen.end(), 0);

    let sessions = bundle.json(&["session", "list"]);
    assert_eq!((&sessions[0]["title"], &sessions[0]["messages"]), (&"A first talk".into(), &2.into()), "{sessions}");
    let id = sessions[0]["id"].as_str().expect("it has one").to_owned();
    let mut second = unlocked(&bundle, &["--session", &id[..8]], &[]);
    second.ready();
    check_holds(&second.text(), &["Resumed with 2 messages."]);
    check_holds(&second.enter("/new"), &["A new session."]);
    check_holds(&second.enter("/sessions"), &[&id[..8], "A first talk"]);
    check_holds(&second.enter(&format!("/resume {}", &id[..8])), &["Resumed with 2 messages."]);
    check_holds(&second.enter("/status"), &[&id, "messages 2"]);
    second.keys("/bye\r");
    assert_eq!(second.end(), 0);
}

#[test]
fn thoughts_are_folded_and_shown_when_asked() {
    let bundle = TestBundle::new();
    let folder = bundle.home.with_file_name("thinker");
    crate::scripted::write_thinker(&folder, &["<think>", "Let me", " see.", "</think>", "The", " answer."]);
    bundle.ok(&["model", "import", &folder.display().to_string(), "--name", "thinker"]);
    let mut screen = unlocked(&bundle, &["run", "thinker"], &[]);
    screen.ready();
    let folded = screen.enter("hi");
    check_holds(&folded, &["Thought for ", "3 words; /thoughts shows them.", "The answer."]);
    assert!(!folded.contains("Let me"), "{folded}");
    assert_eq!(screen.enter("/thoughts"), "Let me see.");
    check_holds(&screen.enter("/thoughts show"), &["shown in full"]);
    let shown = screen.enter("hi");
    check_holds(&shown, &["Let me see.", "The answer."]);
    assert!(!shown.contains("Thought for"), "{shown}");
    screen.keys("/bye\r");
    assert_eq!(screen.end(), 0);
    let answer = bundle.json(&["run", "thinker", "-p", "hi"]);
    assert_eq!((&answer["text"], &answer["reasoning"]), (&"The answer.".into(), &"Let me see.".into()));
}

#[test]
fn a_wrong_passphrase_is_told_three_times_and_never_shown() {
    let bundle = TestBundle::new();
    let mut screen = Screen::start(&tiles(&bundle, &[], &[]));
    for attempt in 0..3 {
        let asked = |screen: &Screen| screen.text().matches("Passphrase:").count() == attempt + 1;
        screen.wait_until("question", asked);
        screen.keys(&format!("{WRONG}\r"));
    }
    assert_eq!(screen.end(), 3);
    let text = screen.text();
    assert_eq!(text.matches("That isn't the passphrase.").count(), 2, "{text}");
    check_holds(&text, &["error: "]);
    assert!(!String::from_utf8_lossy(&screen.raw).contains(WRONG), "it was shown");
}

#[test]
fn a_defect_of_ours_puts_the_terminal_back_and_repeats_no_word() {
    const WORDS: &str = "my secret plan";
    let bundle = TestBundle::quick("Tiles");
    let passphrase = ["--passphrase-file", bundle.passphrase()];
    bundle.ok(&["-p", "kept"]);
    for place in ["prompt", "engine"] {
        let mut screen = Screen::start(&tiles(&bundle, &passphrase, &[("TILES_DEFECT", place)]));
        screen.ready();
        screen.keys(&format!("{WORDS}\r"));
        assert_eq!(screen.end(), 70, "{}", screen.text());
        let text = screen.text();
        check_holds(&text, &["a defect of its own", "hint: start Tiles again: everything it acknowledged is stored"]);
        assert_eq!(text.matches(WORDS).count(), 1, "only where it was typed:\n{text}");
    }
    let output = tiles(&bundle, &[&["-p", WORDS], &passphrase[..]].concat(), &[("TILES_DEFECT", "answer")]).output();
    let output = output.expect("it can be run");
    let errors = String::from_utf8_lossy(&output.stderr);
    check_holds(&errors, &["error: Tiles met a defect of its own", "`data/logs/tiles.log` says where it was"]);
    assert_eq!((output.status.code(), errors.contains(WORDS), output.stdout.len()), (Some(70), false, 0), "{errors}");
    let log = std::fs::read_to_string(bundle.root.join("data/logs/tiles.log")).expect("it is there");
    check_holds(&log, &["panicked at=src/tiles/repl.rs:", "panicked at=src/tiles/conversation.rs:", "code=70"]);
    assert!(!log.contains("secret"), "{log}");
    // It was no clean exit: the database is checked.
    let mut again = Screen::start(&tiles(&bundle, &passphrase, &[]));
    again.ready();
    check_holds(&again.text(), &["not closed properly last time"]);
    check_holds(&again.enter("/search kept"), &["kept"]);
    again.keys("/bye\r");
    assert_eq!(again.end(), 0);
}

#[test]
fn ctrl_c_stops_a_reply_and_keeps_the_part() {
    let bundle = TestBundle::new();
    import_endless(&bundle);
    let mut screen = unlocked(&bundle, &["run", "endless", "--set", "num_predict=-1"], &[]);
    screen.ready();
    screen.keys("go on\r");
    screen.wait("One more word");
    let pressed = std::time::Instant::now();
    screen.keys("\u{3}");
    screen.wait("interrupted; what there is of it is kept");
    screen.ready();
    assert!(pressed.elapsed().as_secs() < 5, "it took {:?}", pressed.elapsed());
    check_holds(&screen.enter("/status"), &["messages 2"]);
    screen.keys("\u{4}");
    assert_eq!(screen.end(), 0);
    let sessions = bundle.json(&["session", "list"]);
    let shown = bundle.ok(&["session", "show", sessions[0]["id"].as_str().expect("it has one")]);
    check_holds(&shown, &["One more word"]);
}

#[test]
fn ctrl_c_at_the_prompt_hints_and_twice_leaves() {
    let bundle = TestBundle::new();
    let mut screen = unlocked(&bundle, &[], &[]);
    screen.ready();
    screen.keys("\u{3}");
    screen.wait("Ctrl-C again or /bye leaves.");
    screen.ready();
    screen.keys("\u{3}");
    assert_eq!(screen.end(), 0);
}

#[test]
fn several_lines_are_one_message() {
    let bundle = TestBundle::new();
    let mut screen = unlocked(&bundle, &[], &[]);
    screen.ready();
    screen.keys("\"\"\"first\r");
    screen.wait_until("continuation", |screen| screen.text().ends_with("\n..."));
    screen.keys("/help\r");
    screen.wait_until("continuation", |screen| screen.text().ends_with("/help\n..."));
    assert_eq!(screen.enter("last\"\"\"").lines().last(), Some(ANSWER));
    // Two lines pasted at once are one message, sent by Return alone.
    screen.keys("\u{1b}[200~pasted one\npasted two\u{1b}[201~");
    screen.wait("pasted two");
    assert!(screen.text().matches(ANSWER).count() == 1, "the paste was sent:\n{}", screen.text());
    assert_eq!(screen.enter("").lines().last(), Some(ANSWER));
    screen.keys("/bye\r");
    assert_eq!(screen.end(), 0);
    let id = bundle.json(&["session", "list"])[0]["id"].as_str().expect("it has one").to_owned();
    let shown = bundle.json(&["session", "show", &id]).to_string();
    check_holds(&shown, &[r"first\n/help\nlast", r"pasted one\npasted two"]);
}

#[test]
fn a_dumb_terminal_gets_no_escape_sequence() {
    let bundle = TestBundle::new();
    let mut screen = unlocked(&bundle, &[], &[("TERM", "dumb")]);
    let asks = |screen: &Screen| screen.text().ends_with(">>>");
    screen.wait_until("prompt", asks);
    screen.keys("hi\r");
    screen.wait(ANSWER);
    screen.wait_until("prompt", asks);
    screen.keys("/bye\r");
    assert_eq!(screen.end(), 0);
    assert!(!screen.raw.contains(&0x1b), "{:?}", String::from_utf8_lossy(&screen.raw));
}

#[test]
fn no_color_means_no_colour() {
    let coloured = |environment: &[(&str, &str)]| {
        let bundle = TestBundle::new();
        let mut screen = unlocked(&bundle, &[], environment);
        screen.ready();
        screen.enter("hi");
        screen.enter("/undo");
        screen.enter("/undo");
        screen.keys("/bye\r");
        assert_eq!(screen.end(), 0);
        let raw = String::from_utf8_lossy(&screen.raw).into_owned();
        // Colour and weight end with `m`; what moves the cursor of the line editor is no colour.
        raw.split("\u{1b}[")
            .skip(1)
            .filter(|part| part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m'))
            .count()
    };
    assert_eq!(coloured(&[("NO_COLOR", "1")]), 0);
    assert!(coloured(&[]) > 0, "the check can fail");
}
