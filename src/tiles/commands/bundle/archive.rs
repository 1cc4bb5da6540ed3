//! `tiles bundle export` and `import`: a bundle as one file.

use std::io::{self, Write};
use std::path::Path;

use serde_json::json;
use tilekit::bundle::moving::{self, Rules, archive_bytes_max};

use super::create::would;
use super::{sealed_by, size, warn_of_memory, with_bars};
use crate::app::App;
use crate::args::Landing;
use crate::failure::{Code, Failure};
use crate::terminal::{Stream, TerminalError};

/// Writes the archive.
pub(super) fn export(app: &App, file: &Path) -> Result<(), Failure> {
    let bundle = app.drive()?;
    let total = bundle.manifest().files.iter().map(|entry| entry.size).sum();
    if file.as_os_str() == "-" {
        if app.terminal.is_terminal(Stream::Out) {
            let hint = "send it into a file or another program";
            return Err(Failure::new(Code::Usage, "an archive isn't for a terminal", hint));
        }
        let mut out = Output { closed: false };
        let written =
            with_bars(app, total, |sink| moving::export(&bundle, &mut out, Path::new("standard output"), sink));
        return match (out.closed, written) {
            (true, _) => Err(TerminalError::Closed.into()),
            (false, written) => {
                let report = written?;
                app.terminal.say(&format!("{} written, SHA-256 {}", size(report.bytes), report.sha256));
                Ok(())
            }
        };
    }
    let report = with_bars(app, total, |sink| moving::export_file(&bundle, file, sink))?;
    report.medium.into_iter().for_each(|medium| warn_of_memory(app, medium));
    let shown = file.display().to_string();
    let (bytes, sha256) = (report.bytes, report.sha256.to_string());
    let json = json!({ "file": shown, "bytes": bytes, "sha256": sha256, "bytes_max": archive_bytes_max(&bundle) });
    app.print(&json, || format!("{sha256}  {shown}"))?;
    app.terminal.say(&format!("{} written and read back; your data isn't in it.", size(bytes)));
    app.terminal.say("Make a bundle of it: tiles bundle import FILE FOLDER");
    Ok(())
}

/// Makes a bundle of an archive.
pub(super) fn import(app: &App, file: &Path, dest: &Path, landing: Landing) -> Result<(), Failure> {
    let rules = Rules { replace: landing.replace, allow_older: landing.allow_older, with_data: false };
    let (archive, plan) = moving::preview(file, dest, App::trust(), rules)?;
    let seal = sealed_by(&archive);
    if landing.dry_run {
        return would(app, &plan, "make");
    }
    let total = plan.bytes;
    let (made, medium) = with_bars(app, total, |sink| moving::import(&archive, plan, sink))?;
    warn_of_memory(app, medium);
    let root = made.root().display().to_string();
    let json = json!({ "bundle": root, "bytes": total, "seal": seal, "generation": made.seal_mark().generation,
                       "read_back": true });
    app.print(&json, || format!("{root} is a bundle ({}), and was read back; {seal}", size(total)))?;
    app.terminal.say("Start it there with `./tiles`.");
    Ok(())
}

/// Standard output, which is bytes here.
struct Output {
    closed: bool,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = io::stdout().write(bytes);
        self.closed |= written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe);
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}
