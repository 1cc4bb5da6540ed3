//! The default model through a library: imported, listed, verified, exported, removed.

use std::ops::ControlFlow;
use std::path::PathBuf;

use tilekit::library::Library;

#[test]
fn the_default_model_is_imported_and_exported() {
    let root = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("library-{}", std::process::id()));
    std::fs::create_dir_all(root.join("data")).expect("it can be written");
    let (models, list) = (root.join("models"), root.join("data/models.toml"));
    let mut library = Library::open(&models, &[], &list, Some(&[1; 32])).expect("it is empty");
    let mut sink = |_| ControlFlow::Continue(());
    let plan = library.plan_import(&crate::model::gguf(), Some("smollm2"), &mut sink).expect("tools/ has fetched it");
    let report = library.import(&plan, &mut sink).expect("it can be imported");
    assert_eq!(report.description.loss.as_deref(), Some("none"));
    assert_eq!(report.description.licence.as_deref(), Some("apache-2.0"));
    assert_eq!(report.description.quantisation.as_deref(), Some("4-bit and 8-bit affine, groups of 32"));
    let weights = report.entries.iter().find(|entry| entry.path == "model.safetensors").expect("it has weights");
    assert!(weights.chunks_sha256.is_some());

    library.export("smollm2", &root.join("smollm2.tar"), &mut sink).expect("it is whole");
    let plan = library.plan_import(&root.join("smollm2.tar"), Some("again"), &mut sink).expect("it is whole");
    let again = library.import(&plan, &mut sink).expect("it can be imported");
    let without_own = |entries: &[tilekit::manifest::Entry]| {
        // The name stands in `model.toml`.
        entries.iter().filter(|entry| entry.path != "model.toml").cloned().collect::<Vec<_>>()
    };
    assert_eq!(without_own(&again.entries), without_own(&report.entries));
    assert!(library.verify("again", &mut sink).expect("it can be read").is_whole());
    library.remove("again").expect("it can be removed");
    assert_eq!(library.list().len(), 1);
    std::fs::remove_dir_all(&root).expect("it can be removed");
}
