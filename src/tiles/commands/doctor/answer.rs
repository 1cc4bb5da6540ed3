//! A child of the program that answers with the model: in a place without any network, for `tiles doctor --offline`.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use tilekit::bundle::{Bundle, Verified};
use tilekit::disk;

use super::Finding;
use crate::app::App;
use crate::failure::Failure;

/// What the child is asked, and how much of an answer is enough.
const QUESTION: [&str; 7] =
    ["run", "--prompt", "Say hello.", "--no-save", "--no-input", "--json", "--set=num_predict=16"];
/// Says which network the child is in and which interfaces that has, then becomes the child.
const SCRIPT: &str = "readlink /proc/self/ns/net; grep -c : /proc/net/dev; exec \"$0\" \"$@\"";
/// Where Linux says in which network a process is.
const NETWORK: &str = "/proc/self/ns/net";
/// Forbids every use of the network, by macOS' own sandbox.
const SANDBOX: &str = "(version 1)(allow default)(deny network*)";

/// Lets the program answer, as `command` starts it.
fn ask(app: &App, bundle: &Bundle<Verified>, mut command: Command) -> Option<Output> {
    command.args(QUESTION).arg("--bundle").arg(bundle.root()).stdin(Stdio::null());
    let _spinner = app.terminal.spinner("Letting the model answer");
    command.output().ok()
}

/// Lets the program answer as it is, and says whether it did.
pub(super) fn plain(app: &App, bundle: &Bundle<Verified>) -> bool {
    let answer = ask(app, bundle, Command::new(&app.environment.executable));
    answer.is_some_and(|output| output.status.success() && text_of(&output.stdout).is_some())
}

/// The text of an answer in JSON.
fn text_of(printed: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(printed).ok()?;
    value["text"].as_str().map(str::to_owned)
}

/// Proves that the program answers without a network, or says why that can't be proved here.
pub(super) fn offline(app: &App, bundle: &Bundle<Verified>) -> Result<Finding, Failure> {
    Ok(if cfg!(target_os = "macos") { in_sandbox(app, bundle) } else { in_namespace(app, bundle)? })
}

fn in_namespace(app: &App, bundle: &Bundle<Verified>) -> Result<Finding, Failure> {
    let program = ["/usr/bin/unshare", "/bin/unshare"].into_iter().find(|path| disk::exists(Path::new(path)));
    let Some(program) = program else {
        return Ok(unproved("this system has no `unshare`"));
    };
    let ours = disk::link_target(Path::new(NETWORK))?.display().to_string();
    // As an ordinary user a network of one's own needs a user namespace; for root it may be forbidden, and isn't needed.
    for flags in [&["--user", "--map-root-user", "--net"][..], &["--net"]] {
        let mut command = Command::new(program);
        command.args(flags).args(["--", "/bin/sh", "-c", SCRIPT]).arg(&app.environment.executable);
        let Some(output) = ask(app, bundle, command) else { continue };
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut lines = printed.splitn(3, '\n');
        let (Some(network), Some(interfaces), Some(answer)) = (lines.next(), lines.next(), lines.next()) else {
            continue;
        };
        // Nothing but the loopback, which is down, and not the network that this process is in.
        if network == ours || interfaces != "1" {
            continue;
        }
        return Ok(match text_of(answer.as_bytes()).filter(|_| output.status.success()) {
            Some(_) => Finding::ok(
                "offline",
                format!("proved: a child in a network of its own, without any way out ({network}), answered"),
            ),
            None => Finding::bad(
                "offline",
                format!("a child without any network didn't answer: {}", first_line(&output.stderr)),
                "see whether `tiles -p hello --no-save` answers at all",
            ),
        });
    }
    Ok(unproved("this system doesn't allow a network namespace"))
}

fn in_sandbox(app: &App, bundle: &Bundle<Verified>) -> Finding {
    let mut command = Command::new("/usr/bin/sandbox-exec");
    command.args(["-p", SANDBOX]).arg(&app.environment.executable);
    match ask(app, bundle, command) {
        Some(output) if output.status.success() && text_of(&output.stdout).is_some() => {
            Finding::ok("offline", "proved: a child that `sandbox-exec` denied every use of the network answered")
        }
        Some(output) => Finding::bad(
            "offline",
            format!("a child without any network didn't answer: {}", first_line(&output.stderr)),
            "see whether `tiles -p hello --no-save` answers at all",
        ),
        None => unproved("this system has no `sandbox-exec`"),
    }
}

fn unproved(why: &str) -> Finding {
    let advice = "switch the network off, and see that Tiles answers";
    Finding::warn("offline", format!("not proved: {why}"), advice)
}

fn first_line(errors: &[u8]) -> String {
    String::from_utf8_lossy(errors).lines().next().unwrap_or("it said nothing").to_owned()
}
