//! `tiles config`: the settings in force and where each came from; and those that the bundle keeps.

use serde_json::{Value, json};
use tilekit::bundle::{Bundle, Preferences, Verified};
use tilekit::disk;
use tilekit::store::StoreError;

use crate::app::App;
use crate::args::{ColorChoice, ConfigCommand, RunArguments};
use crate::conversation::shipped;
use crate::failure::{Code, Failure};
use crate::terminal::Stream;

/// Where a setting that is kept with the person's data comes from.
const KEPT: &str = "`tiles config set`";

/// Runs it.
pub(crate) fn run(app: &App, command: ConfigCommand) -> Result<(), Failure> {
    let bundle = app.bundle()?;
    match command {
        ConfigCommand::Show => show(app, &bundle),
        ConfigCommand::Set { name, value } => change(app, &bundle, &name, Some(&value)),
        ConfigCommand::Unset { name } => change(app, &bundle, &name, None),
    }
}

fn change(app: &App, bundle: &Bundle<Verified>, name: &str, value: Option<&str>) -> Result<(), Failure> {
    let path = bundle.preferences();
    let changed = Preferences::read(&path)?.with(name, value)?;
    if bundle.is_read_only() {
        return Err(StoreError::ReadOnly { path }.into());
    }
    disk::create_folder(&bundle.data())?;
    changed.write(&path)?;
    app.print(&json!({ "name": name, "value": value }), || match value {
        Some(value) => format!("{name} is {value} now, on {}", bundle.noun()),
        None => format!("{name} isn't set any more, on {}", bundle.noun()),
    })?;
    app.terminal.say("See what is in force with `tiles config show`.");
    Ok(())
}

fn show(app: &App, bundle: &Bundle<Verified>) -> Result<(), Failure> {
    let preferences = Preferences::read(&bundle.preferences())?;
    let flag = |given: bool| if given { "flag" } else { "default" };
    let color = match (app.global.color == ColorChoice::Auto, app.environment.names_color, &preferences.color) {
        (false, ..) => "flag",
        (true, true, _) => "environment",
        (true, false, Some(_)) => KEPT,
        (true, false, None) => "the terminal",
    };
    let found = if app.global.bundle.is_some() { "flag" } else { app.found_by(bundle) };
    let mut rows: Vec<[String; 3]> = vec![
        ["bundle".into(), bundle.root().display().to_string(), found.into()],
        ["color".into(), app.terminal.has_color(Stream::Out).to_string(), color.into()],
        ["no_input".into(), app.global.no_input.to_string(), flag(app.global.no_input).into()],
        ["quiet".into(), app.global.quiet.to_string(), flag(app.global.quiet).into()],
    ];
    if let Some(relay) = &preferences.relay {
        rows.push(["relay".into(), relay.clone(), KEPT.into()]);
    }
    let arguments = RunArguments { model: preferences.model.clone(), ..RunArguments::default() };
    match (app.resolve(&shipped(bundle)?, &arguments), preferences.model) {
        (Ok(resolved), preferred) => {
            let origin = if preferred.is_some() { KEPT } else { "default" };
            rows.push(["model".into(), resolved.setup.model.clone(), origin.into()]);
            rows.extend(resolved.modelfile.explain().into_iter().filter(|row| row.name != "license").map(|row| {
                let origin = match row.origin.as_str() {
                    "default" => row.origin,
                    origin => format!("the model's Modelfile, {origin}"),
                };
                [row.name, row.value, origin]
            }));
        }
        // One that was added is known only when the bundle is unlocked.
        (Err(failure), Some(model)) if matches!(failure.code, Code::Model | Code::Locked) => {
            rows.push(["model".into(), model, KEPT.into()]);
        }
        // An installed Tiles has none but those that were added.
        (Err(failure), None) if failure.code == Code::Model => {
            rows.push(["model".into(), "none that came with it".into(), "default".into()]);
        }
        (Err(failure), _) => return Err(failure),
    }
    let shown: Vec<Value> =
        rows.iter().map(|[name, value, origin]| json!({ "name": name, "value": value, "origin": origin })).collect();
    app.print(&json!(shown), || {
        rows.iter().map(|[name, value, origin]| format!("{name:<18} {value:<40} {origin}\n")).collect()
    })
}
