//! Journeys through a library, and sources that are refused.

use std::fs;
use std::ops::ControlFlow;

use super::*;
use crate::engine::gguf::test_file::TestFile;
use crate::model_folder::Progress;
use crate::test_folder::TestFolder;

mod adapter;
mod archive;

const KEY: [u8; 32] = [9; 32];

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A library in a folder of its own, with a small GGUF file beside it.
struct Bench {
    folder: TestFolder,
}

impl Bench {
    fn new() -> Self {
        let folder = TestFolder::new();
        fs::create_dir_all(folder.path().join("data")).expect("it can be written");
        TestFile::llama().write(folder.path(), "Tiny Llama.F32.gguf");
        Self { folder }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    fn open_with(&self, shipped: &[Entry], key: Option<&[u8; 32]>) -> Result<Library, LibraryError> {
        Library::open(&self.path("models"), shipped, &self.path("data/models.toml"), key)
    }

    fn open(&self) -> Library {
        self.open_with(&[], Some(&KEY)).expect("it is whole")
    }

    fn import(&self, library: &mut Library, source: &str, name: Option<&str>) -> Result<ImportReport, LibraryError> {
        let plan = library.plan_import(&self.path(source), name, &mut go_on)?;
        let report = library.import(&plan, &mut go_on)?;
        let planned: Vec<&str> = plan.files().iter().map(|(name, _)| name.as_str()).collect();
        let mut written: Vec<&str> = report.entries.iter().map(|entry| entry.path.as_str()).collect();
        written.retain(|name| *name != "model.toml");
        assert_eq!(planned, written, "what is planned is done");
        Ok(report)
    }

    /// An MLX folder `at`, as an import of the GGUF file makes it, without what is ours.
    fn mlx_folder(&self, at: &str) -> PathBuf {
        let mut library = self.open();
        self.import(&mut library, "Tiny Llama.F32.gguf", Some("made")).expect("it is right");
        let to = self.path(at);
        fs::create_dir_all(to.parent().expect("it has one")).expect("it can be written");
        fs::rename(self.path("models/made"), &to).expect("it can be moved");
        fs::remove_file(to.join("model.toml")).expect("it is there");
        fs::remove_file(to.join("Modelfile")).expect("it is there");
        added::remove(&self.path("data/models.toml")).expect("it is there");
        to
    }
}

fn names(folder: &Path) -> Vec<String> {
    disk::list(folder).expect("it can be listed")
}

fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    names(folder).into_iter().map(|name| (name.clone(), fs::read(folder.join(name)).expect("it is there"))).collect()
}

#[test]
fn a_model_comes_is_verified_damaged_and_goes() {
    let bench = Bench::new();
    let mut library = bench.open();
    let report = bench.import(&mut library, "Tiny Llama.F32.gguf", None).expect("it is right");
    assert_eq!(report.name, "tiny-llama.f32");
    assert_eq!(report.description.loss.as_deref(), Some("none"));
    assert_eq!(report.description.licence.as_deref(), Some("apache-2.0"));

    // A later start knows it too.
    let mut library = bench.open();
    let [summary] = &library.list()[..] else { panic!("there is one model") };
    assert_eq!((summary.name.as_str(), summary.is_shipped), ("tiny-llama.f32", false));
    assert_eq!(summary.description.as_ref(), Some(&report.description));
    assert_eq!(summary.size_bytes, report.entries.iter().map(|entry| entry.size).sum::<u64>());
    let model = library.find("tiny-llama.f32").expect("it is listed");
    let modelfile = model.modelfile().expect("it is whole").expect("it has one");
    assert!(modelfile.ends_with("\nFROM .\n"), "{modelfile}");
    assert!(model.folder().read("config.json", 9999).expect("it is whole").is_some());
    let report = library.verify("tiny-llama.f32", &mut go_on).expect("it can be read");
    assert!(report.is_whole() && report.unlisted.is_empty() && report.files == 7, "{report:?}");

    let weights = bench.path("models/tiny-llama.f32/model.safetensors");
    let mut bytes = fs::read(&weights).expect("it is there");
    bytes[5000] ^= 1;
    fs::write(&weights, &bytes).expect("it can be written");
    fs::write(bench.path("models/tiny-llama.f32/extra"), b"x").expect("it can be written");
    fs::remove_file(bench.path("models/tiny-llama.f32/tokenizer.json")).expect("it is there");
    let report = library.verify("tiny-llama.f32", &mut go_on).expect("it can be read");
    let damaged: Vec<String> = report.damaged.iter().map(ToString::to_string).collect();
    assert_eq!(damaged.len(), 2, "{damaged:?}");
    assert!(damaged[0].contains("model.safetensors` is damaged: its SHA-256"), "{damaged:?}");
    assert!(damaged[1].contains("tokenizer.json` doesn't exist"), "{damaged:?}");
    assert_eq!(report.unlisted, ["extra"]);
    let error = library.export("tiny-llama.f32", &bench.path("x.tar"), &mut go_on).expect_err("it is damaged");
    assert!(error.to_string().contains("model.safetensors` is damaged"), "{error}");
    assert!(!bench.path("x.tar").exists() && !bench.path("x.tar.partial").exists());

    library.remove("tiny-llama.f32").expect("it can be removed");
    assert_eq!(names(&bench.path("models")), [""; 0]);
    assert!(matches!(bench.open().find("tiny-llama.f32"), Err(LibraryError::NotFound { .. })));
}

#[test]
fn large_files_have_sidecars_and_damage_has_an_address() {
    let bench = Bench::new();
    let rows = 50_000;
    TestFile::llama()
        .tensor("token_embd.weight", &[64, rows], 1, vec![0; rows as usize * 128])
        .tensor("output.weight", &[64, rows], 1, vec![0; rows as usize * 128])
        .write(bench.folder.path(), "large.gguf");
    let mut library = bench.open();
    let report = bench.import(&mut library, "large.gguf", None).expect("it is right");
    let weights = report.entries.iter().find(|entry| entry.path == "model.safetensors").expect("it is listed");
    assert!(weights.size > 12_000_000 && weights.chunks_sha256.is_some());
    let path = bench.path("models/large/model.safetensors");
    let mut bytes = fs::read(&path).expect("it is there");
    for at in [1, 9_000_000] {
        bytes[at] ^= 0x80;
    }
    fs::write(&path, &bytes).expect("it can be written");
    let report = library.verify("large", &mut go_on).expect("it can be read");
    let damaged: Vec<String> = report.damaged.iter().map(ToString::to_string).collect();
    assert_eq!(damaged.len(), 2, "{damaged:?}");
    assert!(damaged[1].contains("from byte 8388608"), "{damaged:?}");

    // What describes a folder agrees with what was listed, and makes a missing sidecar again.
    fs::write(&path, {
        bytes[1] ^= 0x80;
        bytes[9_000_000] ^= 0x80;
        &bytes
    })
    .expect("it can be written");
    let sidecar = bench.path("models/large/model.safetensors.chunks");
    let known = fs::read(&sidecar).expect("it is there");
    fs::remove_file(&sidecar).expect("it is there");
    let entries = entries_of(&bench.path("models/large"), &mut go_on).expect("it is right");
    assert_eq!(entries, library.find("large").expect("it is listed").entries());
    assert_eq!(fs::read(&sidecar).expect("it is made again"), known);
    fs::create_dir(bench.path("models/large/folder")).expect("it can be written");
    assert!(entries_of(&bench.path("models/large"), &mut go_on).is_err());
}

#[test]
fn shipped_models_count_without_the_key_and_stay() {
    let bench = Bench::new();
    let folder = bench.mlx_folder("models/shipped");
    let entries = entries_of(&folder, &mut go_on).expect("it is right");
    let mut shipped: Vec<Entry> =
        entries.into_iter().map(|entry| Entry { path: format!("models/shipped/{}", entry.path), ..entry }).collect();
    shipped.push(Entry { path: "README.txt".into(), ..shipped[0].clone() });
    let mut library = bench.open_with(&shipped, None).expect("it is whole");
    let [summary] = &library.list()[..] else { panic!("there is one model") };
    assert!(summary.is_shipped && summary.description.is_none() && summary.problem.is_none());
    assert!(library.verify("shipped", &mut go_on).expect("it can be read").is_whole());
    assert!(matches!(library.remove("shipped"), Err(LibraryError::Shipped { .. })));
    let source = bench.path("Tiny Llama.F32.gguf");
    assert!(matches!(library.plan_import(&source, None, &mut go_on), Err(LibraryError::Locked)));

    // A folder that a person added is there, but nothing vouches for it while the bundle is locked.
    let mut open = bench.open_with(&shipped, Some(&KEY)).expect("it is whole");
    bench.import(&mut open, "Tiny Llama.F32.gguf", Some("mine")).expect("it is right");
    assert_eq!(open.list().len(), 2);
    let locked = bench.open_with(&shipped, None).expect("it is whole");
    assert_eq!(locked.list().len(), 1);
    assert!(matches!(locked.find("mine"), Err(LibraryError::Locked)));
    assert!(matches!(
        open.plan_import(&source, Some("mine"), &mut go_on),
        Err(LibraryError::Taken { name }) if name == "mine"
    ));
    assert!(matches!(open.plan_import(&source, Some("Mine"), &mut go_on), Err(LibraryError::Name { .. })));
    assert!(matches!(open.plan_import(&source, Some("shipped"), &mut go_on), Err(LibraryError::Taken { .. })));
}

#[test]
fn a_list_that_somebody_else_wrote_opens_nothing() {
    let bench = Bench::new();
    let mut library = bench.open();
    bench.import(&mut library, "Tiny Llama.F32.gguf", Some("mine")).expect("it is right");
    let error = bench.open_with(&[], Some(&[8; 32])).expect_err("the key is another");
    assert!(matches!(&error, LibraryError::Added(AddedError::Forged { .. })));
    assert!(error.to_string().contains("models.toml` isn't what this bundle wrote"), "{error}");

    // Without its list a folder counts for nothing, and can only be removed.
    added::remove(&bench.path("data/models.toml")).expect("it is there");
    let mut library = bench.open();
    assert!(matches!(library.find("mine"), Err(LibraryError::Unlisted { .. })));
    let again = bench.import(&mut library, "Tiny Llama.F32.gguf", Some("mine"));
    assert!(matches!(again, Err(LibraryError::Taken { .. })), "it may be somebody's");
    library.remove("mine").expect("it can be removed");
    assert!(!bench.path("models/mine").exists());

    // Unless it is one that was about to be listed.
    bench.import(&mut library, "Tiny Llama.F32.gguf", Some("mine")).expect("it is right");
    assert!(!bench.path("models/mine/pull.toml").exists());
    fs::write(bench.path("models/mine/pull.toml"), b"").expect("it can be written");
    assert!(matches!(bench.import(&mut library, "Tiny Llama.F32.gguf", Some("mine")), Err(LibraryError::Taken { .. })));
    added::remove(&bench.path("data/models.toml")).expect("it is there");
    let mut library = bench.open();
    bench.import(&mut library, "Tiny Llama.F32.gguf", Some("mine")).expect("what was cut is done again");
    assert!(library.verify("mine", &mut go_on).expect("it is listed").is_whole());
    assert_eq!(fs::read_dir(bench.path("models")).expect("it is there").count(), 1);
}

#[test]
fn names_that_are_near_are_told() {
    let bench = Bench::new();
    let mut library = bench.open();
    bench.import(&mut library, "Tiny Llama.F32.gguf", Some("tiny-llama")).expect("it is right");
    for (asked, near) in [("tinyllama", true), ("Tiny-Llama", true), ("tiny", true), ("../x", false), ("qq", false)] {
        let error = library.find(asked).expect_err("there is none");
        let hint = error.hint().expect("it has one");
        assert_eq!(hint == "did you mean `tiny-llama`?", near, "{asked}: {hint}");
    }
}

/// Every tensor of a folder's weights, sorted by name, as the `safetensors` crate reads it.
fn tensors(folder: &Path) -> Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)> {
    let mut tensors = Vec::new();
    for name in names(folder).iter().filter(|name| name.starts_with("model") && name.ends_with(".safetensors")) {
        let bytes = fs::read(folder.join(name)).expect("it is there");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("it is right");
        for (name, view) in file.iter() {
            tensors.push((name.to_owned(), view.dtype(), view.shape().to_vec(), view.data().to_vec()));
        }
    }
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    tensors
}

#[test]
fn folders_are_copied_and_large_weights_cut() {
    let bench = Bench::new();
    let folder = bench.mlx_folder("Some Model");
    for (name, text) in [
        ("README.md", "---\nlicense: mit\n---\n"),
        ("LICENSE", "x"),
        ("pytorch_model.bin", "x"),
        ("notes.txt", "x"),
        ("chat_template.jinja", "{{ 1 }}"),
        ("optimizer.safetensors", "x"),
    ] {
        fs::write(folder.join(name), text).expect("it can be written");
    }
    let mut library = bench.open();
    let report = bench.import(&mut library, "Some Model", None).expect("it is right");
    let whole: Vec<&str> = report.entries.iter().map(|entry| entry.path.as_str()).collect();
    let expected = "LICENSE Modelfile README.md chat_template.jinja config.json generation_config.json \
                    model.safetensors model.toml tokenizer.json tokenizer_config.json";
    assert_eq!((report.name.as_str(), whole.join(" ").as_str()), ("some-model", expected));
    let description = &report.description;
    assert_eq!(description.source, "Some Model");
    assert_eq!(description.licence.as_deref(), Some("mit"));
    assert_eq!(description.quantisation.as_deref(), Some("none (f16)"));
    assert_eq!(description.parameters, Some(64 * (8 + 3 + 64 + 32 + 32 + 64 + 96 * 3)));
    let original = fs::read(folder.join("model.safetensors")).expect("it is there");
    assert_eq!(fs::read(bench.path("models/some-model/model.safetensors")).expect("it is there"), original);

    library.shard_bytes_max = 20_000;
    let report = bench.import(&mut library, "Some Model", Some("cut")).expect("it is right");
    let shards: Vec<&Entry> = report.entries.iter().filter(|entry| entry.path.ends_with(".safetensors")).collect();
    assert!(shards.len() > 2 && shards.iter().all(|shard| shard.size <= 20_000), "{shards:?}");
    assert_eq!(tensors(&bench.path("models/cut")), tensors(&folder));
    // What was cut is copied as it is, with its index, where nothing is too large.
    library.shard_bytes_max = SHARD_BYTES_MAX;
    bench.import(&mut library, "models/cut", Some("again")).expect("it is right");
    assert_eq!(tensors(&bench.path("models/again")), tensors(&folder));
    let index = "model.safetensors.index.json";
    let [first, second] = ["cut", "again"].map(|name| fs::read(bench.path("models").join(name).join(index)).ok());
    assert!(first.is_some() && first == second);
}

#[test]
fn a_folder_with_a_list_of_its_own_must_fit_it() {
    let bench = Bench::new();
    let mut library = bench.open();
    bench.import(&mut library, "Tiny Llama.F32.gguf", Some("tiny")).expect("it is right");
    fs::rename(bench.path("models/tiny"), bench.path("unpacked")).expect("it can be moved");
    library.remove("tiny").expect("it goes from the list though its folder is gone");
    bench.import(&mut library, "unpacked", Some("second")).expect("it is whole");
    fs::write(bench.path("unpacked/tokenizer_config.json"), b"{}").expect("it can be written");
    let error = bench.import(&mut library, "unpacked", Some("third")).expect_err("it isn't what it was");
    assert!(error.to_string().contains("tokenizer_config.json` is damaged"), "{error}");
    fs::remove_file(bench.path("unpacked/tokenizer_config.json")).expect("it is there");
    let error = bench.import(&mut library, "unpacked", Some("third")).expect_err("it isn't what it was");
    assert!(error.to_string().contains("lists `tokenizer_config.json`, which isn't there"), "{error}");
    assert!(!bench.path("models/third").exists() && !bench.path("models/third.partial").exists());
}

#[test]
fn a_hugging_face_cache_is_followed_inside_only() {
    use std::os::unix::fs::symlink;
    let bench = Bench::new();
    let folder = bench.mlx_folder("plain");
    let root = bench.path("models--Some-Org--Tiny-Model");
    let snapshot = root.join("snapshots/0123abc");
    fs::create_dir_all(root.join("blobs")).expect("it can be written");
    fs::create_dir_all(&snapshot).expect("it can be written");
    for name in names(&folder) {
        fs::rename(folder.join(&name), root.join("blobs").join(&name)).expect("it can be moved");
        symlink(format!("../../blobs/{name}"), snapshot.join(&name)).expect("it can be written");
    }
    let mut library = bench.open();
    let report = bench.import(&mut library, "models--Some-Org--Tiny-Model", None).expect("it is right");
    assert_eq!(report.name, "tiny-model");
    assert_eq!(report.description.source, "Some-Org/Tiny-Model");
    assert_eq!(report.description.revision.as_deref(), Some("0123abc"));
    let report = bench.import(&mut library, "models--Some-Org--Tiny-Model/snapshots/0123abc", Some("by-revision"));
    assert_eq!(report.expect("it is right").description.source, "Some-Org/Tiny-Model");

    fs::create_dir(root.join("snapshots/ffff")).expect("it can be written");
    let error = bench.import(&mut library, "models--Some-Org--Tiny-Model", Some("x")).expect_err("there are two");
    assert!(error.to_string().contains("2 snapshots and no `refs/main`"), "{error}");
    fs::create_dir(root.join("refs")).expect("it can be written");
    for (revision, fits) in [("0123abc\n", true), ("../../plain", false), ("", false)] {
        fs::write(root.join("refs/main"), revision).expect("it can be written");
        let plan = library.plan_import(&root, Some("x"), &mut go_on);
        assert_eq!(plan.is_ok(), fits, "{revision:?}");
    }
    fs::write(root.join("refs/main"), "0123abc").expect("it can be written");
    fs::write(bench.path("secret"), b"{}").expect("it can be written");
    symlink("../../../secret", snapshot.join("special_tokens_map.json")).expect("it can be written");
    let error = library.plan_import(&root, Some("x"), &mut go_on).expect_err("it leads out");
    assert!(error.to_string().contains("leads out of the model's folder"), "{error}");
}

#[test]
fn a_link_to_a_file_is_called_as_the_link() {
    let bench = Bench::new();
    fs::rename(bench.path("Tiny Llama.F32.gguf"), bench.path("0123abcd")).expect("it can be moved");
    std::os::unix::fs::symlink("0123abcd", bench.path("Linked.gguf")).expect("it can be written");
    let plan = bench.open().plan_import(&bench.path("Linked.gguf"), None, &mut go_on).expect("it is right");
    assert_eq!((plan.name(), plan.description().source.as_str()), ("linked", "Linked.gguf"));
}

#[test]
fn a_single_file_of_weights_takes_what_is_beside_it() {
    let bench = Bench::new();
    let folder = bench.mlx_folder("loose");
    fs::rename(folder.join("model.safetensors"), folder.join("Tiny.safetensors")).expect("it can be moved");
    let mut library = bench.open();
    let report = bench.import(&mut library, "loose/Tiny.safetensors", None).expect("it is right");
    assert_eq!((report.name.as_str(), report.description.source.as_str()), ("tiny", "Tiny.safetensors"));
    assert!(bench.path("models/tiny/model.safetensors").exists());
    let error = library.plan_import(&folder, Some("x"), &mut go_on).expect_err("none is called model");
    assert!(error.to_string().contains("it has no `model*.safetensors`"), "{error}");
}

#[test]
fn sources_that_are_no_models_are_refused() {
    let bench = Bench::new();
    let library = bench.open();
    let check = |source: &str, expected: &str| {
        let error = library.plan_import(&bench.path(source), Some("x"), &mut go_on).expect_err("it is none");
        assert!(error.to_string().contains(expected) && error.hint().is_some(), "{error}\n{expected}");
    };
    check("nothing", "doesn't exist");
    for (name, expected) in [
        ("w.bin", "Python pickles, which can run any program"),
        ("w.zip", "none of the kinds of model"),
        ("w.gguf", "isn't a GGUF file"),
    ] {
        fs::write(bench.path(name), b"x").expect("it can be written");
        check(name, expected);
    }
}

#[test]
fn folders_that_are_no_models_are_refused() {
    let bench = Bench::new();
    let library = bench.open();
    let check = |source: &str, expected: &str| {
        let error = library.plan_import(&bench.path(source), Some("x"), &mut go_on).expect_err("it is none");
        assert!(error.to_string().contains(expected) && error.hint().is_some(), "{error}\n{expected}");
    };
    let folder = bench.mlx_folder("f");
    let weights = fs::read(folder.join("model.safetensors")).expect("it is there");
    let broken = |change: &dyn Fn(), expected: &str| {
        let before = contents(&folder);
        change();
        check("f", expected);
        fs::remove_dir_all(&folder).expect("it is there");
        fs::create_dir(&folder).expect("it can be written");
        before.iter().for_each(|(name, content)| fs::write(folder.join(name), content).expect("it can be written"));
    };
    let write = |name: &str, content: &[u8]| fs::write(folder.join(name), content).expect("it can be written");
    let remove = |name: &str| fs::remove_file(folder.join(name)).expect("it is there");
    broken(&|| remove("config.json"), "it has no `config.json`");
    broken(&|| remove("tokenizer.json"), "it has no `tokenizer.json`");
    broken(&|| write("config.json", b"{"), "`config.json`: EOF");
    broken(&|| write("config.json", b"{}"), "no `model_type`");
    broken(&|| write("model.toml", b"format = 9"), "newer");
    broken(&|| write("model.safetensors", b""), "has only 0 bytes");
    broken(&|| write("model.safetensors", &u64::MAX.to_le_bytes()), "its header would have");
    broken(&|| write("model.safetensors", &weights[..weights.len() - 1]), "its tensors have");
    broken(&|| write("model.safetensors", &[&weights[..], b"x"].concat()), "its tensors have");
    broken(&|| write("model-2.safetensors", &weights), "is there twice");
    for (text, expected) in [
        ("{", "its header: EOF"),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,9]}}"#, "its header:"),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, "its header:"),
        (r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}"#, "its header:"),
        (r#"{"a":{"dtype":"Q9","shape":[2],"data_offsets":[0,8]}}"#, "its header:"),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[2],"data_offsets":[2,10]}}"#,
            "its header:",
        ),
        ("{}", "its tensors have 0 bytes"),
    ] {
        let header = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &[0; 8]].concat();
        broken(&|| write("model.safetensors", &header), expected);
    }
    broken(
        &|| {
            remove("model.safetensors");
            write("pytorch_model.bin", b"x");
        },
        "Python pickles",
    );
}

#[test]
fn an_import_that_is_stopped_leaves_nothing_and_leftovers_go() {
    let bench = Bench::new();
    let mut library = bench.open();
    let source = bench.path("Tiny Llama.F32.gguf");
    let plan = library.plan_import(&source, Some("tiny"), &mut go_on).expect("it is right");
    let mut steps = 0;
    let whole = {
        let mut count = |_: Progress| {
            steps += 1;
            ControlFlow::Continue(())
        };
        library.import(&plan, &mut count).expect("it is right");
        steps
    };
    library.remove("tiny").expect("it can be removed");
    for stop_at in 1..=whole {
        let mut left = stop_at;
        let mut stop = |_: Progress| {
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let error = library.import(&plan, &mut stop).expect_err("it is stopped");
        assert!(error.is_stopped(), "{error}");
        assert_eq!(names(&bench.path("models")), [""; 0], "stopped at {stop_at} of {whole}");
        assert!(library.list().is_empty());
    }
    // What a pulled stick leaves is removed by the next import, and never counts before that.
    fs::create_dir(bench.path("models/tiny.partial")).expect("it can be written");
    fs::write(bench.path("models/tiny.partial/config.json"), b"{").expect("it can be written");
    assert!(bench.open().find("tiny.partial").is_err());
    library.import(&plan, &mut go_on).expect("it is right");
    assert_eq!(names(&bench.path("models")), ["tiny"]);
}

#[test]
fn space_is_asked_for_first() {
    assert!(import::check_space(5, 5).is_ok());
    let error = import::check_space(6, 5).expect_err("it doesn't fit");
    assert_eq!(error.to_string(), "6 bytes are needed and 5 are free");
    let bench = Bench::new();
    let plan = bench.open().plan_import(&bench.path("Tiny Llama.F32.gguf"), None, &mut go_on).expect("it is right");
    assert!(plan.needed_bytes() > plan.bytes() + 100_000);
}
