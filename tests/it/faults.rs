//! What a person sees when the drive misbehaves: pulled out, write-protected, full, slow, rotten, lying, opened twice.
//!
//! All on a genuine exFAT (see [`crate::stick`]), with the program started from the drive, as a person would.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::drive::{ANSWER, build, identify, scratch};
use crate::screen::{READY, Screen};
use crate::stick::Stick;

/// How long a person waits for a sentence, at most: it is far less on a machine that does nothing else.
const SOON: Duration = Duration::from_secs(4);
/// What a slow drive reads and writes, in bytes a second.
const SLOW: u64 = 5_000_000;

/// Starts the program in a terminal, with the passphrase.
fn start(stick: &Stick, arguments: &[&str]) -> Screen {
    let mut command = stick.command();
    command.args(["--passphrase-file", &stick.passphrase()]).args(arguments).env("TERM", "xterm-256color");
    Screen::start(&command)
}

fn text(output: &Output) -> (String, String) {
    (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[track_caller]
fn ok(stick: &Stick, arguments: &[&str]) -> String {
    let output = stick.run(arguments);
    let (printed, errors) = text(&output);
    assert!(output.status.success(), "tiles {arguments:?}: {:?}\n{errors}", output.status.code());
    printed
}

/// Imports a model that never stops.
fn import_endless(stick: &Stick) {
    let folder = stick.beside("endless");
    crate::scripted::write(&folder, &["One", " more", " word", " and", "\nagain "], true);
    ok(stick, &["model", "import", &folder.display().to_string(), "--name", "endless"]);
}

/// The program's end within [`SOON`] of `since`, by an error that names the drive, not by a signal.
#[track_caller]
fn check_ends_with_a_message(screen: &mut Screen, since: Instant) {
    let code = screen.end();
    let (took, shown) = (since.elapsed(), screen.text());
    assert!(took < SOON, "it took {took:?}:\n{shown}");
    assert!(shown.contains("error: ") && shown.contains("plug the drive in again"), "{shown}");
    assert_eq!(code, 1, "{shown}");
}

#[test]
fn pulled_at_the_prompt() {
    let Some(mut stick) = Stick::new() else { return };
    let mut screen = start(&stick, &[]);
    screen.ready();
    assert_eq!(screen.enter("kept"), ANSWER);
    stick.settle();
    stick.tell("cut 0 1 0");
    let pulled = Instant::now();
    screen.keys("lost\r");
    check_ends_with_a_message(&mut screen, pulled);
    stick.replug();
    let mut again = start(&stick, &[]);
    again.ready();
    assert!(again.text().contains("was not closed properly"), "{}", again.text());
    assert!(again.enter("/search kept").contains("kept"), "{}", again.text());
    again.keys("/bye\r");
    assert_eq!(again.end(), 0);
    let mut third = start(&stick, &[]);
    third.ready();
    assert!(!third.text().contains("not closed properly"), "said twice:\n{}", third.text());
    third.keys("/bye\r");
    assert_eq!(third.end(), 0);
}

#[test]
fn pulled_while_nobody_types() {
    let Some(mut stick) = Stick::new() else { return };
    let mut screen = start(&stick, &[]);
    screen.ready();
    assert_eq!(screen.enter("kept"), ANSWER);
    screen.keys("half a line");
    screen.wait("half a line");
    stick.settle();
    stick.tell("cut 0 1 0");
    check_ends_with_a_message(&mut screen, Instant::now());
    assert!(screen.text().contains("modes=same"), "{}", screen.text());
    stick.replug();
    assert!(ok(&stick, &["session", "search", "kept"]).contains("kept"));
}

#[test]
fn pulled_during_a_reply_that_nobody_stops() {
    let Some(mut stick) = Stick::new() else { return };
    import_endless(&stick);
    let mut screen = start(&stick, &["run", "endless", "--set", "num_predict=-1"]);
    screen.ready();
    screen.keys("go on\r");
    screen.wait("One more word");
    stick.tell("cut 0 1 0");
    check_ends_with_a_message(&mut screen, Instant::now());
    assert!(screen.text().contains("modes=same"), "{}", screen.text());
}

#[test]
fn pulled_during_a_reply() {
    let Some(mut stick) = Stick::new() else { return };
    import_endless(&stick);
    ok(&stick, &["-p", "kept"]);
    let mut screen = start(&stick, &["run", "endless", "--set", "num_predict=-1"]);
    screen.ready();
    screen.keys("go on\r");
    screen.wait("One more word");
    stick.settle();
    stick.tell("cut 0 1 0");
    let pulled = Instant::now();
    screen.keys("\u{3}");
    screen.wait("error: ");
    assert!(pulled.elapsed() < SOON, "it took {:?}", pulled.elapsed());
    check_ends_with_a_message(&mut screen, pulled);
    stick.replug();
    assert!(ok(&stick, &["session", "search", "kept"]).contains("kept"));
}

#[test]
fn pulled_while_the_model_loads() {
    let Some(mut stick) = Stick::new() else { return };
    let folder = stick.beside("large");
    crate::scripted::write_sized(&folder, &["Large", " answer."], false, 16_384);
    ok(&stick, &["model", "import", &folder.display().to_string(), "--name", "large"]);
    stick.replug();
    // The program itself is in memory: 31 MB of it would come at the same pace.
    stick.settle();
    let mut screen = start(&stick, &["run", "large", "-p", "hi"]);
    stick.tell(&format!("rate {SLOW}"));
    screen.wait("Loading and verifying");
    stick.tell("cut 0 1 0");
    check_ends_with_a_message(&mut screen, Instant::now());
}

/// Nothing of the program is in memory but what it has run so far, and the drive takes 5 s and more to give the rest.
#[test]
fn pulled_before_the_program_is_in_memory() {
    let Some(mut stick) = Stick::new() else { return };
    for moment in ["Passphrase:", "Unlocking"] {
        stick.replug();
        stick.tell(&format!("rate {SLOW}"));
        let mut command = stick.inside(&stick.root().join("tiles"));
        command.env("TERM", "xterm-256color");
        let mut screen = Screen::start(&command);
        screen.wait("Passphrase:");
        if moment == "Unlocking" {
            screen.keys(&format!("{}\r", crate::drive::PASSPHRASE));
            screen.wait(moment);
        }
        stick.tell("cut 0 1 0");
        // What is typed now needs code that wasn't needed before.
        screen.keys("lost\r");
        check_ends_with_a_message(&mut screen, Instant::now());
    }
}

#[test]
fn write_protected() {
    let Some(mut stick) = Stick::new() else { return };
    ok(&stick, &["-p", "kept"]);
    stick.unplug();
    let before = fs::read(stick.image()).expect("it is there");
    stick.tell("plug ro");
    let mut screen = start(&stick, &[]);
    screen.ready();
    assert_eq!(screen.enter("one"), ANSWER);
    assert_eq!(screen.enter("two"), ANSWER);
    assert_eq!(screen.text().matches("write-protected").count(), 1, "{}", screen.text());
    assert!(screen.enter("/search kept").contains("kept"));
    screen.keys("/bye\r");
    assert_eq!(screen.end(), 0);
    let output = stick.run(&["-p", "hi"]);
    let (printed, errors) = text(&output);
    assert_eq!((printed.trim(), errors.matches("write-protected").count()), (ANSWER, 1), "{errors}");
    for refused in [&["session", "rename", "kept", "other"][..], &["account", "set-nickname", "Bob"]] {
        let output = stick.run(refused);
        assert!(!output.status.success() && text(&output).1.contains("write-protected"), "{}", text(&output).1);
    }
    stick.tell("unplug");
    assert!(fs::read(stick.image()).expect("it is there") == before, "something was written");
}

#[test]
fn full() {
    let Some(mut stick) = Stick::new() else { return };
    ok(&stick, &["-p", "kept"]);
    let folder = stick.beside("large");
    crate::scripted::write_sized(&folder, &["Large", " answer."], false, 8_192);
    stick.fill(1 << 20);
    let writes = stick.count("writes");
    let output = stick.run(&["model", "import", &folder.display().to_string(), "--name", "large"]);
    let errors = text(&output).1;
    assert!(!output.status.success() && errors.contains("space"), "{errors}");
    let written = stick.count("writes") - writes;
    assert!(written < 100, "{written} writes before it was refused");
    assert!(!stick.outside("Tiles/models/large").exists(), "something of it is left");

    fs::remove_file(stick.outside("filler")).expect("it is plugged in");
    stick.fill(0);
    let mut screen = start(&stick, &[]);
    screen.ready();
    let mut shown = String::new();
    for number in 0..40 {
        let began = Instant::now();
        shown = screen.enter(&format!("question {number} {}", "that is long ".repeat(100)));
        assert!(began.elapsed() < SOON * 2, "it took {:?}", began.elapsed());
        if shown.contains("error: ") {
            break;
        }
    }
    assert!(shown.contains("no space is left") && shown.contains("free some space"), "{shown}");
    screen.keys("/bye\r");
    let _ = screen.end();
    stick.replug();
    fs::remove_file(stick.outside("filler")).expect("it is plugged in");
    assert!(ok(&stick, &["session", "search", "kept"]).contains("kept"));
    assert_eq!(ok(&stick, &["-p", "again"]).trim(), ANSWER);
}

#[test]
fn slow() {
    let Some(mut stick) = Stick::new() else { return };
    let folder = stick.beside("large");
    crate::scripted::write_sized(&folder, &["Large", " answer."], false, 12_000);
    ok(&stick, &["model", "import", &folder.display().to_string(), "--name", "large"]);
    // The program is in memory already: it is the weights, 18 MB, that are read slowly.
    stick.replug();
    stick.settle();
    stick.tell(&format!("rate {SLOW}"));
    let began = Instant::now();
    let mut screen = start(&stick, &["run", "large"]);
    screen.ready();
    screen.keys("typed meanwhile");
    screen.wait("typed meanwhile");
    let typed = began.elapsed();
    screen.keys("\r");
    let entered = Instant::now();
    screen.wait_until("progress", |screen| {
        screen.text().contains("Loading and verifying") && screen.text().contains("B/s")
    });
    let progress = entered.elapsed();
    assert!(progress < Duration::from_secs(1), "progress after {progress:?}");
    screen.wait("Large answer.");
    assert!(typed < began.elapsed() / 2, "one could type after {typed:?}, of {:?}", began.elapsed());
    screen.ready();
    screen.keys("/bye\r");
    assert_eq!(screen.end(), 0);
    // What reads for long says how far it is, and can be stopped.
    let began = Instant::now();
    let mut screen = start(&stick, &["bundle", "verify", "--full"]);
    screen.wait_until("progress", |screen| screen.text().contains("Verifying") && screen.text().contains("B/s"));
    let verifying = began.elapsed();
    assert!(verifying < SOON, "progress after {verifying:?}");
    screen.keys("\u{3}");
    assert_eq!(screen.end(), 130);
    eprintln!("slow: typed after {typed:?}, progress {progress:?} after Return; verifying: after {verifying:?}");
}

#[test]
fn a_slow_drive_says_at_once_that_it_starts() {
    let Some(mut stick) = Stick::new() else { return };
    stick.replug();
    stick.tell(&format!("rate {SLOW}"));
    let mut command = stick.inside(&stick.root().join("tiles"));
    command.args(["--passphrase-file", &stick.passphrase(), "account"]).env("TERM", "xterm-256color");
    let began = Instant::now();
    let mut screen = Screen::start(&command);
    screen.wait("Starting Tiles...");
    let said = began.elapsed();
    assert!(said < SOON, "it took {said:?}");
    screen.wait("did:key:");
    assert!(said < began.elapsed() / 2, "it was no slow start: {said:?} of {:?}", began.elapsed());
    assert!(!screen.text().contains("Starting"), "{}", screen.text());
    assert_eq!(screen.end(), 0);
}

#[test]
fn the_first_run_on_a_slow_drive() {
    let Some(mut stick) = Stick::new() else { return };
    fs::remove_dir_all(stick.outside("Tiles/data")).expect("it is plugged in");
    stick.replug();
    stick.settle();
    stick.tell(&format!("rate {SLOW}"));
    let mut command = stick.inside(&stick.root().join("tiles"));
    command.env("TERM", "xterm-256color");
    let began = Instant::now();
    let mut screen = Screen::start(&command);
    screen.wait("What shall I call you?");
    assert!(began.elapsed() < SOON, "it took {:?}", began.elapsed());
    screen.keys("Ada\r");
    for question in ["New passphrase:", "The same again:"] {
        screen.wait(question);
        screen.keys("otter plum lantern gravel\r");
    }
    screen.answer_words();
    screen.ready();
    assert!(screen.text().contains("This drive is now did:key:z6Mk"), "{}", screen.text());
    assert_eq!(screen.enter("hi"), ANSWER);
    screen.keys("/bye\r");
    assert_eq!(screen.end(), 0);
    // What was made is on the drive, not in the system's memory of it.
    stick.replug();
    let mut again = Screen::start(&command);
    again.wait("Passphrase:");
    again.keys("otter plum lantern gravel\r");
    again.ready();
    assert!(again.text().contains("Hello, Ada.") && again.enter("/search hi").contains("hi"), "{}", again.text());
    again.keys("/bye\r");
    assert_eq!(again.end(), 0);
}

/// Where a piece of a file, which is nowhere else, lies in an image.
fn position(image: &Path, piece: &[u8]) -> usize {
    let bytes = fs::read(image).expect("it is there");
    (0..bytes.len()).step_by(512).find(|at| bytes[*at..].starts_with(piece)).expect("it is on the drive")
}

#[test]
fn bit_rot_while_the_model_is_read() {
    let Some(mut stick) = Stick::new() else { return };
    let folder = stick.beside("large");
    crate::scripted::write_sized(&folder, &["Large", " answer."], false, 8_192);
    ok(&stick, &["model", "import", &folder.display().to_string(), "--name", "large"]);
    assert_eq!(ok(&stick, &["run", "large", "-p", "hi"]).trim(), "Large answer.");
    let content = fs::read(stick.outside("Tiles/models/large/model.safetensors")).expect("it is plugged in");
    stick.unplug();
    let at = position(&stick.image(), &content[5 << 20..][..512]);
    flip(&stick.image(), at);
    stick.tell("plug");
    stick.settle();
    let began = Instant::now();
    let output = stick.run(&["run", "large", "-p", "hi"]);
    let (printed, errors) = text(&output);
    assert_eq!((output.status.code(), printed.as_str()), (Some(5), ""), "{errors}");
    assert!(errors.contains("model.safetensors") && errors.contains("from byte 4194304"), "{errors}");
    assert!(errors.contains("hint: "), "{errors}");
    assert!(began.elapsed() < SOON, "it took {:?}", began.elapsed());
}

fn flip(image: &Path, at: usize) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::File::options().read(true).write(true).open(image).expect("it is there");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64)
        .and_then(|()| file.write_all_at(&[byte[0] ^ 4], at as u64))
        .expect("it is there");
}

#[test]
fn a_device_that_lies_about_syncs() {
    let Some(mut stick) = Stick::new() else { return };
    let folder = scratch().join("lied-to");
    fs::create_dir_all(&folder).expect("target can be written");
    let program = folder.join("program");
    fs::write(&program, vec![7; 100_000]).expect("target can be written");
    let source = build(&folder, &program);
    identify(&source);
    let archive = folder.join("Tiles.tar.zst").display().to_string();
    let tiles = |stick: &Stick, arguments: &[&str]| -> Output {
        let mut command: Command = stick.inside(Path::new(env!("CARGO_BIN_EXE_tiles")));
        command.arg("--bundle").arg(&source).args(arguments).args(["--passphrase-file", &stick.passphrase()]);
        command.output().expect("it can be run")
    };
    assert!(tiles(&stick, &["bundle", "export", &archive]).status.success());
    for commands in [&["create"][..], &["copy"], &["export"], &["import", &archive], &["build"]] {
        let run = |stick: &Stick, name: &str| {
            let dest = stick.root().with_file_name(format!("{name}-{}", commands[0])).display().to_string();
            let (recipe, seal) = (folder.join("source/MANIFEST.toml"), folder.join("seal.key").display().to_string());
            let model = format!("scripted={}", folder.join("checkpoint").display());
            let (recipe, program) = (recipe.display().to_string(), program.display().to_string());
            let build =
                ["bundle", "build", &recipe, &dest, "--program", &program, "--model", &model, "--seal-key", &seal];
            let other = [&["bundle"], commands, &[&dest]].concat();
            (tiles(stick, if commands[0] == "build" { &build } else { &other }), dest)
        };
        let (honest, _) = run(&stick, "honest");
        assert!(honest.status.success(), "{commands:?}: {}", text(&honest).1);
        stick.tell("lie");
        let (lied_to, dest) = run(&stick, "lied-to");
        let errors = text(&lied_to).1;
        assert_eq!(lied_to.status.code(), Some(5), "{commands:?}: {errors}");
        assert!(errors.contains("isn't on the drive as it was written"), "{commands:?}: {errors}");
        assert!(!stick.outside(&dest).join("MANIFEST.toml").exists(), "{commands:?}: it counts");
        // It is no use afterwards.
        stick.renew();
    }
}

/// The same under a file system of the kernel, whose own memory of the drive is another.
#[test]
fn a_device_that_lies_under_ext4() {
    let Some(mut stick) = Stick::ext4() else { return };
    let folder = scratch().join("lied-to-ext4");
    fs::create_dir_all(&folder).expect("target can be written");
    let program = folder.join("program");
    fs::write(&program, vec![7; 100_000]).expect("target can be written");
    let source = build(&folder, &program);
    identify(&source);
    let bring = |stick: &Stick, command: &str, name: &str| {
        let dest = stick.root().with_file_name(name);
        let mut tiles = stick.inside(Path::new(env!("CARGO_BIN_EXE_tiles")));
        tiles.arg("--bundle").arg(&source).args(["bundle", command]).arg(&dest);
        (tiles.args(["--passphrase-file", &stick.passphrase()]).output().expect("it can be run"), dest)
    };
    for command in ["create", "copy"] {
        let (honest, _) = bring(&stick, command, &format!("honest-{command}"));
        assert!(honest.status.success(), "{command}: {}", text(&honest).1);
        stick.tell("lie");
        let (lied_to, dest) = bring(&stick, command, &format!("lied-to-{command}"));
        let errors = text(&lied_to).1;
        assert_eq!(lied_to.status.code(), Some(5), "{command}: {errors}");
        assert!(errors.contains("isn't on the drive as it was written"), "{command}: {errors}");
        assert!(!stick.outside(&dest.display().to_string()).join("MANIFEST.toml").exists(), "{command}: it counts");
        // It is no use afterwards.
        stick = Stick::ext4().expect("there was one a moment ago");
    }
}

#[test]
fn a_second_opening_is_told_who_has_it() {
    let Some(stick) = Stick::new() else { return };
    let mut first = start(&stick, &[]);
    first.ready();
    let began = Instant::now();
    let second = stick.run(&["-p", "hi"]);
    let (printed, errors) = text(&second);
    assert!(began.elapsed() < SOON, "it took {:?}", began.elapsed());
    assert!(!second.status.success() && printed.is_empty(), "{printed}");
    assert!(errors.contains("since 20") && errors.contains("process "), "{errors}");
    assert_eq!(first.enter("still here"), ANSWER);
    first.keys("/bye\r");
    assert_eq!(first.end(), 0);
    assert_eq!(ok(&stick, &["-p", "hi"]).trim(), ANSWER, "{READY}");
}
