//! `tiles model pull` against a server on loopback that interrupts and lies.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde_json::json;
use tilekit::hub::{Hub, HubError, Limits};
use tilekit::library::Library;
use tilekit::library::pull::PullRequest;

use crate::commands::{beside, refused};
use crate::drive::TestBundle;
use crate::mirror::{COMMIT, Fault, Mirror};

const CHUNK: usize = 4 * 1024 * 1024;
const EXTRA: &str = "model-extra.safetensors";

/// A scripted model on a server.
fn small_mirror(bundle: &TestBundle) -> Mirror {
    let folder = beside(bundle, "remote");
    crate::scripted::write(&folder, &["It", " was", " pulled."], false);
    Mirror::of(&folder)
}

/// The same with 13 MiB of weights that no architecture has.
fn mirror(bundle: &TestBundle) -> Mirror {
    let folder = beside(bundle, "remote");
    crate::scripted::write(&folder, &["It", " was", " pulled."], false);
    let bytes = 13 * 1024 * 1024 / 4 * 4;
    let mut header = json!({"extra.weight": {"dtype": "F32", "shape": [bytes / 4], "data_offsets": [0, bytes]}})
        .to_string()
        .into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let body: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, &body].concat();
    std::fs::write(folder.join(EXTRA), file).expect("target can be written");
    Mirror::of(&folder)
}

fn pull<'a>(mirror: &'a Mirror, more: &[&'a str]) -> Vec<&'a str> {
    [&["model", "pull", "org/tiny", "--endpoint", &mirror.endpoint][..], more].concat()
}

fn names(bundle: &TestBundle) -> Vec<String> {
    let listed = bundle.json(&["model", "list"]);
    listed.as_array().expect("it is a list").iter().map(|m| m["name"].as_str().expect("text").to_owned()).collect()
}

#[test]
fn without_leave_no_connection_is_opened() {
    let bundle = TestBundle::new();
    let mirror = mirror(&bundle);
    let output = bundle.unlocked(&pull(&mirror, &[]));
    refused(&output, 7, "pulling `org/tiny` needs the network: files from `127.0.0.1`");
    refused(&output, 7, "--allow-network");
    refused(&bundle.run(&["model", "pull", "org/tiny"]), 7, "`huggingface.co`");
    for endpoint in ["http://example.com", "ftp://127.0.0.1", "https://a@b", "x"] {
        refused(&bundle.run(&["model", "pull", "a/b", "--allow-network", "--endpoint", endpoint]), 2, "endpoint");
    }
    assert_eq!(mirror.take_log(), []);
}

#[test]
fn a_pulled_model_answers_and_says_where_it_is_from() {
    let bundle = TestBundle::new();
    let mirror = small_mirror(&bundle);
    let planned = bundle.json(&pull(&mirror, &["--allow-network", "--dry-run"]));
    assert_eq!((&planned["revision"], &planned["name"]), (&json!(COMMIT), &json!("tiny")));
    assert_eq!(mirror.take_log().len(), 1, "only the listing");
    // A proxy of the environment isn't obeyed: there is none at that port.
    let mut command = bundle.command();
    command.envs([
        ("HTTP_PROXY", "http://127.0.0.1:1"),
        ("ALL_PROXY", "http://127.0.0.1:1"),
        ("HF_ENDPOINT", "http://127.0.0.1:1"),
    ]);
    command.args(pull(&mirror, &["--allow-network", "--passphrase-file", bundle.passphrase()]));
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let asked: Vec<String> = mirror.take_log().into_iter().map(|(name, ..)| name).collect();
    assert!(!asked.iter().any(|name| name == "README.md"), "{asked:?}");
    assert_eq!(bundle.ok(&["run", "tiny", "-p", "hi"]), "It was pulled.\n");
    let shown = bundle.json(&["model", "show", "tiny"]);
    let description = &shown["description"];
    assert_eq!(
        (&description["source"], &description["revision"], &description["licence"]),
        (&json!("org/tiny"), &json!(COMMIT), &json!("mit"))
    );
    bundle.ok(&["model", "verify", "tiny"]);
    let models: Vec<_> = std::fs::read_dir(bundle.root.join("models")).expect("it is there").collect();
    assert_eq!(models.len(), 2, "nothing half is left: {models:?}");
    refused(&bundle.unlocked(&pull(&mirror, &["--allow-network"])), 1, "there is a model `tiny` already");
}

#[test]
fn a_cut_pull_goes_on_where_it_was() {
    let bundle = TestBundle::new();
    let mirror = mirror(&bundle);
    // Two chunks and a half, then the server is away.
    mirror.faults(|path, nth| match (path.ends_with(EXTRA), nth) {
        (true, 0) => Fault::Cut(CHUNK * 5 / 2),
        (true, _) => Fault::Status(404),
        _ => Fault::None,
    });
    refused(&bundle.unlocked(&pull(&mirror, &["--allow-network"])), 4, "has no `model-extra.safetensors`");
    assert_eq!(names(&bundle), ["scripted"], "half a model is none");
    // Meanwhile the drive loses a bit of the first chunk.
    let partial = bundle.root.join("models/pull+tiny.partial").join(format!("{EXTRA}.partial"));
    let mut bytes = std::fs::read(&partial).expect("what was fetched is kept");
    bytes[1000] ^= 1;
    std::fs::write(&partial, bytes).expect("target can be written");
    mirror.take_log();
    mirror.faults(|_, _| Fault::None);
    bundle.ok(&pull(&mirror, &["--allow-network"]));
    let log = mirror.take_log();
    let extra: Vec<(u64, usize)> =
        log.iter().filter(|(name, ..)| name == EXTRA).map(|(_, at, sent)| (*at, *sent)).collect();
    assert_eq!((extra.len(), extra[0], extra[1].0), (2, (0, CHUNK), 2 * CHUNK as u64), "{log:?}");
    assert!(!log.iter().any(|(name, ..)| name == "config.json"), "whole files aren't fetched twice: {log:?}");
    bundle.ok(&["model", "verify", "tiny"]);
}

#[test]
fn one_run_outlasts_cuts_and_servers_without_ranges() {
    let bundle = TestBundle::new();
    let mirror = mirror(&bundle);
    mirror.faults(|path, nth| match (path.ends_with(EXTRA), nth) {
        (true, 0) => Fault::Cut(CHUNK + 5),
        (true, 1) => Fault::Status(503),
        (true, _) => Fault::NoRanges,
        _ => Fault::None,
    });
    bundle.ok(&pull(&mirror, &["--allow-network"]));
    bundle.ok(&["model", "verify", "tiny"]);
}

#[test]
fn a_wrong_file_is_named_and_fetched_again_alone() {
    let bundle = TestBundle::new();
    let mirror = mirror(&bundle);
    mirror.faults(|path, _| if path.ends_with(EXTRA) { Fault::Flip } else { Fault::None });
    refused(
        &bundle.unlocked(&pull(&mirror, &["--allow-network"])),
        5,
        "`model-extra.safetensors` is not what was promised",
    );
    assert_eq!(names(&bundle), ["scripted"]);
    mirror.take_log();
    mirror.faults(|_, _| Fault::None);
    bundle.ok(&pull(&mirror, &["--allow-network"]));
    let asked: Vec<String> = mirror.take_log().into_iter().map(|(name, ..)| name).collect();
    assert_eq!(asked, [format!("{COMMIT}?blobs=true"), EXTRA.to_owned()]);
}

#[test]
fn refusals_and_lies_are_told_apart() {
    let bundle = TestBundle::new();
    let mirror = mirror(&bundle);
    type Row = (Fault, i32, &'static str);
    let rows: [Row; 6] = [
        (Fault::Status(401), 4, "only to people with an account (status 401)"),
        (Fault::Status(404), 4, "has no `org/tiny`"),
        (Fault::Status(400), 1, "answered with status 400"),
        (Fault::Endless, 1, "its listing has more than 8388608 bytes"),
        (Fault::Redirect("/api/models/org/tiny/revision/main".into()), 1, "more than 5 redirects"),
        (Fault::Redirect("http://192.0.2.1/".into()), 1, "a redirect leads to something other than `https`"),
    ];
    for (fault, code, named) in rows {
        mirror.faults(move |_, _| fault.clone());
        refused(&bundle.unlocked(&pull(&mirror, &["--allow-network"])), code, named);
    }
    mirror.faults(|path, _| if path.ends_with("config.json") { Fault::WrongRange } else { Fault::None });
    refused(&bundle.unlocked(&pull(&mirror, &["--allow-network"])), 1, "got another range");
    let sibling = json!({"rfilename": "tokenizer/../../evil.json", "size": 1, "blobId": COMMIT});
    let hostile = Mirror::serving(BTreeMap::new(), json!({"sha": COMMIT, "siblings": [sibling]}));
    refused(&bundle.unlocked(&pull(&hostile, &["--allow-network"])), 1, "leads out of the model's folder");
    let files = ["config.json", "tokenizer.json", "model.safetensors", "model-00001-of-00001.safetensors"];
    let siblings = files.map(|name| json!({"rfilename": name, "size": 1, "blobId": COMMIT}));
    let twice = Mirror::serving(BTreeMap::new(), json!({"sha": COMMIT, "siblings": siblings}));
    // It serves no file, so that fetching one would fail otherwise.
    refused(
        &bundle.unlocked(&pull(&twice, &["--allow-network"])),
        1,
        "its weights twice: `model.safetensors` and 1 shards",
    );
}

#[test]
fn patience_has_an_end() {
    let bundle = TestBundle::new();
    let mirror = mirror(&bundle);
    let limits =
        Limits { stall: Duration::from_millis(100), backoff: Duration::ZERO, attempts: 2, ..Limits::default() };
    let hub = Hub::new(&mirror.endpoint, limits).expect("it is loopback");
    let mut library =
        Library::open(&beside(&bundle, "models"), &[], &beside(&bundle, "list"), Some(&[1; 32])).expect("empty");
    let mut tick = || ControlFlow::Continue(());
    let request = PullRequest { repo: "org/tiny", revision: None, name: None, modelfile: None };
    let begun = Instant::now();
    mirror.faults(|_, _| Fault::Status(429));
    let error = library.plan_pull(&hub, request, &mut tick).expect_err("it is refused");
    assert_eq!(error.to_string(), "`127.0.0.1` answered with status 429");
    assert_eq!(mirror.take_log().len(), 2, "as often as the limit says");
    mirror.faults(|path, _| if path.ends_with(EXTRA) { Fault::Hang(9) } else { Fault::None });
    let plan = library.plan_pull(&hub, request, &mut tick).expect("it is listed");
    let error = library.pull(&hub, &plan, &mut |_| ControlFlow::Continue(())).expect_err("it hangs");
    assert!(matches!(error.hub(), Some(HubError::Connection { .. })), "{error}");
    // Whoever stops it is obeyed, and what was fetched is kept.
    mirror.faults(|_, _| Fault::None);
    let stop = |progress: tilekit::model_folder::Progress| match progress.done_bytes > 2 * CHUNK as u64 {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    let error = library.pull(&hub, &plan, &mut { stop }).expect_err("it is stopped");
    assert!(error.is_stopped(), "{error}");
    let kept = library.plan_pull(&hub, request, &mut tick).expect("it is listed").kept_bytes;
    assert!(kept >= CHUNK as u64, "{kept}");
    assert_eq!(library.list(), []);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn short_names_are_listed_with_what_they_need() {
    let bundle = TestBundle::new();
    let output = bundle.run(&["model", "list", "--available", "--json"]);
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON, without a passphrase");
    let row = rows.as_array().expect("a list").iter().find(|row| row["name"] == "qwen3-0.6b").expect("it is listed");
    assert_eq!((&row["source"], &row["unfinished"]), (&json!("mlx-community/Qwen3-0.6B-4bit"), &json!(false)));
    assert!(bundle.ok(&["model", "list", "--available"]).contains("gpt-oss-20b"));
    refused(&bundle.run(&["model", "pull", "qwen3-0.6b"]), 7, "`huggingface.co`");
}

#[test]
fn an_interrupted_pull_says_how_to_go_on() {
    let bundle = TestBundle::new();
    let mirror = mirror(&bundle);
    mirror.faults(|path, _| if path.ends_with(EXTRA) { Fault::Hang(CHUNK * 3 / 2) } else { Fault::None });
    let mut command = bundle.command();
    command.args(pull(&mirror, &["--allow-network", "--passphrase-file", bundle.passphrase()]));
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().expect("it runs");
    let record = bundle.root.join("models/pull+tiny.partial").join(format!("{EXTRA}.chunks"));
    while std::fs::metadata(&record).map_or(0, |file| file.len()) < 32 {
        assert!(child.try_wait().expect("it can be asked").is_none(), "it ended before it was interrupted");
        std::thread::yield_now();
    }
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.expect("kill is there").success());
    let output = child.wait_with_output().expect("it ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{errors}");
    assert!(errors.contains("What was fetched is kept: run the same command again to go on."), "{errors}");
    mirror.take_log();
    mirror.faults(|_, _| Fault::None);
    bundle.ok(&pull(&mirror, &["--allow-network"]));
    assert!(mirror.take_log().iter().any(|(name, at, _)| name == EXTRA && *at == CHUNK as u64));
}
