//! `ADAPTER` acts: what the Modelfile names is added to the weights, verified where the bundle vouches for it.

use std::fs;
use std::path::Path;
use std::process::Output;

use crate::commands::{beside, refused};
use crate::drive::TestBundle;
use crate::scripted;

/// What the checkpoint says, from the first word, or with the adapter from the fourth.
const WORDS: [&str; 5] = ["Hello", " from", " me.", "Adapted", " indeed."];
const PLAIN: &str = "Hello from me.Adapted indeed.\n";
const ADAPTED: &str = "Adapted indeed.\n";

/// A checkpoint with the adapter `lora` in it, beside the bundle, and a Modelfile in the checkpoint.
fn write(bundle: &TestBundle, modelfile: &str) -> String {
    let folder = beside(bundle, "checkpoint");
    scripted::write(&folder, &WORDS, false);
    scripted::write_adapter(&folder.join("lora"), &WORDS, "Adapted");
    fs::write(folder.join("Modelfile"), modelfile).expect("target can be written");
    folder.join("Modelfile").display().to_string()
}

/// One answer of `model`, nothing kept.
fn answer(bundle: &TestBundle, model: &str) -> Output {
    bundle.unlocked(&["run", model, "-p", "hi"])
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn an_adapter_beside_the_modelfile_changes_the_answer() {
    let bundle = TestBundle::new();
    for (line, expected) in [
        ("", PLAIN),
        ("ADAPTER ./lora", ADAPTED),
        ("ADAPTER lora/", ADAPTED),
        ("ADAPTER lora/adapters.safetensors", ADAPTED),
        ("ADAPTER nothing\nADAPTER lora", ADAPTED),
    ] {
        let modelfile = write(&bundle, &format!("FROM ./\n{line}\n"));
        let answered = answer(&bundle, &modelfile);
        let errors = text(&answered.stderr);
        assert_eq!(text(&answered.stdout), expected, "{line}: {errors}");
        assert_eq!(errors.contains("this adapter is used where it lies"), expected == ADAPTED, "{line}: {errors}");
        bundle.ok(&["modelfile", "check", &modelfile]);
    }
    let modelfile = write(&bundle, "FROM ./\nADAPTER ./lora\n");
    let explained = bundle.json(&["modelfile", "explain", &modelfile]);
    let row = explained.as_array().expect("a list").iter().find(|row| row["name"] == "adapter").expect("it is there");
    assert_eq!((&row["value"], &row["origin"]), (&"./lora".into(), &"line 2".into()));
}

#[test]
fn an_adapter_that_cannot_be_used_is_refused_by_name() {
    let bundle = TestBundle::new();
    let modelfile = write(&bundle, "FROM ./\nADAPTER ./lora\n");
    let config = Path::new(&modelfile).with_file_name("lora/adapter_config.json");
    let good = fs::read_to_string(&config).expect("it was written");
    for (changed, named) in [
        (good.replace("\"lora\"", "\"dora\""), "the adapter is of the type `dora`, which isn't supported"),
        (good.replace("\"lora\"", "\"full\""), "the adapter is of the type `full`, which isn't supported"),
        (good.replace("20.0", "NaN"), "the adapter's `adapter_config.json` isn't valid: expected value"),
        (good.replace("\"rank\":1", "\"rank\":2"), "its shape is [128, 1] where [128, 2] is needed"),
    ] {
        fs::write(&config, changed).expect("target can be written");
        let output = answer(&bundle, &modelfile);
        refused(&output, 4, named);
        assert!(text(&output.stderr).contains("hint: "), "{}", text(&output.stderr));
    }
    fs::remove_file(&config).expect("it was written");
    refused(&answer(&bundle, &modelfile), 4, "the adapter has no `adapter_config.json`");
    let modelfile = write(&bundle, "FROM ./\nADAPTER ./none\n");
    refused(&answer(&bundle, &modelfile), 4, "the adapter `./none` isn't there");
    let modelfile = write(&bundle, "FROM ./\nADAPTER ./tokenizer.json\n");
    refused(&answer(&bundle, &modelfile), 4, "`./tokenizer.json` isn't an adapter");
    let modelfile = write(&bundle, "FROM ./\nADAPTER lora.gguf\n");
    refused(&answer(&bundle, &modelfile), 2, "an adapter in GGUF isn't supported");
}

#[test]
fn an_imported_model_brings_its_adapter_verified() {
    let bundle = TestBundle::new();
    let folder = Path::new(&write(&bundle, "FROM .\n# trained at home\nADAPTER ./lora\n")).with_file_name("");
    bundle.ok(&["model", "import", &folder.display().to_string(), "--name", "mine"]);
    fs::remove_dir_all(&folder).expect("nothing is needed of it");
    let answered = answer(&bundle, "mine");
    assert_eq!((text(&answered.stdout).as_str(), text(&answered.stderr).as_str()), (ADAPTED, ""));
    let imported = bundle.root.join("models/mine");
    let modelfile = fs::read_to_string(imported.join("Modelfile")).expect("it came along");
    assert_eq!(modelfile, "FROM .\n# trained at home\nADAPTER adapters.safetensors\n");
    assert_eq!(text(&answer(&bundle, &imported.join("Modelfile").display().to_string()).stdout), ADAPTED);

    let archive = beside(&bundle, "mine.tar").display().to_string();
    bundle.ok(&["model", "export", "mine", &archive]);
    bundle.ok(&["model", "import", &archive, "--name", "again"]);
    assert_eq!(text(&answer(&bundle, "again").stdout), ADAPTED);

    let weights = imported.join("adapters.safetensors");
    let mut bytes = fs::read(&weights).expect("it came along");
    *bytes.last_mut().expect("it isn't empty") ^= 1;
    fs::write(&weights, bytes).expect("target can be written");
    refused(&answer(&bundle, "mine"), 5, "adapters.safetensors` is damaged");
}
