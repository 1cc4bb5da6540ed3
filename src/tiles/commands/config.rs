//! `tiles config show`: the settings in force, and where each came from.

use serde_json::{Value, json};

use crate::app::App;
use crate::args::{ColorChoice, RunArguments};
use crate::conversation::shipped;
use crate::failure::Failure;
use crate::terminal::Stream;

/// Runs it.
pub(crate) fn run(app: &App) -> Result<(), Failure> {
    let bundle = app.bundle()?;
    let resolved = app.resolve(&shipped(&bundle)?, &RunArguments::default())?;
    let flag = |given: bool| if given { "flag" } else { "default" };
    let color = if app.global.color == ColorChoice::Auto { "environment or terminal" } else { "flag" };
    let found = if app.global.bundle.is_some() { "flag" } else { "the folder around the program" };
    let mut rows: Vec<[String; 3]> = vec![
        ["bundle".into(), bundle.root().display().to_string(), found.into()],
        ["color".into(), app.terminal.has_color(Stream::Out).to_string(), color.into()],
        ["no_input".into(), app.global.no_input.to_string(), flag(app.global.no_input).into()],
        ["quiet".into(), app.global.quiet.to_string(), flag(app.global.quiet).into()],
        ["model".into(), resolved.setup.model.clone(), "the bundle".into()],
    ];
    rows.extend(resolved.modelfile.explain().into_iter().filter(|row| row.name != "license").map(|row| {
        let origin =
            if row.origin == "default" { row.origin } else { format!("the model's Modelfile, {}", row.origin) };
        [row.name, row.value, origin]
    }));
    let shown: Vec<Value> =
        rows.iter().map(|[name, value, origin]| json!({ "name": name, "value": value, "origin": origin })).collect();
    app.print(&json!(shown), || {
        rows.iter().map(|[name, value, origin]| format!("{name:<18} {value:<40} {origin}\n")).collect()
    })
}
