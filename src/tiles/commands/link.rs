//! `tiles link`: other drives of the same person, linked by a code that one shows and the other is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tilekit::bundle::{Bundle, Verified};
use tilekit::peer::link::{Card, Digits};
use tilekit::peer::{
    self, Approver, LinkedDrive, LinkedDrives, Myself, PeerError, Target, Ticket, link_drive, mesh_keys,
};
use tilekit::store::StoreError;
use tilekit::time::Timestamp;

use super::account::check_nickname;
use super::sync::network;
use crate::app::App;
use crate::args::OnboardingArguments;
use crate::args::link::LinkCommand;
use crate::failure::{Code, Failure};
use crate::terminal::escape::neutralise_line;
use crate::terminal::style::paint;
use crate::terminal::{Stream, Terminal, TerminalError};
use crate::unlock::{NICKNAME, Open};

mod picture;

/// Runs it.
pub(crate) fn run(app: &App, command: LinkCommand) -> Result<(), Failure> {
    // What can't be a code is said before the passphrase is asked for.
    let target = match &command {
        LinkCommand::Enable { target: Some(text) } if Ticket::is_meant(text) => Some(Target::Ticket(text.parse()?)),
        LinkCommand::Enable { target: Some(text) } => Some(Target::Code(text.parse()?)),
        LinkCommand::Enable { target: None } if !app.terminal.is_interactive() => {
            let hint = "run it in a terminal without `--no-input`; the drive that comes with the code needs nobody";
            return Err(Failure::new(Code::Usage, "somebody must be asked before a drive is linked", hint));
        }
        _ => None,
    };
    let bundle = app.bundle()?;
    let open = app.unlock(&bundle, &OnboardingArguments::default())?;
    let outcome = match command {
        LinkCommand::Enable { .. } => enable(app, &bundle, &open, target),
        LinkCommand::ListPeers => list(app, &open),
        LinkCommand::Disable { drive, yes } => disable(app, &open, &drive, yes),
        LinkCommand::Rename { drive, name } => rename(app, &open, &drive, &name),
    };
    outcome.and(open.close())
}

fn enable(app: &App, bundle: &Bundle<Verified>, open: &Open, target: Option<Target>) -> Result<(), Failure> {
    if bundle.is_read_only() {
        return Err(StoreError::ReadOnly { path: bundle.database() }.into());
    }
    let nickname = open.store.setting(NICKNAME)?.unwrap_or_default();
    let myself = Myself { identity: &open.identity, nickname: &nickname, mesh_keys: mesh_keys(&open.store)? };
    let screen = Arc::new(Screen { terminal: Arc::clone(&app.terminal), interrupted: app.interrupt_flag() });
    let clock = &*app.clock;
    let me = open.identity.did();
    let mut keep = |card: &Card, keys: &[_]| peer::keep(&open.store, me, card, keys, clock.now());
    let network = network(app, bundle)?;
    let card = link_drive(target.as_ref(), network, &myself, &screen, clock, &mut keep)?;
    let name = shown(&card.nickname);
    app.terminal
        .say(&format!("Linked with {name}. `tiles link list-peers` lists all; `tiles link disable` takes it back."));
    app.print(&json!({ "linked": { "did": card.did.to_string(), "nickname": card.nickname } }), || {
        format!("linked  {name}\ndid     {}", card.did)
    })
}

fn list(app: &App, open: &Open) -> Result<(), Failure> {
    let drives = LinkedDrives::read(&open.store, open.identity.did())?;
    let json: Vec<Value> = drives.iter().map(json_of).collect();
    app.print(&json!(json), || {
        let mut text = String::new();
        for drive in drives.iter() {
            let time = |at: Option<Timestamp>| at.map_or_else(|| "never".into(), |at| at.to_string());
            text.push_str(&format!(
                "{}\n  did     {}\n  linked  {}\n  seen    {}\n  synced  {}\n",
                shown(drive.called()),
                drive.did,
                drive.linked_at,
                time(drive.seen_at),
                time(drive.synced_at)
            ));
        }
        text
    })?;
    if drives.iter().next().is_none() {
        app.terminal.say("No drive is linked. `tiles link enable` shows a code for another one.");
    }
    Ok(())
}

fn json_of(drive: &LinkedDrive) -> Value {
    let time = |at: Timestamp| at.to_string();
    json!({
        "did": drive.did.to_string(),
        "nickname": drive.nickname,
        "name": drive.name,
        "linked_at": time(drive.linked_at),
        "seen_at": drive.seen_at.map(time),
        "synced_at": drive.synced_at.map(time),
    })
}

fn disable(app: &App, open: &Open, text: &str, yes: bool) -> Result<(), Failure> {
    let drive = LinkedDrives::read(&open.store, open.identity.did())?.find(text)?.clone();
    let name = shown(drive.called());
    app.confirm(&format!("Link {name} ({}) no more?", drive.did), yes)?;
    peer::unlink(&open.store, open.identity.did(), drive.did, app.clock.now())?;
    app.print(&json!({ "disabled": drive.did.to_string() }), || format!("{name} is linked no more"))?;
    app.terminal.say(
        "What it received before stays on it: nobody can take that back. Your other linked drives learn of this with",
    );
    app.terminal.say("their next sync; until then they still take what it says.");
    Ok(())
}

fn rename(app: &App, open: &Open, text: &str, name: &str) -> Result<(), Failure> {
    let did = LinkedDrives::read(&open.store, open.identity.did())?.find(text)?.did;
    let name = (!name.is_empty()).then_some(name);
    name.map_or(Ok(()), check_nickname)?;
    peer::rename(&open.store, did, name)?;
    let drives = LinkedDrives::read(&open.store, open.identity.did())?;
    let called = drives.find(&did.to_string())?.called().to_owned();
    app.print(&json!({ "did": did.to_string(), "name": name }), || format!("{did} is {} now", shown(&called)))
}

/// A name as it can be shown: what steers a terminal is marked, and no name is said so.
fn shown(name: &str) -> String {
    if name.trim().is_empty() { "(no name)".into() } else { neutralise_line(name).into_owned() }
}

/// The terminal of the drive that links.
struct Screen {
    terminal: Arc<Terminal>,
    interrupted: Arc<AtomicBool>,
}

impl Screen {
    fn strong(&self, text: &str) -> String {
        paint(self.terminal.styles(Stream::Err).bold, text)
    }
}

impl Approver for Screen {
    fn show_offer(&self, ticket: &Ticket, is_new: bool) {
        let say = |line: &str| self.terminal.say(line);
        let text = ticket.to_text();
        if is_new {
            say("\nThat code is spent. This is a new one:");
        }
        if let Some(picture) = picture::of(&text, &self.terminal) {
            say(&format!("\n{picture}"));
        }
        say("\nWhere the code below doesn't find this drive, type the ticket in its place:\n");
        say(&format!("{text}\n"));
        say("On the other drive, in the same network, run:\n");
        say(&format!("    {}\n", self.strong(&format!("tiles link enable {}", ticket.code.to_text()))));
        say(&format!("Waiting until {}; the code is good for one link. Ctrl-C ends it.", ticket.expires_at));
    }

    fn approve(&self, card: &Card, digits: Digits) -> Result<bool, PeerError> {
        let name = shown(&card.nickname);
        self.terminal.say(&format!("\nA drive came with the code:\n\n    name    {name}\n    did     {}", card.did));
        self.terminal.say(&format!("    digits  {}\n", self.strong(&digits.to_string())));
        self.terminal.say("The other screen must show the same digits.");
        let question =
            format!("{name} ({}) will receive all sessions and memory of this drive. Link it?", card.did.short());
        match self.terminal.confirm(&question, "a terminal") {
            Ok(answer) => Ok(answer),
            Err(TerminalError::Interrupted) => Err(PeerError::Interrupted),
            // Who can't be asked hasn't said yes.
            Err(_) => Ok(false),
        }
    }

    fn show_digits(&self, card: &Card, digits: Digits) {
        let name = shown(&card.nickname);
        self.terminal.say(&format!("Found:\n\n    name    {name}\n    did     {}", card.did));
        self.terminal.say(&format!("    digits  {}\n", self.strong(&digits.to_string())));
        self.terminal.say("The other screen must show the same digits. Say yes there; this drive waits.");
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}
