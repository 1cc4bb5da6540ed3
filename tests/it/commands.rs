//! The command line as scripts see it: what is printed where, as JSON and as text, and the exit codes.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use crate::drive::{ANSWER, PASSPHRASE, TestBundle};

/// A path beside the bundle, in the test's own folder.
pub(crate) fn beside(bundle: &TestBundle, name: &str) -> PathBuf {
    bundle.passphrase.with_file_name(name)
}

/// Writes a scripted checkpoint beside the bundle and gives its path.
fn checkpoint(bundle: &TestBundle, words: &[&str], endless: bool) -> String {
    let folder = beside(bundle, "checkpoint");
    crate::scripted::write(&folder, words, endless);
    folder.display().to_string()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asserts how a command ended: the exit code, what stderr names, and that stdout is empty and nothing is a crash.
#[track_caller]
pub(crate) fn refused(output: &Output, code: i32, named: &str) {
    let errors = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    assert!(errors.contains(named), "{named:?} isn't named: {errors}");
    assert!(!errors.contains("panicked") && !errors.contains("RUST_BACKTRACE"), "{errors}");
    assert_eq!(stdout(output), "", "an error prints nothing on standard output");
}

/// Runs the program with `input` on its standard input.
fn fed(bundle: &TestBundle, arguments: &[&str], input: &str) -> Output {
    let mut command = bundle.command();
    command.args(arguments).args(["--passphrase-file", bundle.passphrase()]).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program can be run");
    // A program that ended before it read everything has said why; that is what the test looks at.
    let _ = child.stdin.take().expect("it is piped").write_all(input.as_bytes());
    child.wait_with_output().expect("it ends")
}

/// Starts an answer that doesn't end, and waits for its first words.
fn answering(bundle: &TestBundle) -> Child {
    let words: Vec<String> = ('a'..='t').map(|letter| format!(" {}", letter.to_string().repeat(60))).collect();
    let model = checkpoint(bundle, &words.iter().map(String::as_str).collect::<Vec<_>>(), true);
    bundle.ok(&["model", "import", &model, "--name", "endless"]);
    let mut command = bundle.command();
    command.args(["run", "endless", "-p", "go", "--passphrase-file", bundle.passphrase()]);
    // Nobody reads on: the pipe fills up, and the answer waits in the middle.
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program can be run");
    let mut first = [0; 80];
    child.stdout.as_mut().expect("it is piped").read_exact(&mut first).expect("it answers");
    child
}

#[test]
fn a_question_is_answered_and_kept() {
    let bundle = TestBundle::new();
    let answer = bundle.json(&["run", "-p", "hi"]);
    assert_eq!(answer["text"], ANSWER);
    assert_eq!(answer["finish_reason"], "stop");
    let sessions = bundle.json(&["session", "list"]);
    assert_eq!(sessions[0]["id"], answer["session"]);
    assert_eq!(sessions[0]["messages"], 2);
    assert_eq!(bundle.ok(&["-p", "again"]), format!("{ANSWER}\n"), "the answer alone is on standard output");
}

#[test]
fn questions_come_by_flag_and_by_pipe() {
    let bundle = TestBundle::new();
    for (arguments, asked) in [
        (&["run", "-p", "-"][..], "from the pipe"),
        (&["-p", "-"], "from the pipe"),
        (&[], "from the pipe"),
        (&["run"], "from the pipe"),
        (&["-p", "Summarise this."], "Summarise this.\n\nfrom the pipe"),
    ] {
        let answered = fed(&bundle, arguments, "from the pipe\n");
        assert_eq!(stdout(&answered), format!("{ANSWER}\n"), "{arguments:?}: {}", stderr(&answered));
        let id = bundle.json(&["session", "list"])[0]["id"].as_str().expect("an id").to_owned();
        let text = bundle.json(&["session", "show", &id]).to_string();
        assert!(text.contains(&serde_json::json!(asked).to_string()), "{arguments:?}: {text}");
    }
    refused(&fed(&bundle, &["-p", "-"], " \n"), 2, "empty");
}

#[test]
fn the_passphrase_comes_by_file_pipe_or_descriptor() {
    let bundle = TestBundle::new();
    for flag in [&["--passphrase-fd", "0"][..], &["--passphrase-file", "-"], &["--passphrase-file", "/dev/stdin"]] {
        let mut command = bundle.command();
        command.arg("account").args(flag).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program can be run");
        child.stdin.take().expect("it is piped").write_all(format!("{PASSPHRASE}\n").as_bytes()).expect("it is read");
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{flag:?}: {}", stderr(&output));
        assert!(stdout(&output).contains("Ada"), "{flag:?}: {}", stdout(&output));
    }
    let output = bundle.run(&["account", "--passphrase-fd", "93"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("/dev/fd/93"), "{}", stderr(&output));
}

#[test]
fn an_added_model_answers_without_being_kept() {
    let bundle = TestBundle::new();
    let model = checkpoint(&bundle, &["Added", " words."], false);
    bundle.ok(&["model", "import", &model, "--name", "mine"]);
    assert_eq!(bundle.ok(&["run", "mine", "--no-save", "-p", "hi"]), "Added words.\n");
    assert_eq!(bundle.json(&["session", "list"]), serde_json::json!([]), "nothing was kept");
    refused(&bundle.run(&["run", "mine", "--no-save", "-p", "hi", "--no-input"]), 3, "--passphrase-file");
    // Before there is an identity nothing can have been added, so nobody is asked for a passphrase.
    refused(&TestBundle::fresh().run(&["run", "mine", "--no-save", "-p", "hi"]), 4, "mine");
}

#[test]
fn a_modelfile_names_its_model_by_path() {
    let bundle = TestBundle::new();
    let folder = bundle.root.join("models/scripted");
    let modelfile = beside(&bundle, "Modelfile");
    let from = |what: &str| std::fs::write(&modelfile, format!("FROM {what}\n")).expect("target can be written");
    let run = || bundle.unlocked(&["run", &modelfile.display().to_string(), "-p", "hi"]);
    // The bundle's own model by its path is verified like by its name.
    from("./Tiles/models/scripted");
    let output = run();
    assert_eq!((stdout(&output), stderr(&output)), (format!("{ANSWER}\n"), String::new()));
    let config = folder.join("config.json");
    let whole = std::fs::read(&config).expect("it is there");
    std::fs::write(&config, [&whole[..], b" "].concat()).expect("target can be written");
    refused(&run(), 5, "config.json");
    std::fs::write(&config, whole).expect("target can be written");
    // So is one that was added, though only the unlocked bundle knows of it.
    let added = checkpoint(&bundle, &["Added", " words."], false);
    bundle.ok(&["model", "import", &added, "--name", "mine"]);
    from("./Tiles/models/mine");
    let output = run();
    assert_eq!((stdout(&output), stderr(&output)), ("Added words.\n".into(), String::new()));
    let added = bundle.root.join("models/mine/config.json");
    std::fs::write(&added, [&std::fs::read(&added).expect("it is there")[..], b" "].concat())
        .expect("it can be written");
    refused(&run(), 5, "config.json");
    // A folder that nothing vouches for answers too, and that is said.
    let other = checkpoint(&bundle, &["Other", " words."], false);
    from("./checkpoint");
    let output = run();
    assert_eq!(stdout(&output), "Other words.\n", "{other}");
    assert!(stderr(&output).contains("nothing vouches"), "{}", stderr(&output));
    std::fs::write(beside(&bundle, "Some-Model.gguf"), b"GGUF").expect("target can be written");
    from("./Some-Model.gguf");
    refused(&run(), 4, "tiles model import");
    from("./nothing-there");
    refused(&run(), 4, "nothing-there");
}

#[test]
fn a_model_is_found_by_its_identity() {
    let bundle = TestBundle::new();
    let model = checkpoint(&bundle, &["Added", " words."], false);
    let own = Path::new(&model).join("Modelfile");
    std::fs::write(own, "FROM .\nMIR mir:model.art.tiny-talker:q4\n").expect("target can be written");
    bundle.ok(&["model", "import", &model, "--name", "mine"]);
    assert_eq!(bundle.ok(&["run", "mir:model.art.tiny-talker", "-p", "hi"]), "Added words.\n");
    let modelfile = beside(&bundle, "Modelfile").display().to_string();
    std::fs::write(&modelfile, "FROM mir:model.artm.tiny-talker:q8\nRENDERER chatml\n").expect("target can be written");
    assert_eq!(bundle.ok(&["run", &modelfile, "-p", "hi"]), "Added words.\n");
    refused(&bundle.unlocked(&["run", "mir:model.art.tiny-talk", "-p", "hi"]), 4, "mir:model.art.tiny-talker:q4");
    refused(&bundle.unlocked(&["run", "mir:model.tiny", "-p", "hi"]), 2, "isn't of the form");
    std::fs::write(&modelfile, "FROM mine\nPARSER harmony\n").expect("target can be written");
    refused(&bundle.unlocked(&["run", &modelfile, "-p", "hi"]), 4, "no Harmony tags");
}

#[test]
fn json_is_alone_on_standard_output() {
    let bundle = TestBundle::new();
    let id = bundle.json(&["run", "-p", "hi"])["session"].as_str().expect("an id").to_owned();
    let modelfile = beside(&bundle, "Modelfile").display().to_string();
    std::fs::write(&modelfile, "FROM scripted\nPARAMETER temperature 0\n").expect("target can be written");
    let cases: &[(&[&str], &str)] = &[
        (&["account"], "did"),
        (&["account", "set-nickname", "Grace"], "nickname"),
        (&["model", "show", "scripted"], "files"),
        (&["modelfile", "check", &modelfile], "errors"),
        (&["modelfile", "fmt", &modelfile], "text"),
        (&["session", "show", &id], ""),
        (&["session", "rename", &id, "Paris"], "title"),
        (&["session", "delete", &id, "--dry-run"], "would_delete"),
        (&["bundle", "info"], "generation"),
        (&["bundle", "verify"], "whole"),
        (&["bundle", "verify", "--full"], "whole"),
        (&["doctor"], "engine"),
        (&["health"], "host"),
        (&["privacy"], "operating_system"),
        (&["run", "--no-save", "-p", "hi"], "finish_reason"),
    ];
    for (arguments, key) in cases {
        let value = bundle.json(arguments);
        assert!(key.is_empty() || !value[key].is_null(), "{arguments:?} has no {key:?}: {value}");
    }
    for arguments in [
        &["model", "list"][..],
        &["model", "verify"],
        &["session", "list"],
        &["session", "search", "hello"],
        &["session", "export", "--format", "json"],
        &["modelfile", "explain", &modelfile],
        &["config", "show"],
    ] {
        let value = bundle.json(arguments);
        let rows = value.as_array().or_else(|| value["sessions"].as_array());
        assert!(rows.is_some_and(|rows| !rows.is_empty()), "{arguments:?} lists nothing: {value}");
    }
    let wrong = fed(&bundle, &["modelfile", "check", "-", "--json"], "FROM a\nPARAMETER nonsense 1\n");
    assert_eq!(wrong.status.code(), Some(2));
    let value: serde_json::Value = serde_json::from_slice(&wrong.stdout).expect("it is JSON");
    assert_eq!(value["errors"][0]["line"], 2);
}

#[test]
fn models_are_added_verified_exported_and_removed() {
    let bundle = TestBundle::new();
    let model = checkpoint(&bundle, &["Added", " model."], false);
    let names = |bundle: &TestBundle| -> Vec<String> {
        let rows = bundle.json(&["model", "list"]);
        rows.as_array().expect("rows").iter().map(|row| row["name"].as_str().expect("a name").to_owned()).collect()
    };
    let planned = bundle.json(&["model", "import", &model, "--name", "mine", "--dry-run"]);
    assert_eq!(planned["name"], "mine");
    assert_eq!(names(&bundle), ["scripted"], "a dry run adds nothing");
    assert!(!bundle.root.join("models/mine").exists() && !bundle.root.join("data/models.toml").exists());

    assert_eq!(bundle.json(&["model", "import", &model, "--name", "mine"])["name"], "mine");
    assert_eq!(bundle.ok(&["run", "mine", "-p", "hi"]), "Added model.\n");
    assert_eq!(bundle.json(&["model", "verify", "mine"])[0]["whole"], true);
    let file = beside(&bundle, "mine.tar.zst").display().to_string();
    bundle.json(&["model", "export", "mine", &file]);
    bundle.json(&["model", "import", &file, "--name", "copy"]);
    assert_eq!(bundle.ok(&["run", "copy", "-p", "hi"]), "Added model.\n");

    refused(&bundle.unlocked(&["model", "remove", "mine"]), 2, "--yes");
    assert_eq!(bundle.json(&["model", "remove", "mine", "--dry-run"])["would_remove"], "mine");
    assert_eq!(names(&bundle).len(), 3, "neither removed anything");
    assert_eq!(bundle.json(&["model", "remove", "mine", "--yes"])["removed"], "mine");
    assert!(!names(&bundle).contains(&"mine".to_owned()) && !bundle.root.join("models/mine").exists());
    refused(&bundle.unlocked(&["run", "mine", "-p", "hi"]), 4, "mine");
}

#[test]
fn sessions_are_renamed_deleted_and_travel() {
    let bundle = TestBundle::new();
    let id = bundle.json(&["run", "-p", "Zanzibar"])["session"].as_str().expect("an id").to_owned();
    bundle.ok(&["session", "rename", &id[..8], "Islands"]);
    assert!(bundle.ok(&["session", "list"]).contains("Islands"));
    assert!(bundle.ok(&["session", "search", "zanzibar"]).contains(&id[..8]));
    assert!(bundle.ok(&["session", "export", &id]).contains(ANSWER), "Markdown");

    let file = beside(&bundle, "talk.json").display().to_string();
    let exported = bundle.ok(&["session", "export", &id, "--format", "json"]);
    std::fs::write(&file, &exported).expect("target can be written");
    refused(&bundle.unlocked(&["session", "delete", &id]), 2, "--yes");
    assert_eq!(bundle.json(&["session", "list"])[0]["id"], id.as_str(), "it is still there");
    bundle.ok(&["session", "delete", &id, "--yes"]);
    assert_eq!(bundle.json(&["session", "list"]), serde_json::json!([]));
    refused(&bundle.unlocked(&["session", "show", &id]), 1, &id);

    assert_eq!(bundle.json(&["session", "import", &file, "--dry-run"])["sessions"], 1);
    assert_eq!(bundle.json(&["session", "list"]), serde_json::json!([]), "a dry run imports nothing");
    let imported = fed(&bundle, &["session", "import", "-"], &exported);
    assert!(imported.status.success(), "{}", stderr(&imported));
    let again = bundle.json(&["session", "list"])[0].clone();
    assert_eq!((&again["title"], &again["messages"]), (&"Islands".into(), &2.into()));
    let again = again["id"].as_str().expect("an id").to_owned();
    assert!(bundle.ok(&["session", "show", &again]).contains("Zanzibar"));
}

/// The names in the list of commands of a help page.
fn listed_commands(help: &str) -> Vec<String> {
    let list = help.split("Commands:\n").nth(1).unwrap_or_default();
    let lines = list.lines().take_while(|line| !line.is_empty());
    lines
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|name| !name.is_empty()))
        .map(Into::into)
        .collect()
}

#[test]
fn every_command_has_help_and_a_version() {
    let bundle = TestBundle::fresh();
    let mut open: Vec<Vec<String>> = vec![Vec::new()];
    let mut seen = 0;
    while let Some(path) = open.pop() {
        let words: Vec<&str> = path.iter().map(String::as_str).collect();
        let help = bundle.run(&[&words[..], &["--help"]].concat());
        let text = stdout(&help);
        assert!(help.status.success() && text.contains("Usage:") && help.stderr.is_empty(), "{path:?}: {text}");
        assert!(words.len() > 1 || text.starts_with("Example"), "{path:?}: examples come first");
        assert!(bundle.run(&[&words[..], &["-h"]].concat()).status.success());
        let version = bundle.run(&[&words[..], &["--version"]].concat());
        assert_eq!(stdout(&version).lines().count(), 1, "{path:?}: {}", stderr(&version));
        assert!(stdout(&version).contains(env!("CARGO_PKG_VERSION")));
        seen += 1;
        let children = listed_commands(&text).into_iter().filter(|name| name != "help");
        open.extend(children.map(|name| [&path[..], &[name]].concat()));
    }
    assert!(seen > 25, "only {seen} help pages were found");
    assert_eq!(stdout(&bundle.run(&["help", "session"])), stdout(&bundle.run(&["session", "--help"])));
    // Three times the promise: this is the debug program on a machine that runs other tests.
    let once = || {
        let start = Instant::now();
        bundle.run(&["--help"]);
        start.elapsed()
    };
    let fastest = (0..5).map(|_| once()).min().expect("five runs");
    assert!(fastest < Duration::from_millis(300), "help took {fastest:?}");
}

#[test]
fn words_that_are_no_command_never_become_a_chat() {
    let bundle = TestBundle::new();
    for (arguments, suggestion) in [
        (&["sesion"][..], "session"),
        (&["sesion", "list"], "session"),
        (&["docter"], "doctor"),
        (&["session", "lst"], "list"),
        (&["model", "verfy"], "verify"),
        (&["--jsn", "account"], "--json"),
        (&["hello"], "help"),
        (&["poem"], "tiles help"),
        (&["write", "it"], "write"),
        (&["-p", "hi", "doctor"], "tiles run"),
        (&["session", "zzzzzz"], "zzzzzz"),
        (&["what is up?"], "tiles -p"),
    ] {
        refused(&bundle.unlocked(arguments), 2, suggestion);
    }
    assert_eq!(bundle.json(&["session", "list"]), serde_json::json!([]), "nothing was asked");
}

#[test]
fn flags_work_before_and_after_the_command() {
    let bundle = TestBundle::new();
    let pass = bundle.passphrase();
    let root = bundle.root.to_str().expect("target's path is text");
    for arguments in [
        &["--json", "--passphrase-file", pass, "account"][..],
        &["account", "--json", "--passphrase-file", pass],
        &["--passphrase-file", pass, "session", "--json", "list"],
        &["--json", "--bundle", root, "--no-input", "-q", "bundle", "info"],
        &["bundle", "--bundle", root, "info", "-v", "--json"],
        &["--json", "--passphrase-file", pass, "run", "-p", "hi"],
        &["--json", "-p", "hi", "--passphrase-file", pass],
    ] {
        let output = bundle.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("it is JSON");
    }
}

#[test]
fn nothing_is_asked_without_a_terminal() {
    let (fresh, bundle) = (TestBundle::fresh(), TestBundle::new());
    bundle.ok(&["-p", "hi"]);
    let id = bundle.json(&["session", "list"])[0]["id"].as_str().expect("an id").to_owned();
    for flag in [&["--no-input"][..], &[]] {
        let run = |bundle: &TestBundle, arguments: &[&str]| bundle.run(&[arguments, flag].concat());
        refused(&run(&bundle, &["session", "list"]), 3, "--passphrase-file");
        refused(&run(&bundle, &["-p", "hi"]), 3, "--passphrase-file");
        refused(&run(&fresh, &["account", "create", "Ada"]), 3, "--passphrase-file");
        let pass = ["account", "create", "Ada", "--passphrase-file", fresh.passphrase()];
        refused(&run(&fresh, &pass), 3, "--no-recovery");
        let pass = ["session", "delete", &id, "--passphrase-file", bundle.passphrase()];
        refused(&run(&bundle, &pass), 2, "--yes");
    }
    refused(&bundle.unlocked(&["run", "--no-input"]), 2, "-p");
}

#[test]
fn exit_codes_tell_what_is_wrong() {
    let bundle = TestBundle::new();
    let wrong = beside(&bundle, "wrong");
    std::fs::write(&wrong, "not the passphrase\n").expect("target can be written");
    let wrong = wrong.to_str().expect("target's path is text");
    refused(&bundle.run(&["account", "--passphrase-file", wrong]), 3, "passphrase");
    refused(&bundle.run(&["-p", "hi", "--passphrase-file", wrong]), 3, "passphrase");
    refused(&bundle.unlocked(&["run", "absent", "-p", "hi"]), 4, "absent");
    refused(&bundle.unlocked(&["model", "show", "absent"]), 4, "absent");
    refused(&bundle.unlocked(&["run", "-p", "hi", "--set", "temperature=hot"]), 2, "temperature");
    // Where it is built in, `--engine mlx` computes.
    #[cfg(not(any(all(target_os = "macos", target_arch = "aarch64"), all(target_os = "linux", feature = "mlx"))))]
    refused(&bundle.unlocked(&["run", "-p", "hi", "--engine", "mlx"]), 6, "mlx");
    refused(&bundle.unlocked(&["run", "./no/Modelfile", "-p", "hi"]), 1, "no/Modelfile");
    let launcher = bundle.root.join("README.txt");
    std::fs::write(&launcher, "changed").expect("target can be written");
    refused(&bundle.unlocked(&["-p", "hi"]), 5, "README.txt");
}

#[test]
fn a_passphrase_has_no_place_in_arguments_or_environment() {
    let bundle = TestBundle::new();
    refused(&bundle.run(&["account", "--passphrase", PASSPHRASE]), 2, "--passphrase");
    for name in ["TILES_PASSPHRASE", "PASSPHRASE", "TILES_PASSPHRASE_FILE"] {
        let value = if name.ends_with("FILE") { bundle.passphrase() } else { PASSPHRASE };
        let output = bundle.command().env(name, value).arg("account").output().expect("the program can be run");
        refused(&output, 3, "--passphrase-file");
    }
    let piped =
        bundle.command().args(["account", "--passphrase-fd", "0"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    let mut child = piped.expect("the program can be run");
    child.stdin.take().expect("it is piped").write_all(format!("{PASSPHRASE}\n").as_bytes()).expect("it reads");
    assert!(child.wait().expect("it ends").success(), "a descriptor may hold it");
}

#[test]
fn closed_standard_output_is_no_error() {
    let bundle = TestBundle::new();
    bundle.ok(&["-p", "hi"]);
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["completions", "bash"],
        &["privacy"],
        &["doctor", "--json"],
        &["session", "list"],
        &["session", "export"],
        &["run", "-p", "hi"],
        &["run", "-p", "hi", "--json"],
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe can be made");
        drop(reader);
        let mut command = bundle.command();
        command.args(arguments).args(["--passphrase-file", bundle.passphrase()]).stdout(writer);
        let output = command.stderr(Stdio::piped()).output().expect("the program can be run");
        assert!(output.status.success(), "{arguments:?}: {:?} {}", output.status, stderr(&output));
        assert_eq!(stderr(&output), "", "{arguments:?}");
    }
}

#[test]
fn colour_follows_flag_then_environment() {
    let bundle = TestBundle::new();
    bundle.ok(&["-p", "hi"]);
    let search = ["session", "search", "scripted", "--passphrase-file", bundle.passphrase()];
    for (flags, variables, is_coloured) in [
        (&[][..], &[][..], false),
        (&["--color", "always"], &[], true),
        (&["--color", "always"], &[("NO_COLOR", "1")], true),
        (&["--color", "never"], &[("CLICOLOR_FORCE", "1")], false),
        (&[], &[("CLICOLOR_FORCE", "1")], true),
        (&[], &[("NO_COLOR", "1"), ("TERM", "xterm-256color")], false),
    ] {
        let mut command = bundle.command();
        command.args(search).args(flags).envs(variables.iter().copied());
        let found = stdout(&command.output().expect("the program can be run"));
        assert!(found.contains("scripted"), "{found}");
        assert_eq!(found.contains('\u{1b}'), is_coloured, "{flags:?} {variables:?}: {found:?}");
    }
}

#[test]
fn completions_load() {
    let bundle = TestBundle::fresh();
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&bundle.run(&["completions", shell]));
        assert!(script.contains("set-nickname") && script.contains("passphrase-file"), "{shell}: {script}");
        let file = beside(&bundle, shell);
        std::fs::write(&file, script).expect("target can be written");
        // A shell that isn't installed can't judge its script.
        if let Ok(checked) = std::process::Command::new(shell).arg("-n").arg(&file).output() {
            assert!(checked.status.success(), "{shell}: {}", stderr(&checked));
        }
    }
    refused(&bundle.run(&["completions", "nosuchshell"]), 2, "bash");
    assert!(stdout(&bundle.run(&["man"])).contains(".TH tiles 1"));
}

#[test]
fn a_locale_that_is_not_utf_8_harms_nothing() {
    use std::os::unix::ffi::OsStrExt as _;
    let bundle = TestBundle::new();
    for locale in ["C", "POSIX", "en_US.ISO-8859-1", "nonsense"] {
        let mut command = bundle.command();
        command.env("LC_ALL", locale).env("LANG", locale).args(["run", "-p", "Grüße, 世界"]);
        let output = command.args(["--passphrase-file", bundle.passphrase()]).output().expect("the program can be run");
        assert_eq!(stdout(&output), format!("{ANSWER}\n"), "{locale}: {}", stderr(&output));
    }
    assert!(bundle.ok(&["session", "export"]).contains("Grüße, 世界"));
    let bytes = std::ffi::OsStr::from_bytes(b"caf\xe9");
    refused(&bundle.command().arg("-p").arg(bytes).output().expect("the program can be run"), 2, "UTF-8");
    let output = bundle.command().args(["modelfile", "check"]).arg(bytes).output().expect("the program can be run");
    refused(&output, 1, "caf");
}

#[test]
fn a_second_opening_is_refused_at_once() {
    let bundle = TestBundle::new();
    let mut first = answering(&bundle);
    let start = Instant::now();
    let second = bundle.unlocked(&["session", "list"]);
    assert!(start.elapsed() < Duration::from_secs(2), "it took {:?}", start.elapsed());
    refused(&second, 1, "in use");
    let errors = stderr(&second);
    assert!(errors.contains("since"), "the holder and its time are named: {errors}");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("Linux tells its name");
    assert!(errors.contains(host.trim()), "the holder's host is named: {errors}");
    first.kill().expect("it runs");
    first.wait().expect("it ends");
}

#[test]
fn a_killed_answer_leaves_a_bundle_that_starts() {
    let bundle = TestBundle::new();
    let kept = bundle.json(&["run", "-p", "before"])["session"].clone();
    let mut killed = answering(&bundle);
    killed.kill().expect("it runs");
    killed.wait().expect("it ends");
    let after = bundle.unlocked(&["session", "list", "--json"]);
    assert!(after.status.success(), "{}", stderr(&after));
    assert!(stderr(&after).contains("not closed properly"), "{}", stderr(&after));
    assert!(stdout(&after).contains(kept.as_str().expect("an id")), "{}", stdout(&after));
    assert_eq!(bundle.ok(&["-p", "after"]), format!("{ANSWER}\n"));
    assert_eq!(bundle.json(&["bundle", "verify", "--full"])["whole"], true);
    assert!(Path::new(&bundle.root).join("data/db/tiles.db").exists());
}
