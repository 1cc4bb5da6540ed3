//! `tiles data set-path`: an installed Tiles in another folder of the computer.

use std::path::Path;

use tilekit::bundle::{Bundle, Verified};
use tilekit::disk;

use super::adopt::{self, Ending};
use crate::app::App;
use crate::failure::{Code, Failure};

/// Runs it. The data is moved, verified and opened there; then the installation names the new folder, and the old one goes
/// out of use.
pub(super) fn run(app: &App, bundle: &Bundle<Verified>, path: &Path, dry_run: bool) -> Result<(), Failure> {
    if !bundle.is_installed() {
        // An absolute path on the drive would be wrong on the next machine, and data outside would survive deleting it.
        let why =
            format!("the data of a bundle can't be moved to `{}`: it belongs to the bundle's folder", path.display());
        let hint = format!("move or copy the whole folder `{}`: it works from any place", bundle.root().display());
        return Err(Failure::new(Code::Usage, why, hint));
    }
    let path = std::path::absolute(path).map_err(|error| disk::DiskError::new("find", path, error))?;
    if disk::is_folder(&path) && !disk::list(&path)?.iter().all(|name| name.starts_with("data.") || name == "models") {
        let why = format!("`{}` isn't empty", path.display());
        return Err(Failure::new(Code::Usage, why, "choose an empty folder, or a new one"));
    }
    let is_new = !disk::is_folder(&path);
    disk::create_folder(&path)?;
    let done = Bundle::installed(&path)
        .map_err(Failure::from)
        .and_then(|to| adopt::carry(app, &to, bundle, dry_run, Ending::SetPath));
    if is_new && (dry_run || done.is_err()) && disk::list(&path).is_ok_and(|names| names.is_empty()) {
        disk::remove_folder(&path)?;
    }
    done
}
