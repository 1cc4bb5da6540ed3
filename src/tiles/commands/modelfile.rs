//! `tiles modelfile`: check, format and explain.

use std::path::Path;

use serde_json::{Value, json};
use tilekit::disk;
use tilekit::modelfile::{MODELFILE_BYTES_MAX, Modelfile};

use crate::app::App;
use crate::args::ModelfileCommand;
use crate::failure::{Code, Failure};

/// Runs it.
pub(crate) fn run(app: &App, command: ModelfileCommand) -> Result<(), Failure> {
    match command {
        ModelfileCommand::Check { file } => check(app, &file),
        ModelfileCommand::Fmt { file, write } => {
            let modelfile = app.warned(Modelfile::from_bytes(&read(app, &file)?)?);
            let text = modelfile.to_canonical();
            if !write {
                return app.print(&json!({ "text": text }), || text.clone());
            }
            if file == Path::new("-") {
                return Err(Failure::new(Code::Usage, "standard input can't be written back", "leave `--write` out"));
            }
            disk::write(&file, &modelfile.encoding().encode(&text))?;
            app.terminal.say(&format!("{} is formatted", file.display()));
            Ok(())
        }
        ModelfileCommand::Explain { file } => {
            let modelfile = app.warned(Modelfile::from_bytes(&read(app, &file)?)?);
            let rows = modelfile.explain();
            let values: Vec<Value> =
                rows.iter().map(|row| json!({ "name": row.name, "value": row.value, "origin": row.origin })).collect();
            app.print(&json!(values), || {
                let line = |text: &str| crate::terminal::escape::neutralise_line(text).into_owned();
                rows.iter().map(|row| format!("{:<18} {:<40} {}\n", row.name, line(&row.value), row.origin)).collect()
            })
        }
    }
}

fn check(app: &App, file: &Path) -> Result<(), Failure> {
    match Modelfile::from_bytes(&read(app, file)?) {
        Ok(parsed) => {
            let warnings: Vec<String> = parsed.warnings.iter().map(ToString::to_string).collect();
            app.print(&json!({ "errors": [], "warnings": warnings }), || format!("{} is good", file.display()))?;
            app.warned(parsed);
            Ok(())
        }
        Err(diagnostics) => {
            if app.global.json {
                let errors: Vec<Value> = diagnostics
                    .0
                    .iter()
                    .map(|error| {
                        json!({ "line": error.line, "column": error.column, "message": error.message(),
                                "text": error.text, "expected": error.expected, "near": error.near })
                    })
                    .collect();
                app.print(&json!({ "errors": errors, "warnings": [] }), String::new)?;
            }
            Err(diagnostics.into())
        }
    }
}

fn read(app: &App, file: &Path) -> Result<Vec<u8>, Failure> {
    let bytes_max = MODELFILE_BYTES_MAX as u64;
    Ok(if file == Path::new("-") { app.read_input(bytes_max)? } else { disk::read_stream(file, bytes_max)? })
}
