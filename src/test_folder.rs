//! A folder for one test, below cargo's target directory and removed when the test ends well.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// An empty folder that is removed on drop, unless the test panics: then it stays to be looked at.
pub(crate) struct TestFolder(PathBuf);

impl TestFolder {
    /// Makes a folder that no other test has.
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("unit-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::current_exe().expect("a test has a path").with_file_name(name);
        std::fs::create_dir_all(&path).expect("target can be written");
        Self(path)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TestFolder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
