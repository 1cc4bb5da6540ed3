//! `tiles model send` and `tiles model receive`: a model from one linked drive to another, over the local network.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;
use tilekit::bundle::{Bundle, Verified};
use tilekit::did::Did;
use tilekit::library::{HandedModel, Library};
use tilekit::peer::LinkedDrives;
use tilekit::sync::{Handover, SyncError, give_model, model_offers, store_folder, take_model};

use super::{size, with_progress};
use crate::app::App;
use crate::args::sync::SyncTarget;
use crate::commands::sync::plan;
use crate::failure::{Code, Failure};
use crate::terminal::Terminal;
use crate::terminal::escape::neutralise_line;
use crate::terminal::progress::Progress;
use crate::unlock::Open;

fn called(drives: &LinkedDrives, did: &Did) -> String {
    drives.of(did).map_or_else(|| did.short(), |drive| neutralise_line(drive.called()).into_owned())
}

/// The terminal.
struct Screen {
    terminal: Arc<Terminal>,
    interrupted: Arc<AtomicBool>,
    drives: LinkedDrives,
    bar: Mutex<Option<Progress>>,
    /// What is said once it waits.
    waits: String,
}

impl Screen {
    fn show(&self, bar: Option<Progress>) {
        *self.bar.lock().unwrap_or_else(PoisonError::into_inner) = bar;
    }

    fn say(&self, line: &str) {
        self.show(None);
        self.terminal.say(line);
    }
}

impl Handover for Screen {
    fn waiting(&self, port: Option<u16>) {
        let port = port.map(|port| format!(", on UDP port {port}")).unwrap_or_default();
        self.say(&format!("{}{port}.", self.waits));
        self.show(Some(self.terminal.spinner("Waiting; Ctrl-C ends it")));
    }

    fn bytes(&self, bytes: u64) {
        if let Some(bar) = &*self.bar.lock().unwrap_or_else(PoisonError::into_inner) {
            bar.set(bytes);
        }
    }

    fn asked(&self, peer: Did) {
        self.say(&format!("{} is there.", called(&self.drives, &peer)));
        self.show(Some(self.terminal.spinner("Giving; Ctrl-C ends it")));
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

/// Gives a model.
pub(super) fn send(
    app: &App,
    bundle: &Bundle<Verified>,
    open: &Open,
    library: &Library,
    name: &str,
    with: &SyncTarget,
) -> Result<(), Failure> {
    let (plan, drives) = plan(app, bundle, open, with)?;
    let (model, folder) = library.handed(name)?;
    let bytes = model.bytes();
    let waits = format!("Waiting with {name} ({}): run `tiles model receive` on the other drive", size(bytes));
    let screen = screen(app, drives, waits);
    screen.show(Some(app.terminal.progress("Examining", bytes)));
    let scratch = bundle.models().join(format!("give+{name}.partial"));
    let handover: Arc<dyn Handover> = Arc::clone(&screen) as _;
    let clock = Arc::clone(&app.clock);
    let given = give_model(&open.store, &open.identity, &plan, (model, &folder, &scratch), clock, &handover);
    screen.show(None);
    let peer = given?;
    let shown = called(&screen.drives, &peer);
    app.print(&json!({ "sent": name, "to": peer.to_string(), "size_bytes": bytes }), || {
        format!("{shown} has {name} now")
    })
}

fn screen(app: &App, drives: LinkedDrives, waits: String) -> Arc<Screen> {
    let (terminal, interrupted) = (Arc::clone(&app.terminal), app.interrupt_flag());
    Arc::new(Screen { terminal, interrupted, drives, bar: Mutex::default(), waits })
}

/// Lists what linked drives give now.
pub(super) fn list(
    app: &App,
    bundle: &Bundle<Verified>,
    open: &Open,
    library: &Library,
    wait: u64,
) -> Result<(), Failure> {
    let (plan, drives) = plan(app, bundle, open, &SyncTarget { drive: None, wait, at: None })?;
    let screen = screen(app, drives, format!("Looking for linked drives that give a model, for {wait} s"));
    let handover: Arc<dyn Handover> = Arc::clone(&screen) as _;
    let mut offers = Vec::new();
    let looked = model_offers(&open.store, &open.identity, &plan, Arc::clone(&app.clock), &handover, |peer, offer| {
        offers.push((peer, offer.model));
    });
    screen.show(None);
    looked?;
    // A model may be here under the same name and be another one: the digests say what it is.
    let is_here = |model: &HandedModel| {
        library.find(&model.name).is_ok_and(|found| {
            let found: Vec<_> = found.entries().iter().map(|entry| entry.sha256).collect();
            model.files.iter().all(|(_, _, sha256)| found.contains(sha256))
        })
    };
    let rows: Vec<_> = offers
        .iter()
        .map(|(peer, model)| {
            json!({ "name": model.name, "size_bytes": model.bytes(), "source": model.source, "licence": model.licence,
                    "from": peer.to_string(), "is_here": is_here(model) })
        })
        .collect();
    app.print(&json!(rows), || {
        let row = |(peer, model): &(Did, HandedModel)| {
            let licence = neutralise_line(model.licence.as_deref().unwrap_or("?")).into_owned();
            let here = if is_here(model) { "  is here too" } else { "" };
            let (name, from) = (neutralise_line(&model.name), called(&screen.drives, peer));
            format!("{name:<28} {:>9}  {licence:<12} from {from}{here}\n", size(model.bytes()))
        };
        offers.iter().map(row).collect()
    })?;
    app.terminal.say(if offers.is_empty() {
        "No linked drive gives a model now: run `tiles model send NAME` there."
    } else {
        "Take one with `tiles model receive DRIVE`."
    });
    Ok(())
}

/// Takes a model.
pub(super) fn receive(
    app: &App,
    bundle: &Bundle<Verified>,
    open: &Open,
    library: Library,
    (with, name, yes): (&SyncTarget, Option<&str>, bool),
) -> Result<(), Failure> {
    let (plan, drives) = plan(app, bundle, open, with)?;
    let screen = screen(app, drives, "Looking for a linked drive that gives a model".into());
    let handover: Arc<dyn Handover> = Arc::clone(&screen) as _;
    let (library, planned) = (RefCell::new(library), RefCell::new(None));
    let choose = |offered: &tilekit::sync::Offered| {
        screen.show(None);
        let model = &offered.offer.model;
        let plan = library.borrow().plan_handed(model, name)?;
        ask(app, &called(&screen.drives, &offered.peer), model, &plan.name, yes)?;
        let wanted = plan.files.iter().map(|file| file.path.clone()).collect();
        let folder = library.borrow().begin_handed(&plan)?;
        screen.show(Some(app.terminal.progress("Receiving", plan.bytes())));
        *planned.borrow_mut() = Some(plan);
        Ok(Some((wanted, folder)))
    };
    let adopt = || {
        screen.show(None);
        let planned = planned.borrow();
        let plan = planned.as_ref().ok_or(SyncError::Declined)?;
        let mut library = library.borrow_mut();
        // What iroh-blobs kept has done its part, and would be found in the model's folder.
        tilekit::disk::remove_folder(&store_folder(&library.begin_handed(plan)?))?;
        with_progress(app, |sink| library.adopt_handed(plan, sink)).map(drop)
    };
    let clock = Arc::clone(&app.clock);
    let taken = take_model(&open.store, &open.identity, &plan, clock, &handover, choose, adopt);
    screen.show(None);
    let peer = taken.inspect_err(|failure: &Failure| {
        if planned.borrow().is_some() && failure.code != Code::Integrity {
            app.terminal.say("What came is kept: run the same command again to go on.");
        }
    })?;
    let planned = planned.borrow();
    let name = planned.as_ref().map_or("", |plan| plan.name.as_str());
    let bytes = library.borrow().find(name)?.size_bytes();
    app.print(&json!({ "name": name, "size_bytes": bytes, "from": peer.to_string() }), || {
        format!("{name} is on the drive ({})", size(bytes))
    })?;
    app.terminal.say(&format!("Try it: tiles run {name}"));
    Ok(())
}

fn ask(app: &App, from: &str, model: &HandedModel, name: &str, yes: bool) -> Result<(), Failure> {
    let licence = model.licence.as_deref().unwrap_or("licence unknown");
    let question = format!(
        "{from} gives {} ({}, {}), called {name} here. Take it?",
        neutralise_line(&model.source),
        size(model.bytes()),
        neutralise_line(licence)
    );
    app.confirm(&question, yes)
}
