//! Tests of repair: only what is damaged is written, out of a folder and out of an archive, and only what is sealed.

use std::fs;
use std::ops::ControlFlow;

use super::*;
use crate::bundle::examine::examine;
use crate::bundle::moving::export_file;
use crate::bundle::tests::{bundle, release};
use crate::bundle::{Bundle, Found};
use crate::test_folder::TestFolder;

const WEIGHTS: &str = "models/m/model.safetensors";
const PROGRAM: &str = "bin/linux-x86_64/tiles";

struct Place {
    folder: TestFolder,
}

impl Place {
    /// A bundle, an undamaged one beside it, and its archive.
    fn new() -> Self {
        let folder = TestFolder::new();
        bundle(&folder.path().join("drive"));
        bundle(&folder.path().join("donor"));
        let donor = folder.path().join("donor");
        let whole = Bundle::<Found>::find(Some(&donor), &donor).expect("it is one").verify(release()).expect("whole");
        export_file(&whole, &folder.path().join("donor.tar.zst"), &mut |_| ControlFlow::Continue(()))
            .expect("it can be written");
        Self { folder }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("drive")
    }

    fn donor(&self, name: &str) -> Donor {
        Donor::new(&self.folder.path().join(name), &self.root()).expect("it is one")
    }

    fn change(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.root().join(path);
        let mut content = fs::read(&path).expect("it is there");
        change(&mut content);
        fs::write(path, content).expect("it can be written");
    }

    fn examine(&self) -> (Vec<Entry>, Examination) {
        let root = self.root();
        let sealed = Bundle::<Found>::find(Some(&root), &root).expect("it is one").sealed(release()).expect("sealed");
        let entries = sealed.manifest().files.clone();
        let found = examine(&root, &entries, true, None, &mut |_| ControlFlow::Continue(())).expect("it answers");
        (entries, found)
    }

    fn repair(&self, donor: &Donor, dry_run: bool) -> Repair {
        let (entries, found) = self.examine();
        let task = Task { root: &self.root(), entries: &entries, found: &found, dry_run };
        repair(task, donor, &mut |_| ControlFlow::Continue(())).expect("it answers")
    }

    fn damage(&self) {
        self.change(WEIGHTS, |bytes| bytes[5 << 20] ^= 1);
        self.change(PROGRAM, |bytes| bytes[9] ^= 1);
        self.change("README.txt", |bytes| bytes[0] ^= 1);
        fs::remove_file(self.root().join("tiles")).expect("it is there");
    }

    fn verify(&self) {
        let root = self.root();
        let whole = Bundle::<Found>::find(Some(&root), &root).expect("it is one").verify(release()).expect("whole");
        whole.verify_large(&mut |_| {}).expect("whole");
    }
}

#[test]
fn only_what_is_damaged_is_written() {
    for name in ["donor", "donor.tar.zst"] {
        let place = Place::new();
        place.damage();
        let before = fs::metadata(place.root().join("models/m/tokenizer.json")).and_then(|it| it.modified());
        let would = place.repair(&place.donor(name), true);
        assert_eq!((would.mended.len(), would.left.len()), (4, 0), "{would:?}");
        assert_eq!(place.examine().1.damaged.len(), 4, "a dry run writes nothing");

        let done = place.repair(&place.donor(name), false);
        assert_eq!((done.mended.len(), done.left.len()), (4, 0), "{done:?}");
        // A chunk of the weights, the program as a whole, and two small files.
        let program = fs::metadata(place.root().join(PROGRAM)).expect("it is there").len();
        assert!(done.written_bytes < (4 << 20) + program + 100, "{}", done.written_bytes);
        place.verify();
        let after = fs::metadata(place.root().join("models/m/tokenizer.json")).and_then(|it| it.modified());
        assert_eq!(before.expect("it is there"), after.expect("it is there"));
        assert!(place.repair(&place.donor(name), false).mended.is_empty());
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(place.root().join(PROGRAM)).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "it can be run");
    }
}

#[test]
fn lost_sidecars_are_made_again() {
    for name in ["donor", "donor.tar.zst"] {
        let place = Place::new();
        let sidecar = format!("{WEIGHTS}.chunks");
        // Of a whole file, from itself.
        fs::remove_file(place.root().join(&sidecar)).expect("it is there");
        let done = place.repair(&place.donor(name), false);
        assert_eq!((done.mended.len(), done.left.len()), (1, 0), "{done:?}");
        place.verify();
        // Of a damaged, a short, a long and a lost file, from the donor.
        for change in [
            (|bytes: &mut Vec<u8>| bytes[7] ^= 1) as fn(&mut Vec<u8>),
            |bytes| bytes.truncate(5 << 20),
            |bytes| bytes.extend([0; 999]),
            |bytes| bytes.clear(),
        ] {
            place.change(&sidecar, |bytes| bytes[3] ^= 1);
            place.change(WEIGHTS, change);
            let done = place.repair(&place.donor(name), false);
            assert!(done.left.is_empty(), "{done:?}");
            place.verify();
        }
        fs::remove_file(place.root().join(&sidecar)).expect("it is there");
        fs::remove_file(place.root().join(WEIGHTS)).expect("it is there");
        assert!(place.repair(&place.donor(name), false).left.is_empty());
        place.verify();
    }
}

#[test]
fn wrong_lengths_are_mended_in_place() {
    for name in ["donor", "donor.tar.zst"] {
        let place = Place::new();
        for change in [
            (|bytes: &mut Vec<u8>| bytes.truncate(5 << 20)) as fn(&mut Vec<u8>),
            |bytes| bytes.extend([0; 999]),
            |bytes| bytes.clear(),
        ] {
            place.change(WEIGHTS, change);
            place.change("README.txt", |bytes| bytes.extend(b"more"));
            let done = place.repair(&place.donor(name), false);
            assert!(done.left.is_empty() && !done.mended.is_empty(), "{done:?}");
            place.verify();
        }
    }
}

#[test]
fn nothing_that_is_not_sealed_is_taken() {
    let place = Place::new();
    place.damage();
    for (path, at) in [(WEIGHTS, 5 << 20), (PROGRAM, 9), ("README.txt", 1), ("tiles", 2)] {
        let donor = place.folder.path().join("donor").join(path);
        let mut content = fs::read(&donor).expect("it is there");
        content[at] ^= 4;
        fs::write(donor, content).expect("it can be written");
    }
    let done = place.repair(&place.donor("donor"), false);
    assert_eq!((done.mended.len(), done.left.len()), (0, 4), "{done:?}");
    assert_eq!(place.examine().1.damaged.len(), 4);
    // The same with files that the donor doesn't have.
    for path in [WEIGHTS, "README.txt"] {
        fs::remove_file(place.folder.path().join("donor").join(path)).expect("it is there");
    }
    let done = place.repair(&place.donor("donor"), false);
    assert_eq!(done.left.iter().filter(|(_, why)| why.contains("isn't in")).count(), 2, "{done:?}");
}

#[test]
fn an_interrupted_repair_is_gone_on_with() {
    let place = Place::new();
    place.change(WEIGHTS, |bytes| bytes.clear());
    let (entries, found) = place.examine();
    let task = Task { root: &place.root(), entries: &entries, found: &found, dry_run: false };
    let mut steps = 0;
    let stopped = repair(task, &place.donor("donor"), &mut |_| {
        steps += 1;
        if steps == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(RepairError::Stopped)));
    let left = place.examine().1.damaged.len();
    assert!((1..3).contains(&left), "{left}");
    assert!(place.repair(&place.donor("donor.tar.zst"), false).left.is_empty());
    place.verify();
}

#[test]
fn the_list_and_its_signature_mend_each_other() {
    for name in ["donor", "donor.tar.zst"] {
        for damaged in [MANIFEST_NAME, SIGNATURE_NAME] {
            let place = Place::new();
            let whole = fs::read(place.root().join(damaged)).expect("it is there");
            place.change(damaged, |bytes| bytes[60] ^= 1);
            let donor = place.donor(name);
            assert_eq!(restore_list(&place.root(), &donor, true).expect("it is of the same sealing"), Some(damaged));
            assert_ne!(fs::read(place.root().join(damaged)).expect("it is there"), whole, "a dry run");
            assert_eq!(restore_list(&place.root(), &donor, false).expect("it is of the same sealing"), Some(damaged));
            assert_eq!(fs::read(place.root().join(damaged)).expect("it is there"), whole);
            assert_eq!(restore_list(&place.root(), &donor, false).expect("both are whole"), None);
        }
        let place = Place::new();
        place.change(MANIFEST_NAME, |bytes| bytes[60] ^= 1);
        place.change(SIGNATURE_NAME, |bytes| bytes[60] ^= 1);
        assert!(matches!(restore_list(&place.root(), &place.donor(name), false), Err(RepairError::ListLost { .. })));
    }
}

#[test]
fn a_donor_is_another_bundle() {
    let place = Place::new();
    let root = place.root();
    assert!(matches!(Donor::new(&root, &root), Err(RepairError::Itself)));
    fs::create_dir_all(place.folder.path().join("empty")).expect("it can be made");
    assert!(matches!(Donor::new(&place.folder.path().join("empty"), &root), Err(RepairError::NoDonor { .. })));
    place.damage();
    fs::write(place.folder.path().join("text"), "no archive").expect("it can be written");
    let (entries, found) = place.examine();
    let task = Task { root: &root, entries: &entries, found: &found, dry_run: false };
    let refused = repair(task, &place.donor("text"), &mut |_| ControlFlow::Continue(()));
    assert!(matches!(refused, Err(RepairError::Archive(_))));
}
