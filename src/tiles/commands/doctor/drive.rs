//! What the drive gives: file system, space, speed, who has it, backups, what cut commands left.

use tilekit::bundle::{Bundle, LastExit, LockState, Unfinished, Verified};
use tilekit::disk::volume::{Volume, read_speed};
use tilekit::disk::{FAT32_FILE_BYTES_MAX, is_fat_name};
use tilekit::store::{Store, backups};
use tilekit::time::Timestamp;

use super::Finding;
use crate::app::App;
use crate::commands::size;
use crate::failure::Failure;

/// Below this much space nothing but a few conversations fits.
const SPACE_LOW_BYTES: u64 = 100 << 20;
/// Below this speed, in bytes a second, loading a model takes long.
const SPEED_LOW: f64 = 20e6;
/// A backup older than this is told, in milliseconds: two weeks.
const BACKUP_OLD_MS: i64 = 14 * 24 * 3_600_000;

/// Looks at the drive.
pub(super) fn findings(app: &App, bundle: &Bundle<Verified>) -> Result<Vec<Finding>, Failure> {
    let volume = Volume::of(bundle.root())?;
    let mut findings = vec![file_system(&volume), space(&volume, bundle)];
    findings.extend(speed(bundle));
    findings.extend(holder(bundle)?);
    findings.push(backup(app, bundle)?);
    findings.push(leftovers(bundle)?);
    if Store::has_unfinished_recovery(&bundle.database()) {
        findings.push(Finding::bad("recovery", "it was cut before its end", "finish it with `tiles data recover`"));
    }
    Ok(findings)
}

fn file_system(volume: &Volume) -> Finding {
    let name = volume.file_system.as_deref().unwrap_or("unknown to this system");
    match name {
        name if is_fat_name(name) => {
            let text = format!("{name}: no file past {}", size(FAT32_FILE_BYTES_MAX));
            Finding::warn("drive", text, "exFAT takes larger files; models from elsewhere may need it")
        }
        _ => Finding::ok("drive", format!("{name}, {} in all", size(volume.total_bytes))),
    }
}

fn space(volume: &Volume, bundle: &Bundle<Verified>) -> Finding {
    let free = size(volume.free_bytes);
    if volume.is_read_only || bundle.is_read_only() {
        let text = format!("write-protected: nothing is saved here ({free} free)");
        return Finding::warn("space", text, "slide the drive's lock open to keep what is said");
    }
    if volume.free_bytes < SPACE_LOW_BYTES {
        return Finding::warn(
            "space",
            format!("{free} free"),
            "make room: `tiles data` and `tiles model list` show what is large",
        );
    }
    Finding::ok("space", format!("{free} free, and it can be written"))
}

/// How fast the largest file of the bundle is read.
fn speed(bundle: &Bundle<Verified>) -> Option<Finding> {
    let largest = bundle.manifest().files.iter().max_by_key(|entry| entry.size)?;
    Some(match read_speed(&bundle.root().join(&largest.path)) {
        Ok(speed) if speed < SPEED_LOW => {
            let text = format!("{:.0} MB/s read from `{}`", speed / 1e6, largest.path);
            Finding::warn("speed", text, "use another port, USB 3 or better, or a faster drive: loading takes long")
        }
        Ok(speed) => Finding::ok("speed", format!("{:.0} MB/s read from `{}`", speed / 1e6, largest.path)),
        Err(error) => {
            Finding::bad("speed", error.to_string(), "plug the drive in again; run `tiles bundle verify --full`")
        }
    })
}

/// Who has the bundle, and how it was left.
fn holder(bundle: &Bundle<Verified>) -> Result<Vec<Finding>, Failure> {
    let by = |holder: Option<tilekit::bundle::Holder>| holder.map_or("somebody".into(), |holder| holder.to_string());
    Ok(match bundle.lock_state()? {
        LockState::Held(holder) => vec![Finding::ok("lock", format!("held by {}", by(holder)))],
        LockState::Free(LastExit::Clean) => vec![Finding::ok("lock", "free, and it was closed properly last time")],
        LockState::Free(LastExit::Unclean(holder)) => vec![Finding::warn(
            "lock",
            format!("free, but it wasn't closed properly by {}", by(holder)),
            "unlock it once, with `tiles account`: the database is checked then",
        )],
    })
}

fn backup(app: &App, bundle: &Bundle<Verified>) -> Result<Finding, Failure> {
    let all = backups(&bundle.backups())?;
    let Some(newest) = all.first() else {
        return Ok(match tilekit::disk::exists(&bundle.database()) {
            false => Finding::ok("backups", "none yet: nothing was said"),
            true => Finding::warn("backups", "none yet", "make one with `tiles data backup`"),
        });
    };
    let age = app.clock.now().as_ms() - newest.made_at.as_ms();
    let text = format!("{}, the newest {} ({})", all.len(), ago(age), Timestamp::to_string(&newest.made_at));
    Ok(match age > BACKUP_OLD_MS {
        true => Finding::warn("backups", text, "one is made when you next say something, or by `tiles data backup`"),
        false => Finding::ok("backups", text),
    })
}

/// An age in milliseconds, for people.
fn ago(ms: i64) -> String {
    match ms / 60_000 {
        minutes @ ..0 => format!("{} minutes in the future, by this clock", -minutes),
        minutes @ 0..120 => format!("{minutes} minutes old"),
        minutes @ 120..2880 => format!("{} hours old", minutes / 60),
        minutes => format!("{} days old", minutes / 1440),
    }
}

fn leftovers(bundle: &Bundle<Verified>) -> Result<Finding, Failure> {
    let left = bundle.leftovers()?;
    if left.is_empty() {
        return Ok(Finding::ok("leftovers", "none: no command was cut before its end"));
    }
    let names: Vec<String> = left
        .iter()
        .map(|leftover| {
            let name = leftover.path.strip_prefix(bundle.root()).unwrap_or(&leftover.path).display();
            let what = match &leftover.what {
                Unfinished::Pull(model) => format!("an unfinished pull of {model}"),
                Unfinished::Import(model) => format!("an unfinished import of {model}"),
                Unfinished::File => "an unfinished file".into(),
            };
            format!("`{name}`, {what} ({})", size(leftover.bytes))
        })
        .collect();
    let advice = "go on with a pull by `tiles model pull`, or remove them with `tiles doctor --clean`";
    Ok(Finding::warn("leftovers", names.join("; "), advice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_for_people() {
        for (ms, expected) in [
            (0, "0 minutes old"),
            (5 * 60_000, "5 minutes old"),
            (7_200_000, "2 hours old"),
            (3 * 86_400_000, "3 days old"),
            (-600_000, "10 minutes in the future, by this clock"),
        ] {
            assert_eq!(ago(ms), expected);
        }
    }
}
