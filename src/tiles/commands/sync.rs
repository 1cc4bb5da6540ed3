//! `tiles sync`: the same sessions on all linked drives.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tilekit::bundle::{Bundle, Preferences, Verified};
use tilekit::did::Did;
use tilekit::hint::Hint as _;
use tilekit::peer::{LinkedDrives, Network, Relay};
use tilekit::store::StoreError;
use tilekit::sync::{self, Amount, Outcome, Plan, Report, SyncError, Watcher};

use crate::app::App;
use crate::args::OnboardingArguments;
use crate::args::sync::{SyncArguments, SyncTarget};
use crate::failure::{Code, Failure};
use crate::terminal::Terminal;
use crate::terminal::escape::neutralise_line;
use crate::terminal::progress::Progress as Spinner;
use crate::unlock::Open;

/// Runs it.
pub(crate) fn run(app: &App, arguments: &SyncArguments) -> Result<(), Failure> {
    let bundle = app.bundle()?;
    let open = app.unlock(&bundle, &OnboardingArguments::default())?;
    let (plan, drives) = plan(app, &bundle, &open, &arguments.with)?;
    let plan = Plan { watch: arguments.watch, ..plan };
    let screen = Arc::new(Screen {
        names: Mutex::new(names(&drives)),
        terminal: Arc::clone(&app.terminal),
        interrupted: app.interrupt_flag(),
        watch: arguments.watch,
        began: Instant::now(),
        spinner: Mutex::default(),
        told: Mutex::default(),
    });
    let clock = Arc::clone(&app.clock);
    let watcher: Arc<dyn Watcher> = Arc::clone(&screen) as _;
    let outcomes = sync::sync_drives(&open.store, &open.identity, plan, clock, watcher);
    screen.clear();
    let outcomes = outcomes?;
    // Who was linked by what came has a name now.
    *screen.names() = names(&LinkedDrives::read(&open.store, open.identity.did())?);
    report(app, &screen, outcomes).and(open.close())
}

/// With whom, and how.
pub(super) fn plan(
    app: &App,
    bundle: &Bundle<Verified>,
    open: &Open,
    with: &SyncTarget,
) -> Result<(Plan, LinkedDrives), Failure> {
    if with.at.is_some() && with.drive.is_none() {
        let hint = "name it before: `DRIVE --at 192.168.1.20:50123`";
        return Err(Failure::new(Code::Usage, "`--at` says where one drive is, so that drive must be named", hint));
    }
    if bundle.is_read_only() {
        return Err(StoreError::ReadOnly { path: bundle.database() }.into());
    }
    let drives = LinkedDrives::read(&open.store, open.identity.did())?;
    let only = with.drive.as_deref().map(|text| drives.find(text)).transpose()?.map(|drive| drive.did);
    if drives.iter().next().is_none() {
        let hint = "link one first: `tiles link enable` shows a code for it";
        return Err(Failure::new(Code::Failure, "no drive is linked, so there is nobody to talk with", hint));
    }
    let network = network(app, bundle)?;
    let patience = Duration::from_secs(with.wait);
    Ok((Plan { only, at: with.at, watch: false, patience, network }, drives))
}

/// What may be used of the network; says so where that is more than the local one.
pub(super) fn network(app: &App, bundle: &Bundle<Verified>) -> Result<Network, Failure> {
    let relay = Preferences::read(&bundle.preferences())?.relay.map(|text| text.parse::<Relay>()).transpose()?;
    if let Some(relay) = &relay {
        app.terminal.say(&format!("Using the relay {} too.", neutralise_line(&relay.to_string())));
    }
    Ok(Network { relay, ..Network::default() })
}

fn names(drives: &LinkedDrives) -> HashMap<Did, String> {
    drives.iter().map(|drive| (drive.did, neutralise_line(drive.called()).into_owned())).collect()
}

fn report(app: &App, screen: &Screen, outcomes: Vec<Outcome>) -> Result<(), Failure> {
    let any_synced = outcomes.iter().any(|outcome| outcome.is_synced);
    if any_synced {
        let json: Vec<Value> = outcomes.iter().map(|outcome| json_of(screen, outcome)).collect();
        app.print(&json!(json), || {
            let met = outcomes.iter().filter(|outcome| outcome.is_synced || outcome.report.rounds > 0);
            met.map(|outcome| format!("{}\n", sentence(&screen.name(&outcome.peer), &outcome.report))).collect()
        })?;
    }
    let mut last = None;
    for outcome in outcomes.into_iter().filter(|outcome| !outcome.is_synced) {
        let name = screen.name(&outcome.peer);
        match outcome.error {
            Some(error) if any_synced => app.terminal.warn(&format!("{name}: {error}")),
            Some(error) => last = Some(error),
            None => app.terminal.say(&format!("{name} wasn't there.")),
        }
    }
    match last {
        _ if any_synced => Ok(()),
        Some(error) => Err(error.into()),
        None => {
            let hint = "run `tiles sync` on the other machine at the same time, in the same network; where that carries no \
                        announcements, `--at` says where it is";
            Err(Failure::new(Code::Failure, "no linked drive was met", hint))
        }
    }
}

/// `1 message`, `2 messages`.
fn counted(count: u64, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}

fn sentence(name: &str, report: &Report) -> String {
    let Report { received, sessions, sent, .. } = report;
    if received.ops + sent.ops == 0 {
        return format!("{name} has the same as this drive");
    }
    format!(
        "received {} in {} from {name}, sent {}",
        counted(received.messages, "message"),
        counted(*sessions, "session"),
        counted(sent.messages, "message")
    )
}

fn json_of(screen: &Screen, outcome: &Outcome) -> Value {
    let Outcome { peer, report, is_synced, error } = outcome;
    let amount =
        |amount: &Amount| json!({ "operations": amount.ops, "messages": amount.messages, "bytes": amount.bytes });
    json!({
        "did": peer.to_string(),
        "name": screen.name(peer),
        "synced": is_synced,
        "received": amount(&report.received),
        "sessions": report.sessions,
        "sent": amount(&report.sent),
        "refused": report.refused,
        "forked": report.forked.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "new_epoch": report.has_new_epoch,
        "rounds": report.rounds,
        "seconds": report.took.as_secs_f64(),
        "error": error.as_ref().map(ToString::to_string),
    })
}

/// The terminal, which is told by the threads of the exchanges.
struct Screen {
    names: Mutex<HashMap<Did, String>>,
    terminal: Arc<Terminal>,
    interrupted: Arc<AtomicBool>,
    watch: bool,
    began: Instant,
    spinner: Mutex<Option<Spinner>>,
    /// What was said of each drive last.
    told: Mutex<HashMap<Did, String>>,
}

impl Screen {
    fn names(&self) -> MutexGuard<'_, HashMap<Did, String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self, peer: &Did) -> String {
        self.names().get(peer).cloned().unwrap_or_else(|| peer.short())
    }

    fn spinner(&self) -> MutexGuard<'_, Option<Spinner>> {
        self.spinner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clear(&self) {
        *self.spinner() = None;
    }

    fn turn(&self, label: String) {
        let mut spinner = self.spinner();
        match &*spinner {
            Some(spinner) => spinner.label(label),
            None => *spinner = Some(self.terminal.spinner(&label)),
        }
    }

    fn say(&self, line: &str) {
        self.clear();
        self.terminal.say(line);
    }

    fn wait_for_others(&self) {
        let rest = if self.watch { "Ctrl-C ends it" } else { "Ctrl-C ends the wait" };
        self.turn(format!("Looking for linked drives; {rest}"));
    }
}

impl Watcher for Screen {
    fn waiting(&self, port: Option<u16>, drives: usize) {
        let port = port.map(|port| format!(" on UDP port {port}")).unwrap_or_default();
        let drives = counted(drives as u64, "linked drive");
        self.say(&format!("Waiting{port} for {drives}: run `tiles sync` there too."));
        self.wait_for_others();
    }

    fn met(&self, peer: Did) {
        self.turn(format!("{}: comparing", self.name(&peer)));
    }

    fn progress(&self, progress: &sync::Progress) {
        let sync::Progress { peer, received, to_receive, sent, to_send } = *progress;
        let (done, all) = (received + sent, to_receive.saturating_add(to_send));
        if all == 0 {
            return;
        }
        let left = match done {
            0 => String::new(),
            done => {
                let seconds = self.began.elapsed().as_secs_f64() * (all.saturating_sub(done)) as f64 / done as f64;
                format!(", {seconds:.0} s left")
            }
        };
        let name = self.name(&peer);
        self.turn(format!("{name}: received {received} of {to_receive} operations, sent {sent} of {to_send}{left}"));
    }

    fn indexing(&self, waiting: u64) {
        self.turn(format!("Making {} searchable", counted(waiting, "message")));
    }

    fn ended(&self, peer: Did, report: &Report, error: Option<&SyncError>) {
        let name = self.name(&peer);
        if error.is_none() {
            self.told.lock().unwrap_or_else(PoisonError::into_inner).remove(&peer);
        }
        match error {
            // The end of the command says it all; where there is no end, each is said.
            None if self.watch && report.received.ops + report.sent.ops > 0 => self.say(&sentence(&name, report)),
            None => {}
            Some(error) if self.watch => {
                let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
                let line = format!("{name}: {error}{hint}");
                // The same again and again would push the rest off the screen.
                let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
                if told.insert(peer, line.clone()).as_deref() != Some(line.as_str()) {
                    self.say(&line);
                }
            }
            Some(_) => {}
        }
        for log in &report.forked {
            self.say(&format!(
                "{name}: the log {log} goes two ways: that drive was copied, and both copies were used. Nothing is lost; once both \
                 have synced, each goes on under a log of its own, and all drives have what both say."
            ));
        }
        if report.has_new_epoch {
            self.say(
                "A copy of this drive has written other things under the same identity, or a backup was put back here. Nothing is \
                 lost: what this drive says goes on under a log of its own.",
            );
        }
        for (why, count) in &report.refused {
            self.say(&format!("{name}: {} of operations refused: {why}", counted(*count, "run")));
        }
        self.wait_for_others();
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}
